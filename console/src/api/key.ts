/** The API key that is entered in the page: kept while the tab is open, or in the browser if the user wants it. */
import { signal } from "@preact/signals";

const NAME = "shoal.key";

/** A browser may refuse storage; then what would be kept is forgotten with the page. */
export function storage(kind: "localStorage" | "sessionStorage"): Storage | null {
  try {
    return window[kind];
  } catch {
    return null;
  }
}

const kept = (kind: "localStorage" | "sessionStorage"): string => storage(kind)?.getItem(NAME) ?? "";

export const key = signal(kept("sessionStorage") || kept("localStorage"));
/** Why a key is asked for; empty: none is. */
export const locked = signal("");

export function enterKey(value: string, remember: boolean): void {
  forgetKey();
  storage(remember ? "localStorage" : "sessionStorage")?.setItem(NAME, value);
  key.value = value;
  locked.value = "";
}

export function forgetKey(): void {
  storage("sessionStorage")?.removeItem(NAME);
  storage("localStorage")?.removeItem(NAME);
  key.value = "";
}
