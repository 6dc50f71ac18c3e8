/** A request's timeline, read on while it grows. */
import { signal } from "@preact/signals";
import { aborted, ApiError, ask, sleep, words } from "../api/client";
import type { RequestView, Timeline } from "../api/types";
import { Tape } from "./layout";

const PAUSE = 250; // ms between two questions: what a screen shows in between would not be seen
const WAIT = 1; // seconds for which the server waits for steps; an interruption is told without any

export class Watched {
  readonly tape = new Tape();
  readonly request = signal<RequestView | null>(null);
  readonly failed = signal("");
  /** Counts up with what is new. */
  readonly changed = signal(0);
  lost = 0;
  epochs: Record<string, string[]> = {};
  private readonly stopped = new AbortController();

  constructor(readonly id: string) {
    void this.read();
  }

  stop(): void {
    this.stopped.abort();
  }

  get live(): boolean {
    const state = this.request.value?.state;
    return state === "running" || state === "waiting";
  }

  private async read(): Promise<void> {
    const signal = this.stopped.signal;
    let after = 0;
    for (;;) {
      try {
        const wait = this.request.value === null ? 0 : WAIT;
        const path = `operator/requests/${encodeURIComponent(this.id)}/timeline?after=${after}&wait=${wait}`;
        const page = await ask<Timeline>(path, { signal });
        after = page.next;
        this.lost = Math.max(this.lost, page.lost);
        Object.assign(this.epochs, page.epochs);
        this.tape.add(page.steps, this.epochs);
        this.tape.setRecoveries(page.recoveries);
        this.request.value = page.request;
        this.failed.value = "";
        this.changed.value++;
        if (page.request.ended > 0 && page.steps.length === 0) return;
        await sleep(PAUSE, signal);
      } catch (error) {
        if (aborted(error)) return;
        this.failed.value = words(error);
        if (error instanceof ApiError && error.status === 404) return;
        await sleep(2000, signal).catch(() => undefined);
        if (signal.aborted) return;
      }
    }
  }
}
