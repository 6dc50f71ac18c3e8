import { expect, test } from "vitest";
import type { LoadedModel, ModelHere, ModelsView, PipelineView } from "../api/types";
import { called } from "../parts/names";
import { aliasesOf, loadedAs, moving, requestsOf } from "./state";

const here = (name: string, reference = name): ModelHere => ({ name, reference, size: 1, here: true, fits: true, served: false, about: "" });
const loaded = (name: string, more: Partial<LoadedModel> = {}): LoadedModel => ({
  ...{ name, reference: name, state: "", short: false, replicas: 1, serving: 1, family: "llama", quantization: "Q4_K", context: 2048, parameters: 1, can: [] },
  ...{ precision: "auto", priority: 0, nodes: [], absent: [] },
  ...more,
});
const view = (more: Partial<ModelsView> = {}): ModelsView => ({ models: [], pulls: [], memory: 1, loaded: [], aliases: {}, loading: [], failed: {}, known: [], upstreams: [], ...more });
const pipeline = (model: string, running: number, waiting: number): PipelineView => ({
  ...{ name: `${model}/1`, model, replica: 1, state: "serving", reason: "", measured: 0, nodes: [] },
  requests: { running, waiting, slots: 8, blocks_used: 0, blocks: 1 },
});

test("a model on this machine is found among the loaded ones by its name or its reference", () => {
  const all = view({ loaded: [loaded("tiny"), loaded("SmolLM2", { reference: "org/SmolLM2:Q4_1" })] });
  expect(loadedAs(all, here("tiny"))?.name).toBe("tiny");
  expect(loadedAs(all, here("org/SmolLM2:Q4_1"))?.name).toBe("SmolLM2");
  expect(loadedAs(all, here("another name", "org/SmolLM2:Q4_1"))?.name).toBe("SmolLM2");
  expect(loadedAs(all, here("org/SmolLM2:Q8_0"))).toBeUndefined();
});

test("the page looks often while something moves", () => {
  expect(moving(view({ loaded: [loaded("a")], failed: { b: "no room" } }))).toBe(false);
  const pull = { name: "a", began: 1, done: 0, total: 0, ended: 0, failed: "" };
  expect(moving(view({ pulls: [pull] }))).toBe(true);
  expect(moving(view({ pulls: [{ ...pull, ended: 2 }] }))).toBe(false);
  expect(moving(view({ loading: ["a"] }))).toBe(true);
  expect(moving(view({ loaded: [loaded("a", { state: "1 of 2 nodes have joined" })] }))).toBe(true);
  expect(moving(view({ loaded: [loaded("a", { replicas: 2 })] }))).toBe(true);
});

test("aliases lead to a model directly and by way of others", () => {
  const aliases = { best: "gpt-4o", "gpt-4o": "b", mini: "a" };
  expect(aliasesOf(aliases, "b")).toEqual(["gpt-4o", "best"]);
  expect(aliasesOf(aliases, "a")).toEqual(["mini"]);
  expect(aliasesOf(aliases, "c")).toEqual([]);
  expect(called({ id: "best", root: "b" })).toBe("best (b)");
  expect(called({ id: "b", root: "b" })).toBe("b");
});

test("the requests of a model are those of all its copies", () => {
  expect(requestsOf([pipeline("a", 2, 1), pipeline("b", 5, 5), pipeline("a", 1, 0)], "a")).toEqual({ running: 3, waiting: 1 });
  expect(requestsOf([], "a")).toEqual({ running: 0, waiting: 0 });
});
