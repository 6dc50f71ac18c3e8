/** The cluster, as the chosen pipeline has it, and its events as they are now, from one stream that the whole page shares. */
import { computed, effect, signal } from "@preact/signals";
import { say } from "../parts/say";
import { href, route } from "../route";
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

/** The pipeline that the address of the cluster's page names, also while another page is shown; empty: the first one. */
export const chosen = signal("");
/** The one that was chosen and is no more; empty: none. */
export const gone = signal("");
/** Of `offline`. */
export const NO_MODEL = "no model is loaded";

/** Aborts when another pipeline is chosen. */
let turn = new AbortController();

effect(() => {
  if (route.value.page !== "cluster") return;
  if (route.value.rest) gone.value = "";
  chosen.value = route.value.rest;
});
chosen.subscribe(() => {
  turn.abort();
  turn = new AbortController();
});

const RETRY = [500, 1000, 2000, 4000];
const PAGE = 10_000;
const QUIET = 30_000; // the server says something more often than that

/** Until the signal aborts it. Waits for a key while the API asks for one. */
export async function follow(signal: AbortSignal): Promise<void> {
  for (let failures = 0; !signal.aborted; ) {
    const turned = turn.signal;
    const either = AbortSignal.any([signal, turned]);
    try {
      await followOnce(chosen.value, either, () => (failures = 0));
    } catch (error) {
      if (signal.aborted) return;
      if (!turned.aborted) offline.value = aborted(error) ? "nothing was heard for a while" : words(error);
      if (error instanceof ApiError && error.status === 401) {
        await unlocked(signal);
        failures = 0;
        continue;
      }
    }
    await sleep(RETRY[Math.min(failures++, RETRY.length - 1)] ?? 4000, either).catch(() => (failures = 0));
  }
}

async function followOnce(pipeline: string, signal: AbortSignal, heard: () => void): Promise<void> {
  me.value = await ask<Me>("operator/me", { signal });
  const of = `pipeline=${encodeURIComponent(pipeline)}`;
  const view = await ask<ClusterView>(`operator/cluster?${of}`, { signal }).catch((error: unknown) => {
    if (error instanceof ApiError && error.status === 404) return leave(pipeline);
    throw error;
  });
  if (view === null) return;
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
    const response = await send(`operator/stream?${of}&after=${events.latest}`, { signal: own.signal });
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
  const before = cluster.value;
  cluster.value = view;
  if (before === null) return;
  if (before.started !== view.started) return events.clear(); // another head
  if (before.pipeline === view.pipeline) return;
  const lost = !chosen.value && !view.pipelines.some(({ name }) => name === before.pipeline); // the next one is the first now
  if (lost) gone.value = before.pipeline;
  say(`${lost ? `${before.pipeline} is gone; ` : ""}${view.pipeline} is shown`, "heard");
}

/** From a pipeline that is gone to the first one. */
function leave(pipeline: string): null {
  if (!pipeline) {
    cluster.value = null;
    offline.value = NO_MODEL;
    return null;
  }
  gone.value = pipeline;
  if (route.value.page === "cluster") location.replace(href("cluster"));
  chosen.value = "";
  return null;
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
