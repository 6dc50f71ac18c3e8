import type { LoadedModel, ModelHere, ModelsView, PipelineView } from "../api/types";

/** A model on the head's machine among those that are loaded. */
export function loadedAs({ loaded }: ModelsView, model: ModelHere): LoadedModel | undefined {
  return loaded.find(({ name, reference }) => name === model.name || reference === model.name || reference === model.reference);
}

/** Whether something changes by itself, so that it is worth while to look again soon. */
export function moving(view: ModelsView): boolean {
  return view.pulls.some((pull) => pull.ended === 0) || view.loading.length > 0 || view.loaded.some((model) => model.state || model.serving < model.replicas);
}

/** The aliases that lead to a model, also by way of others. */
export function aliasesOf(aliases: Record<string, string>, model: string): string[] {
  const direct = Object.keys(aliases).filter((alias) => aliases[alias] === model);
  return direct.flatMap((alias) => [alias, ...aliasesOf(aliases, alias)]);
}

/** Requests of all copies of a model. */
export function requestsOf(pipelines: readonly PipelineView[], model: string): { running: number; waiting: number } {
  const sum = { running: 0, waiting: 0 };
  for (const { requests } of pipelines.filter((pipeline) => pipeline.model === model)) {
    sum.running += requests.running;
    sum.waiting += requests.waiting;
  }
  return sum;
}
