import { expect, test, vi } from "vitest";
import { eventTone, filtered, KINDS, WARNINGS } from "./kinds";

vi.mock("uplot", () => ({ default: class {} }));
vi.stubGlobal("window", { matchMedia: () => ({ matches: false, addEventListener: () => undefined }) });
vi.stubGlobal("document", { documentElement: { dataset: {} }, baseURI: "http://localhost/console/" });
const { summary, withBreaks } = await import("./day");

const event = (number: number, kind: string, node: string, message: string) => ({ number, at: number, kind, node, message, figures: {} });
const EVENTS = [event(1, "joined", "a", "a joined"), event(2, "lost", "b", "b is gone"), event(3, "slow", "a", "a is slow"), event(4, "serving", "", "The route SERVES")];
const numbers = (kind = "", node = "", text = "") => filtered(EVENTS, { kind, node, text }).map(({ number }) => number);

test("events are filtered by kind, severity, machine and words, latest first", () => {
  expect(numbers()).toEqual([4, 3, 2, 1]);
  expect(numbers("lost")).toEqual([2]);
  expect(numbers("warnings")).toEqual([3, 2]);
  expect(numbers("", "a")).toEqual([3, 1]);
  expect(numbers("", "", " serves ")).toEqual([4]);
  expect(numbers("joined", "b")).toEqual([]);
});

test("every warning is a kind", () => {
  for (const kind of WARNINGS) expect(KINDS).toContain(kind);
  expect(eventTone("lost")).toBe("bad");
  expect(eventTone("placed")).toBe("");
});

test("a summary passes over minutes without a figure", () => {
  expect(summary([null, 3, 7, null])).toEqual({ now: 7, most: 7 });
  expect(summary([null])).toEqual({ now: null, most: null });
});

test("a line is broken where the head was away", () => {
  expect(withBreaks([0, 60, 600, 660], [1, 2, 3, 4])).toEqual([
    [0, 60, 120, 600, 660],
    [1, 2, null, 3, 4],
  ]);
});
