/** The conversations of this browser, the one that is open, and the answer that is under way. */
import { signal } from "@preact/signals";
import { aborted, send, words } from "../api/client";
import { messages } from "../api/sse";
import { say } from "../parts/say";
import { body, conversation, Incoming, message, titled, type Conversation, type Message } from "./conversation";
import * as kept from "./kept";

export const list = signal<Conversation[]>([]);
export const open = signal<Conversation | null>(null);
/** The conversation whose answer is under way; empty: none is. */
export const answering = signal("");
/** Counts up when something in the open conversation has changed. */
export const changed = signal(0);

let stop: AbortController | null = null;
let loading: Promise<void> | null = null;

const now = (): number => Date.now() / 1000;

export function load(): Promise<void> {
  loading ??= kept
    .all()
    .then((found) => {
      list.value = [...list.value, ...found];
    })
    .catch((error: unknown) => say(`Earlier chats cannot be read: ${words(error)}`, "bad"));
  return loading;
}

export function begin(): void {
  open.value = conversation(now(), open.value?.settings ?? list.value[0]?.settings);
  changed.value++;
}

export function choose(id: string): void {
  const found = list.value.find((each) => each.id === id);
  if (found) open.value = found;
  else if (open.value?.id !== id) begin();
  changed.value++;
}

export function current(): Conversation {
  if (open.value === null) begin();
  return open.value as Conversation;
}

/** Keeps it, and puts it first in the list. */
export function save(of: Conversation): void {
  of.updated = now();
  list.value = [of, ...list.value.filter((each) => each.id !== of.id)];
  changed.value++;
  void kept.keep(of).catch((error: unknown) => say(`The chat could not be kept: ${words(error)}`, "bad"));
}

export function rename(of: Conversation, title: string): void {
  of.title = title;
  save(of);
}

export function remove(of: Conversation): void {
  if (answering.value === of.id) halt();
  list.value = list.value.filter((each) => each.id !== of.id);
  if (open.value?.id === of.id) begin();
  void kept.remove(of.id).catch((error: unknown) => say(`The chat could not be deleted: ${words(error)}`, "bad"));
}

export function ask(content: string): void {
  const of = current();
  if (!of.title) of.title = titled(content);
  of.messages.push(message("user", content));
  void answer(of);
}

/** Another answer in place of the last one. */
export function again(): void {
  const of = current();
  if (of.messages.at(-1)?.role === "assistant") of.messages.pop();
  void answer(of);
}

/** Goes back to a question, and asks another in its place. */
export function edit(id: string, content: string): void {
  const of = current();
  const at = of.messages.findIndex((each) => each.id === id);
  if (at < 0) return;
  of.messages.splice(at);
  ask(content);
}

/** A tool's result; the answer goes on when all calls have theirs. */
export function result(call: string, content: string): void {
  const of = current();
  of.messages.push(message("tool", content, call));
  const asked = of.messages.findLast((each) => each.role === "assistant")?.calls ?? [];
  const given = new Set(of.messages.filter((each) => each.role === "tool").map((each) => each.call));
  if (asked.every(({ id }) => given.has(id))) void answer(of);
  else save(of);
}

export function halt(): void {
  stop?.abort();
}

/** Shown at most every so many milliseconds: whoever reads does not see more, and long texts take time. */
const SHOWN_EVERY = 40;

async function answer(of: Conversation): Promise<void> {
  halt();
  const own = (stop = new AbortController());
  const into: Message = message("assistant");
  let timer: ReturnType<typeof setTimeout> | null = null;
  const show = (): void => {
    timer ??= setTimeout(() => {
      timer = null;
      changed.value++;
    }, SHOWN_EVERY);
  };
  of.messages.push(into);
  answering.value = of.id;
  save(of);
  try {
    const began = performance.now() / 1000;
    const sent = body({ ...of, messages: of.messages.slice(0, -1) });
    const response = await send("v1/chat/completions", { method: "POST", body: sent, signal: own.signal });
    const incoming = new Incoming(into, began, response.headers.get("X-Request-Id") ?? "");
    for await (const { data } of messages(response)) {
      incoming.take(data, performance.now() / 1000);
      show();
    }
    if (into.error) say(`The answer failed: ${into.error}`, "bad");
    else say("The answer is complete", "heard");
  } catch (error) {
    if (aborted(error)) {
      if (into.figures) into.figures.finish = "stopped";
    } else into.error = words(error);
  } finally {
    if (timer !== null) clearTimeout(timer);
    if (stop === own) {
      stop = null;
      answering.value = "";
    }
    if (list.value.some(({ id }) => id === of.id)) save(of);
  }
}
