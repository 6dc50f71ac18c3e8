import type { ClusterView, MachineView } from "../api/types";

/** 'good', 'busy', 'bad' or '' of a cluster's or a node's state. */
export function stateTone(state: string): string {
  if (state === "serving") return "good";
  if (state === "failed" || state === "suspected" || state === "held off") return "bad";
  if (state === "idle" || state === "") return "";
  return "busy";
}

/** The first few of many names. */
export function someOf(names: readonly string[], most = 4): string {
  return names.length > most + 1 ? `${names.slice(0, most).join(", ")} and ${names.length - most} more` : names.join(", ");
}

/** A part of the bar of layers. share: of a step's time; 0: not known. */
export interface Segment {
  node: string;
  first: number;
  end: number;
  share: number;
}

/** Where the layers are: by the route, and while there is none by what machines hold. Gaps are of nobody: node ''. */
export function segments(view: ClusterView): Segment[] {
  const held: Segment[] = view.stages.length
    ? view.stages.map((s) => ({ node: s.node, first: s.first_layer, end: s.end_layer, share: s.share }))
    : view.machines
        .filter((m) => m.end_layer > m.first_layer)
        .map((m) => ({ node: m.name, first: m.first_layer, end: m.end_layer, share: 0 }))
        .sort((a, b) => a.first - b.first);
  return withGaps(held, view.model.layers);
}

export function withGaps(held: readonly Segment[], layers: number): Segment[] {
  const all: Segment[] = [];
  let at = 0;
  for (const segment of held) {
    if (segment.first > at) all.push({ node: "", first: at, end: segment.first, share: 0 });
    all.push(segment);
    at = Math.max(at, segment.end);
  }
  if (at < layers) all.push({ node: "", first: at, end: layers, share: 0 });
  return all;
}

/** What is shown of a machine's memory: shares of what it may take. */
export function memoryShares(machine: MachineView): { weights: number; resident: number } {
  const most = Math.max(machine.memory, 1);
  return { weights: machine.weights / most, resident: machine.resident / most };
}

/** How far a node's progress is, 0 to 1; null: not known. */
export function progressShare(machine: MachineView): number | null {
  const progress = machine.progress;
  return progress && progress.total > 0 ? Math.min(1, progress.done / progress.total) : null;
}

/** Expert rows of a layer as shares of the mean: 1 where all are used alike. */
export function evenness(rows: readonly number[]): { busiest: number; ratio: number; even: number } {
  const total = rows.reduce((sum, value) => sum + value, 0);
  if (total === 0 || rows.length < 2) return { busiest: 0, ratio: 0, even: 0 };
  let busiest = 0;
  let entropy = 0;
  rows.forEach((value, i) => {
    if (value > (rows[busiest] ?? 0)) busiest = i;
    if (value > 0) entropy -= (value / total) * Math.log(value / total);
  });
  return { busiest, ratio: ((rows[busiest] ?? 0) * rows.length) / total, even: entropy / Math.log(rows.length) };
}
