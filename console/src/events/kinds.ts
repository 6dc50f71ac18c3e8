import type { ClusterEvent } from "../api/types";

/** All kinds, in the order of src/shoal/observed/event.py. */
export const KINDS = [
  "joined",
  "refused",
  "suspected",
  "heard",
  "left",
  "lost",
  "failed",
  "fenced",
  "placed",
  "loaded",
  "serving",
  "refilled",
  "resumed",
  "resplit",
  "given up",
  "capped",
  "renamed",
  "draining",
  "short",
  "slow",
  "recovered",
  "degraded",
  "preempted",
  "rejected",
  "cache",
  "fetched",
  "scaled",
  "away",
  "back",
  "fault",
] as const;

/** Kinds that somebody should look at: WARNINGS there. */
export const WARNINGS: ReadonlySet<string> = new Set([
  "refused",
  "suspected",
  "lost",
  "failed",
  "fenced",
  "given up",
  "short",
  "slow",
  "degraded",
  "rejected",
  "away",
  "fault",
]);

const GOOD: ReadonlySet<string> = new Set(["joined", "heard", "serving", "resumed", "back"]);

export function eventTone(kind: string): string {
  return WARNINGS.has(kind) ? "bad" : GOOD.has(kind) ? "good" : "";
}

export interface Filter {
  /** '': all kinds; 'warnings': those of WARNINGS; otherwise a kind. */
  kind: string;
  /** '': of all nodes, and of none. */
  node: string;
  text: string;
}

/** Latest first. */
export function filtered(events: readonly ClusterEvent[], filter: Filter): ClusterEvent[] {
  const text = filter.text.trim().toLowerCase();
  const kept: ClusterEvent[] = [];
  for (let i = events.length - 1; i >= 0; i--) {
    const event = events[i] as ClusterEvent;
    if (filter.kind === "warnings" ? !WARNINGS.has(event.kind) : filter.kind !== "" && event.kind !== filter.kind) continue;
    if (filter.node !== "" && event.node !== filter.node) continue;
    if (text && !event.message.toLowerCase().includes(text) && !event.node.toLowerCase().includes(text)) continue;
    kept.push(event);
  }
  return kept;
}
