import { expect, test } from "vitest";
import type { ClusterView, MachineView } from "../api/types";
import { evenness, segments, withGaps, someOf } from "./state";

test("layers that nobody holds are shown as such", () => {
  const part = (node: string, first: number, end: number) => ({ node, first, end, share: 0 });
  expect(withGaps([part("a", 2, 5), part("b", 5, 8)], 10)).toEqual([part("", 0, 2), part("a", 2, 5), part("b", 5, 8), part("", 8, 10)]);
  expect(withGaps([], 4)).toEqual([part("", 0, 4)]);
});

test("while there is no route, what machines hold is shown in the order of layers", () => {
  const machine = (name: string, first_layer: number, end_layer: number) => ({ name, first_layer, end_layer }) as MachineView;
  const view = { stages: [], machines: [machine("b", 3, 6), machine("a", 0, 3), machine("idle", 0, 0)], model: { layers: 6 } } as unknown as ClusterView;
  expect(segments(view).map(({ node, first, end }) => [node, first, end])).toEqual([
    ["a", 0, 3],
    ["b", 3, 6],
  ]);
});

test("evenness is 1 where all experts are used alike, and 0 where one takes all", () => {
  expect(evenness([5, 5, 5, 5]).even).toBeCloseTo(1);
  expect(evenness([0, 8, 0, 0])).toMatchObject({ busiest: 1, ratio: 4, even: 0 });
  expect(evenness([0, 0])).toEqual({ busiest: 0, ratio: 0, even: 0 });
});

test("few names are listed, and many are counted", () => {
  expect(someOf([])).toBe("");
  expect(someOf(["a", "b", "c", "d", "e"])).toBe("a, b, c, d, e");
  expect(someOf(["a", "b", "c", "d", "e", "f"])).toBe("a, b, c, d and 2 more");
});
