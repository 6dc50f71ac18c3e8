/** A conversation, what is asked of the API for it, and what its answers' chunks make of it. Pure. */

export interface Settings {
  /** A model or an alias; empty: whichever the server has first. */
  model: string;
  system: string;
  temperature: number | null;
  top_p: number | null;
  top_k: number | null;
  min_p: number | null;
  max_tokens: number | null;
  seed: number | null;
  repetition_penalty: number | null;
  effort: string;
  logprobs: boolean;
  /** Functions as OpenAI's API takes them, as JSON text; empty: none. */
  tools: string;
}

export const PLAIN: Settings = {
  model: "",
  system: "",
  temperature: null,
  top_p: null,
  top_k: null,
  min_p: null,
  max_tokens: null,
  seed: null,
  repetition_penalty: null,
  effort: "",
  logprobs: false,
  tools: "",
};

export interface Call {
  id: string;
  name: string;
  arguments: string;
}

/** A token, its log-probability, and the most probable ones in its place. */
export interface Scored {
  token: string;
  logprob: number;
  top: { token: string; logprob: number }[];
}

/** first: seconds to the first token; rate: tokens per second after it. */
export interface Figures {
  first: number;
  rate: number;
  prompt: number;
  cached: number;
  generated: number;
  finish: string;
  request: string;
}

export interface Message {
  id: string;
  role: "user" | "assistant" | "tool";
  content: string;
  reasoning: string;
  calls: Call[];
  scored: Scored[];
  figures: Figures | null;
  error: string;
  /** Of a tool's result: the call that it answers. */
  call: string;
}

export interface Conversation {
  id: string;
  title: string;
  created: number;
  updated: number;
  settings: Settings;
  messages: Message[];
}

/** Works where crypto.randomUUID does not: on a page without TLS. */
function newId(): string {
  const random = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function message(role: Message["role"], content = "", call = ""): Message {
  return { id: newId(), role, content, reasoning: "", calls: [], scored: [], figures: null, error: "", call };
}

export function conversation(now: number, settings: Settings = PLAIN): Conversation {
  return { id: newId(), title: "", created: now, updated: now, settings: { ...settings }, messages: [] };
}

/** The beginning of the first question. */
export function titled(content: string): string {
  const line = content.trim().split("\n")[0] ?? "";
  return line.length > 60 ? `${line.slice(0, 57)}…` : line || "New chat";
}

/** Throws with words for the user if it is no list of tools. */
export function parsedTools(text: string): unknown[] {
  if (!text.trim()) return [];
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new Error(`The tools are not JSON: ${(error as Error).message}`);
  }
  const list = Array.isArray(value) ? value : [value];
  return list.map((tool: unknown) =>
    typeof tool === "object" && tool !== null && "name" in tool && !("type" in tool && "function" in tool) ? { type: "function", function: tool } : tool,
  );
}

