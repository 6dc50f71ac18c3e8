import { useEffect, useState } from "preact/hooks";
import { aborted, ask, words } from "../api/client";
import { key } from "../api/key";

export interface Loaded<T> {
  value: T | null;
  failed: string;
  again: () => void;
}

const NOTHING = { value: null, failed: "" };

/** What a path answers, and nothing of another path; asked again every so many seconds while the page is seen, and when `again` is called.
 * every: 0: only then. */
export function useLoaded<T>(path: string | null, every = 0): Loaded<T> {
  const [answer, setAnswer] = useState<{ path: string | null; value: T | null; failed: string }>({ path: null, value: null, failed: "" });
  const [round, setRound] = useState(0);
  const token = key.value;
  useEffect(() => {
    if (path === null) return undefined;
    const stop = new AbortController();
    let timer: ReturnType<typeof setTimeout> | undefined;
    const load = async (): Promise<void> => {
      try {
        if (!document.hidden || round === 0) {
          const value = await ask<T>(path, { signal: stop.signal });
          setAnswer({ path, value, failed: "" });
        }
      } catch (error) {
        if (aborted(error)) return;
        setAnswer((old) => ({ path, value: old.path === path ? old.value : null, failed: words(error) }));
      }
      if (every > 0 && !stop.signal.aborted) timer = setTimeout(() => void load(), every * 1000);
    };
    void load();
    return () => {
      stop.abort();
      clearTimeout(timer);
    };
  }, [path, every, round, token]);
  const { value, failed } = answer.path === path ? answer : NOTHING;
  return { value, failed, again: () => setRound((old) => old + 1) };
}
