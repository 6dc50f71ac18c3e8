/** Steps as bars on lanes: the head first, then each node in the order in which it first had a stage. Pure. */
import type { RecoverySpan, StepSpan } from "../api/types";
import { plural, seconds } from "../parts/format";

export const KINDS = ["schedule", "encode", "send", "hop", "wait", "prepare", "compute", "sample", "back", "apply"] as const;
export type Kind = (typeof KINDS)[number];
const [SCHEDULE, ENCODE, SEND, HOP, WAIT, PREPARE, COMPUTE, SAMPLE, BACK, APPLY] = KINDS.map((_, i) => i) as [number, number, number, number, number, number, number, number, number, number];

/** What kinds are drawn as; several share one. */
export const TONES = ["head", "wire", "wait", "prepare", "compute", "sample"] as const;
export type Tone = (typeof TONES)[number];
export const TONE_OF: readonly Tone[] = ["head", "head", "wire", "wire", "wait", "prepare", "compute", "sample", "wire", "head"];

export interface Bar {
  lane: number;
  kind: number;
  start: number;
  end: number;
}

/** Bars of one step, in the order of time. Seconds since `origin`. lanes: of its stages. */
export function bars(step: StepSpan, lanes: readonly number[], origin: number): Bar[] {
  const { at, schedule, encode, send, stages, back, apply } = step;
  const made: Bar[] = [];
  let now = at - origin;
  const add = (lane: number, kind: number, took: number): void => {
    if (took > 0) made.push({ lane, kind, start: now, end: now + took });
    now += Math.max(0, took);
  };
  add(0, SCHEDULE, schedule);
  add(0, ENCODE, encode);
  add(0, SEND, send);
  stages.forEach(([hop, wait, prepare, compute, sample, encoded], i) => {
    const lane = lanes[i] ?? i + 1;
    add(lane, HOP, hop);
    add(lane, WAIT, wait);
    add(lane, PREPARE, prepare);
    add(lane, COMPUTE, compute);
    add(lane, SAMPLE, sample);
    add(lane, ENCODE, encoded);
  });
  add(0, BACK, back);
  add(0, APPLY, apply);
  return made;
}

/** How long a step took, from scheduling to its result's end. */
export function duration(step: StepSpan): number {
  const { schedule, encode, send, stages, back, apply } = step;
  return schedule + encode + send + back + apply + stages.reduce((sum, parts) => sum + parts.reduce((a, b) => a + b, 0), 0);
}

/** All bars of a request as they come, in arrays that are quick to go through. */
export class Tape {
  origin = 0;
  lanes: string[] = ["head"];
  steps: StepSpan[] = [];
  recoveries: RecoverySpan[] = [];
  starts = new Float64Array(4096);
  ends = new Float64Array(4096);
  /** lane * 16 + kind */
  marks = new Uint32Array(4096);
  length = 0;
  /** Of each step: the first of its bars. */
  firsts: number[] = [];
  end = 0;
  /** The longest step. */
  longest = 0;

  add(steps: readonly StepSpan[], epochs: Record<string, string[]>): void {
    for (const step of steps) {
      if (this.steps.length === 0 && this.origin === 0) this.origin = step.at;
      const nodes = epochs[String(step.epoch)] ?? step.stages.map((_, i) => `stage ${i + 1}`);
      const lanes = nodes.map((node) => this.lane(node));
      this.firsts.push(this.length);
      this.steps.push(step);
      for (const bar of bars(step, lanes, this.origin)) this.push(bar);
      const took = duration(step);
      this.longest = Math.max(this.longest, took);
      this.end = Math.max(this.end, step.at - this.origin + took);
    }
  }

  setRecoveries(all: readonly RecoverySpan[]): void {
    this.recoveries = [...all];
    for (const { at, ended, silence } of all) {
      if (this.origin === 0) this.origin = at - silence;
      this.end = Math.max(this.end, (ended || at) - this.origin);
    }
  }

  lane(node: string): number {
    const found = this.lanes.indexOf(node, 1);
    return found > 0 ? found : this.lanes.push(node) - 1;
  }

  /** The step that is under way at this time, or the last before it; -1: none. */
  stepAt(time: number): number {
    let low = 0;
    let high = this.steps.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((this.steps[middle] as StepSpan).at - this.origin <= time) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }

  /** The first bar that may reach into what begins at `from`. */
  firstBar(from: number): number {
    const step = this.stepAt(from - this.longest);
    return step < 0 ? 0 : (this.firsts[step] ?? 0);
  }