/** The body of a request for the next answer. Settings that are not set are left to the server. */
export function body(of: Conversation): Record<string, unknown> {
  const { settings } = of;
  const messages: Record<string, unknown>[] = [];
  if (settings.system.trim()) messages.push({ role: "system", content: settings.system });
  for (const each of of.messages) {
    if (each.role === "user") messages.push({ role: "user", content: each.content });
    else if (each.role === "tool") messages.push({ role: "tool", tool_call_id: each.call, content: each.content });
    else if (each.content || each.calls.length) {
      const asked: Record<string, unknown> = { role: "assistant", content: each.content };
      if (each.reasoning) asked["reasoning_content"] = each.reasoning;
      if (each.calls.length) asked["tool_calls"] = each.calls.map(({ id, name, arguments: given }) => ({ id, type: "function", function: { name, arguments: given } }));
      messages.push(asked);
    }
  }
  const made: Record<string, unknown> = { messages, stream: true, stream_options: { include_usage: true } };
  if (settings.model) made["model"] = settings.model; // chats that earlier versions kept have none
  for (const name of ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed", "repetition_penalty"] as const)
    if (settings[name] !== null) made[name] = settings[name];
  if (settings.effort) made["reasoning_effort"] = settings.effort;
  if (settings.logprobs) Object.assign(made, { logprobs: true, top_logprobs: 5 });
  const tools = parsedTools(settings.tools);
  if (tools.length) made["tools"] = tools;
  return made;
}

interface Chunk {
  choices?: {
    delta?: { content?: string | null; reasoning_content?: string | null; tool_calls?: { index: number; id?: string; function?: { name?: string; arguments?: string } }[] };
    logprobs?: { content?: { token: string; logprob: number; top_logprobs?: { token: string; logprob: number }[] }[] | null } | null;
    finish_reason?: string | null;
  }[];
  usage?: { prompt_tokens: number; completion_tokens: number; prompt_tokens_details?: { cached_tokens?: number } | null } | null;
  error?: { message?: string };
}

/** An answer under way. now: seconds of any clock. */
export class Incoming {
  private first = 0;
  private last = 0;
  private chunks = 0;
  private finish = "";
  private usage: Chunk["usage"] = null;

  constructor(
    readonly message: Message,
    private readonly began: number,
    private readonly request: string,
  ) {}

  take(data: string, now: number): void {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data) as Chunk;
    if (chunk.error) this.message.error = chunk.error.message ?? "the answer failed";
    if (chunk.usage) this.usage = chunk.usage;
    for (const choice of chunk.choices ?? []) {
      const delta = choice.delta ?? {};
      if (delta.content || delta.reasoning_content || delta.tool_calls) {
        this.chunks++;
        if (this.first === 0) this.first = now;
        this.last = now;
      }
      this.message.content += delta.content ?? "";
      this.message.reasoning += delta.reasoning_content ?? "";
      for (const part of delta.tool_calls ?? []) {
        const call = (this.message.calls[part.index] ??= { id: "", name: "", arguments: "" });
        call.id ||= part.id ?? "";
        call.name += part.function?.name ?? "";
        call.arguments += part.function?.arguments ?? "";
      }
      for (const { token, logprob, top_logprobs } of choice.logprobs?.content ?? [])
        this.message.scored.push({ token, logprob, top: (top_logprobs ?? []).map((top) => ({ token: top.token, logprob: top.logprob })) });
      if (choice.finish_reason) this.finish = choice.finish_reason;
    }
    this.message.figures = this.figures();
  }

  /** Where the usage has not come, because the answer was stopped, chunks stand for tokens. */
  private figures(): Figures {
    const generated = this.usage?.completion_tokens ?? this.chunks;
    const took = this.last - this.first;
    return {
      first: this.first > 0 ? this.first - this.began : 0,
      rate: took > 0 && generated > 1 ? (generated - 1) / took : 0,
      prompt: this.usage?.prompt_tokens ?? 0,
      cached: this.usage?.prompt_tokens_details?.cached_tokens ?? 0,
      generated,
      finish: this.finish,
      request: this.request,
    };
  }
}

/** As Markdown, to keep or to pass on. */
export function exported(of: Conversation): string {
  const parts = [`# ${of.title || "Chat"}`];
  if (of.settings.system.trim()) parts.push(`**System**\n\n${of.settings.system}`);
  for (const each of of.messages) {
    const who = each.role === "user" ? "You" : each.role === "tool" ? "Result of a tool" : "Answer";
    const calls = each.calls.map((call) => "```json\n" + JSON.stringify({ name: call.name, arguments: call.arguments }) + "\n```");
    parts.push([`**${who}**`, each.content, ...calls].filter(Boolean).join("\n\n"));
  }
  return `${parts.join("\n\n")}\n`;
}

/** 0 for a token that was certain, 1 for one of probability e⁻⁵ or less. */
export function surprise(logprob: number): number {
  return Math.min(1, Math.max(0, -logprob / 5));
}
