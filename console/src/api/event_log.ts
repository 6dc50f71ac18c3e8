import type { ClusterEvent } from "./types";

/** The latest events, oldest first. */
export class EventLog {
  items: ClusterEvent[] = [];

  constructor(private readonly most = 10_000) {}

  /** The number of the newest; 0: there is none. */
  get latest(): number {
    return this.items.at(-1)?.number ?? 0;
  }

  /** Those that are not known yet. */
  add(events: readonly ClusterEvent[]): void {
    for (const event of events) if (event.number > this.latest) this.items.push(event);
    if (this.items.length > this.most) this.items = this.items.slice(-this.most);
  }

  clear(): void {
    this.items = [];
  }
}
