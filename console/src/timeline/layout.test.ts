import { expect, test } from "vitest";
import type { HopSpan, StepSpan } from "../api/types";
import { bars, barsIn, density, duration, held, KINDS, moved, recoveryParts, recoveryWords, Tape, ticks, TONE_OF, TONES, zoomed } from "./layout";
import { label, packed } from "./paint";

const hop = (scale: number): HopSpan => [0.001 * scale, 0.002 * scale, 0.0005, 0.01 * scale, 0.0007, 0.0001];
const step = (number: number, at: number, epoch = 1, stages = 2): StepSpan => ({
  number,
  epoch,
  at,
  rows: 2,
  own: 1,
  tokens: 1,
  schedule: 0.0003,
  encode: 0.0001,
  send: 0.0002,
  stages: Array.from({ length: stages }, (_, i) => hop(i + 1)),
  back: 0.0008,
  apply: 0.0004,
});

test("a step's bars follow one another without a gap, and take as long as the step", () => {
  const one = step(1, 100);
  const made = bars(one, [1, 2], 90);
  expect(made[0]?.start).toBe(10);
  made.slice(1).forEach((bar, i) => expect(bar.start).toBeCloseTo(made[i]?.end ?? -1, 12));
  expect((made.at(-1)?.end ?? 0) - 10).toBeCloseTo(duration(one), 12);
  expect(made.map(({ kind }) => KINDS[kind])).toEqual(["schedule", "encode", "send", ...Array(2).fill(["hop", "wait", "prepare", "compute", "sample", "encode"]).flat(), "back", "apply"]);
  expect(made.map(({ lane }) => lane)).toEqual([0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 0, 0]);
  expect(TONE_OF).toHaveLength(KINDS.length);
});

test("what took no time has no bar", () => {
  const one = { ...step(1, 0), back: 0, apply: 0 };
  expect(bars(one, [1, 2], 0).some(({ kind }) => KINDS[kind] === "back")).toBe(false);
});

test("a node keeps its lane when another leaves", () => {
  const tape = new Tape();
  tape.add([step(1, 50), step(2, 50.1)], { 1: ["a", "b"] });
  tape.add([step(3, 51, 2)], { 2: ["b", "c"] });
  expect(tape.lanes).toEqual(["head", "a", "b", "c"]);
  const lanes = new Set(Array.from(tape.marks.slice(tape.firsts[2], tape.length), (mark) => mark >> 4));
  expect(lanes).toEqual(new Set([0, 2, 3]));
});

test("a node that calls itself head has a lane of its own", () => {
  const tape = new Tape();
  tape.add([step(1, 5, 1, 1)], { 1: ["head"] });
  expect(tape.lanes).toEqual(["head", "head"]);
});

test("thousands of steps are kept, and the one at a time is found", () => {
  const tape = new Tape();
  for (let i = 0; i < 5000; i++) tape.add([step(i + 1, 1000 + i * 0.05)], { 1: ["a", "b"] });
  expect(tape.length).toBe(5000 * 17);
  expect(tape.stepAt(-1)).toBe(-1);
  expect(tape.stepAt(0)).toBe(0);
  expect(tape.stepAt(12.51)).toBe(250);
  expect(tape.stepAt(1e9)).toBe(4999);
  expect(tape.ends[tape.length - 1]).toBeCloseTo(tape.end, 9);
  const bar = tape.firstBar(100);
  expect(tape.ends[bar]).toBeLessThanOrEqual(100);
  for (let i = 0; i < bar; i++) if ((tape.ends[i] ?? 0) >= 100) throw new Error(`bar ${i} reaches into sight`);
});

const recovery = { at: 100, ended: 101.6, reason: "its connection broke", node: "b", silence: 0.5, parts: { load: 0.8, fence: 0.1, resume: 0.7 }, refilled: 40, kept: 12 };