  private push(bar: Bar): void {
    if (this.length === this.starts.length) {
      const more = this.length * 2;
      const starts = new Float64Array(more);
      const ends = new Float64Array(more);
      const marks = new Uint32Array(more);
      starts.set(this.starts);
      ends.set(this.ends);
      marks.set(this.marks);
      [this.starts, this.ends, this.marks] = [starts, ends, marks];
    }
    this.starts[this.length] = bar.start;
    this.ends[this.length] = bar.end;
    this.marks[this.length] = bar.lane * 16 + bar.kind;
    this.length++;
  }
}

/** Seconds of each tone in each column of pixels and lane: [lane][column][tone]. from: of the first column; width: of one, in seconds. */
export function density(tape: Tape, from: number, width: number, columns: number): Float32Array {
  const sums = new Float32Array(tape.lanes.length * columns * TONES.length);
  const to = from + width * columns;
  for (let i = tape.firstBar(from); i < tape.length; i++) {
    const start = tape.starts[i] as number;
    if (start > to + tape.longest) break;
    const end = Math.min(tape.ends[i] as number, to);
    if (end <= from || start >= to) continue;
    const mark = tape.marks[i] as number;
    const tone = TONES.indexOf(TONE_OF[mark & 15] as Tone);
    const row = (mark >> 4) * columns;
    let at = Math.max(start, from);
    for (let column = Math.floor((at - from) / width); at < end && column < columns; column++) {
      const next = Math.min(end, from + (column + 1) * width);
      const place = (row + column) * TONES.length + tone;
      sums[place] = (sums[place] as number) + Math.max(0, next - at);
      at = next;
    }
  }
  return sums;
}

/** How many bars are about in sight. */
export function barsIn(tape: Tape, sight: Sight): number {
  const last = tape.firsts[tape.stepAt(sight.to) + 1] ?? tape.length;
  return last - tape.firstBar(sight.from);
}

export const PARTS = ["fence", "load", "link", "refill", "resume"] as const;

/** A recovery's parts one after the other, with the silence before it was noticed. Seconds since `origin`. */
export function recoveryParts(recovery: RecoverySpan, origin: number): { name: string; start: number; end: number }[] {
  let now = recovery.at - origin;
  const parts = recovery.silence > 0 ? [{ name: "silence", start: now - recovery.silence, end: now }] : [];
  for (const name of PARTS) {
    const took = recovery.parts[name];
    if (took === undefined) continue;
    parts.push({ name, start: now, end: now + took });
    now += took;
  }
  return parts;
}

/** In words: what a screen reader says of a recovery, and the table shows. */
export function recoveryWords(recovery: RecoverySpan): string {
  const parts = PARTS.filter((name) => recovery.parts[name] !== undefined).map((name) => `${name} ${seconds(recovery.parts[name] ?? 0)}`);
  const who = recovery.node ? `${recovery.node}: ` : "";
  const pause = recovery.ended > 0 ? `paused ${seconds(recovery.ended - recovery.at)}` : "not over yet";
  const noticed = recovery.silence > 0 ? `noticed after ${seconds(recovery.silence)} of silence; ` : "";
  return `${who}${recovery.reason}; ${noticed}${pause}${parts.length ? ` (${parts.join(", ")})` : ""}; ${plural(recovery.refilled, "token")} refilled, ${recovery.kept} kept, none lost`;
}

/** What is in sight: seconds since the origin. */
export interface Sight {
  from: number;
  to: number;
}

const SHORTEST = 0.0005;

/** Zooms by a factor about a time, within what there is. */
export function zoomed(sight: Sight, factor: number, about: number, end: number): Sight {
  const width = Math.min(Math.max((sight.to - sight.from) * factor, SHORTEST), Math.max(end * 1.5, 2));
  const share = (about - sight.from) / (sight.to - sight.from);
  return held({ from: about - width * share, to: about + width * (1 - share) }, end);
}

export function moved(sight: Sight, by: number, end: number): Sight {
  return held({ from: sight.from + by, to: sight.to + by }, end);
}

/** Some of what there is stays in sight. */
export function held(sight: Sight, end: number): Sight {
  const width = sight.to - sight.from;
  const from = Math.min(Math.max(sight.from, -width * 0.5), Math.max(end - width * 0.1, 0));
  return { from, to: from + width };
}

/** Times for an axis: about `most` of them, at 1, 2 or 5 times a power of ten. */
export function ticks(sight: Sight, most: number): { step: number; at: number[] } {
  const rough = (sight.to - sight.from) / Math.max(1, most);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough) ?? power * 10;
  const at: number[] = [];
  for (let i = Math.ceil(sight.from / step); i * step <= sight.to; i++) at.push(i * step);
  return { step, at };
}
