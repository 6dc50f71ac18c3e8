/** The cluster and its events as they are now, from one stream that the whole page shares. */
import { computed, signal } from "@preact/signals";
import { aborted, ApiError, ask, send, sleep, words } from "./client";
import { EventLog } from "./event_log";
import { key, locked } from "./key";
import { messages } from "./sse";
import type { ClusterEvent, ClusterView, EventPage, Me } from "./types";

export const me = signal<Me | null>(null);
export const cluster = signal<ClusterView | null>(null);
/** Why there is nothing live; empty: there is. */
export const offline = signal("connecting");
export const events = new EventLog();
/** Counts up when `events` has changed. */
export const eventsChanged = signal(0);
export const operator = computed(() => me.value?.role === "operator");

const RETRY = [500, 1000, 2000, 4000];
const PAGE = 10_000;
const QUIET = 30_000; // the server says something more often than that

/** Until the signal aborts it. Waits for a key while the API asks for one. */
export async function follow(signal: AbortSignal): Promise<void> {
  for (let failures = 0; !signal.aborted; ) {
    try {
      await followOnce(signal, () => (failures = 0));
    } catch (error) {
      if (signal.aborted) return;
      offline.value = aborted(error) ? "nothing was heard for a while" : words(error);
      if (error instanceof ApiError && error.status === 401) {
        await unlocked(signal);
        failures = 0;
        continue;
      }
    }
    await sleep(RETRY[Math.min(failures++, RETRY.length - 1)] ?? 4000, signal).catch(() => undefined);
  }
}

async function followOnce(signal: AbortSignal, heard: () => void): Promise<void> {
  me.value = await ask<Me>("operator/me", { signal });
  const view = await ask<ClusterView>("operator/cluster", { signal });
  show(view);
  const page = await ask<EventPage>(`operator/events?after=${events.latest}&limit=${PAGE}`, { signal });
  if (page.latest < events.latest) events.clear(); // another head, which counts anew
  events.add(page.events);
  eventsChanged.value++;
  const own = new AbortController();
  const stop = (): void => own.abort();
  signal.addEventListener("abort", stop, { once: true });
  let quiet = setTimeout(stop, QUIET);
  try {
    const response = await send(`operator/stream?after=${events.latest}`, { signal: own.signal });
    offline.value = "";
    locked.value = "";
    heard();
    for await (const { event, data } of messages(response)) {
      clearTimeout(quiet);
      quiet = setTimeout(stop, QUIET);
      if (event === "cluster") show(JSON.parse(data) as ClusterView);
      else if (event === "event") addSoon(JSON.parse(data) as ClusterEvent);
    }
    offline.value = "the server ended the stream";
  } finally {
    clearTimeout(quiet);
    signal.removeEventListener("abort", stop);
    own.abort();
  }
}

function show(view: ClusterView): void {
  if (cluster.value !== null && cluster.value.started !== view.started) events.clear(); // another head
  cluster.value = view;
}

let waiting: ClusterEvent[] = [];

/** Many events in one frame are shown by one change. */
function addSoon(event: ClusterEvent): void {
  if (waiting.push(event) > 1) return;
  setTimeout(() => {
    events.add(waiting);
    waiting = [];
    eventsChanged.value++;
  }, 100);
}

function unlocked(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const before = key.value;
    const done = (): void => {
      dispose();
      resolve();
    };
    const dispose = key.subscribe((value) => {
      if (value !== before) queueMicrotask(done);
    });
    signal.addEventListener("abort", done, { once: true });
  });
}
