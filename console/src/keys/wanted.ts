/** A key that is to be made, as the form has it and as the API takes it. Pure. */

export interface Wanted {
  name: string;
  role: "user" | "operator";
  rpm: number;
  tokens: number;
  concurrency: number;
  days: number;
  priority: string;
}

export const PRIORITIES = ["urgent", "normal", "flex", "batch"];
export const NEW: Wanted = { name: "", role: "user", rpm: 0, tokens: 0, concurrency: 0, days: 0, priority: "urgent" };

/** now: seconds since 1970. */
export function keyBody(wanted: Wanted, now: number): Record<string, unknown> {
  return {
    name: wanted.name.trim(),
    role: wanted.role,
    rpm: wanted.rpm,
    tokens_per_minute: wanted.tokens,
    concurrency: wanted.concurrency,
    priority: wanted.priority,
    ...(wanted.days > 0 ? { expires: Math.round(now + wanted.days * 86400) } : {}),
  };
}
