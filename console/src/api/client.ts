/** Requests to the API that this page came from. */
import { key, locked } from "./key";

/** The API lies one folder above the console. */
export const ROOT = typeof document === "undefined" ? "http://localhost/" : new URL("..", document.baseURI.replace(/[#?].*$/, "")).href;

export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

export interface Asked {
  method?: "GET" | "POST" | "DELETE";
  body?: unknown;
  signal?: AbortSignal;
}

/** The response, if its status is good. Throws ApiError; status 0: the server cannot be reached. */
export async function send(path: string, asked: Asked = {}): Promise<Response> {
  const headers = new Headers();
  const used = key.value;
  if (used) headers.set("Authorization", `Bearer ${used}`);
  const init: RequestInit = { method: asked.method ?? "GET", headers, cache: "no-store", credentials: "omit", referrerPolicy: "no-referrer" };
  if (asked.body !== undefined) {
    headers.set("Content-Type", "application/json");
    init.body = JSON.stringify(asked.body);
  }
  if (asked.signal) init.signal = asked.signal;
  let response: Response;
  try {
    response = await fetch(new URL(path, ROOT), init);
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new ApiError(0, "the server cannot be reached");
  }
  if (response.ok) return response;
  const message = await reason(response);
  if (response.status === 401 && used === key.value) locked.value = used ? "This key is not accepted." : "The API asks for a key.";
  throw new ApiError(response.status, message);
}

export async function ask<T>(path: string, asked: Asked = {}): Promise<T> {
  return (await (await send(path, asked)).json()) as T;
}

/** In words, from OpenAI's error object or an ActionResult. */
async function reason(response: Response): Promise<string> {
  const text = await response.text();
  try {
    const body = JSON.parse(text) as { error?: { message?: string } | string; message?: string };
    const error = typeof body.error === "string" ? body.error : body.error?.message;
    return error ?? body.message ?? `status ${response.status}`;
  } catch {
    return text.length > 0 && text.length < 200 && !text.startsWith("<") ? text : `status ${response.status}`;
  }
}

/** What to show of something that was caught. */
export function words(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

export function aborted(error: unknown): boolean {
  return error instanceof DOMException && error.name === "AbortError";
}

export function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const stop = (): void => {
      clearTimeout(timer);
      reject(new DOMException("aborted", "AbortError"));
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, ms);
    if (signal?.aborted) stop();
    else signal?.addEventListener("abort", stop, { once: true });
  });
}