test("a recovery's parts follow the silence, in their order", () => {
  expect(recoveryParts(recovery, 90).map(({ name, start, end }) => [name, +start.toFixed(3), +end.toFixed(3)])).toEqual([
    ["silence", 9.5, 10],
    ["fence", 10, 10.1],
    ["load", 10.1, 10.9],
    ["resume", 10.9, 11.6],
  ]);
  const words = recoveryWords(recovery);
  expect(words).toBe("b: its connection broke; noticed after 500 ms of silence; paused 1.6 s (fence 100 ms, load 800 ms, resume 700 ms); 40 tokens refilled, 12 kept, none lost");
  expect(recoveryWords({ ...recovery, ended: 0 })).toContain("not over yet");
});

test("zooming keeps the time under the pointer, and neither zooming nor panning leaves everything behind", () => {
  const sight = { from: 2, to: 6 };
  const near = zoomed(sight, 0.5, 3, 10);
  expect(near.to - near.from).toBeCloseTo(2);
  expect((3 - near.from) / (near.to - near.from)).toBeCloseTo(0.25);
  let far = sight;
  for (let i = 0; i < 50; i++) far = zoomed(far, 2, 4, 10);
  expect(far.to - far.from).toBeLessThanOrEqual(15);
  for (let i = 0; i < 50; i++) far = zoomed(far, 0.2, 4, 10);
  expect(far.to - far.from).toBeGreaterThan(0);
  for (const by of [-1e6, 1e6]) {
    const gone = moved(sight, by, 10);
    expect(gone.from).toBeLessThan(10);
    expect(gone.to).toBeGreaterThan(0);
    expect(gone.to - gone.from).toBeCloseTo(4);
  }
  expect(held({ from: 0, to: 3 }, 0)).toEqual({ from: 0, to: 3 });
});

test("an axis has round times, labelled with as many digits as they need", () => {
  expect(ticks({ from: 0, to: 10 }, 5)).toEqual({ step: 2, at: [0, 2, 4, 6, 8, 10] });
  const fine = ticks({ from: 1.2341, to: 1.2346 }, 5);
  expect(fine.at.length).toBeLessThanOrEqual(6);
  expect(new Set(fine.at.map((at) => label(at, fine.step))).size).toBe(fine.at.length);
  for (const [at, by, text] of [[3, 1, "3 s"], [2.5, 0.5, "2.5 s"], [0.01, 0.01, "0.01 s"], [0.0123, 0.0001, "12.3 ms"]] as const) expect(label(at, by)).toBe(text);
});

test("what is summed up by column is all that is in sight", () => {
  const tape = new Tape();
  for (let i = 0; i < 400; i++) tape.add([step(i + 1, 1000 + i * 0.05)], { 1: ["a", "b"] });
  for (const [from, to] of [[0, 20], [3.017, 9.4], [-2, 1]] as const) {
    const columns = 313;
    const sums = density(tape, from, (to - from) / columns, columns);
    for (let lane = 0; lane < tape.lanes.length; lane++)
      TONES.forEach((tone, t) => {
        let expected = 0;
        for (let i = 0; i < tape.length; i++) {
          const mark = tape.marks[i] ?? 0;
          if (mark >> 4 === lane && TONE_OF[mark & 15] === tone) expected += Math.max(0, Math.min(to, tape.ends[i] ?? 0) - Math.max(from, tape.starts[i] ?? 0));
        }
        let found = 0;
        for (let column = 0; column < columns; column++) found += sums[(lane * columns + column) * TONES.length + t] ?? 0;
        expect(found, `${lane} ${tone} from ${from}`).toBeCloseTo(expected, 3);
      });
  }
  expect(barsIn(tape, { from: 0, to: 100 })).toBe(tape.length);
  expect(barsIn(tape, { from: 10, to: 10.05 })).toBeLessThan(60);
});

test("a colour as a pixel", () => {
  expect(packed("rgb(1, 2, 3)")).toBe(0xff030201);
});
