/** Which page is shown: #/timeline/abc. Hashes, so that the server knows a handful of files and nothing else. */
import { signal } from "@preact/signals";

export const PAGES = ["cluster", "chat", "timeline", "events", "join", "keys", "models", "connect"] as const;
export type PageName = (typeof PAGES)[number];

export interface Route {
  page: PageName;
  rest: string;
}

export function parseHash(hash: string): Route {
  const [, page = "", ...rest] = hash.replace(/^#/, "").split("/");
  let decoded = "";
  try {
    decoded = decodeURIComponent(rest.join("/"));
  } catch {
    // a broken escape names nothing
  }
  return { page: PAGES.find((known) => known === page) ?? "cluster", rest: decoded };
}

export const route = signal<Route>(typeof location === "undefined" ? { page: "cluster", rest: "" } : parseHash(location.hash));

if (typeof window !== "undefined") window.addEventListener("hashchange", () => (route.value = parseHash(location.hash)));

export function href(page: PageName, rest = ""): string {
  return rest ? `#/${page}/${encodeURIComponent(rest)}` : `#/${page}`;
}
