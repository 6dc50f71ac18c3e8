import { useEffect, useState } from "preact/hooks";
import { aborted, ask, words } from "../api/client";
import { key } from "../api/key";

interface Loaded<T> {
  value: T | null;
  failed: string;
  again: () => void;
}

/** What a path answers; asked again every so many seconds while the page is seen, and when `again` is called. every: 0: only then. */
export function useLoaded<T>(path: string | null, every = 0): Loaded<T> {
  const [value, setValue] = useState<T | null>(null);
  const [failed, setFailed] = useState("");
  const [round, setRound] = useState(0);
  const token = key.value;
  useEffect(() => {
    if (path === null) return undefined;
    const stop = new AbortController();
    let timer: ReturnType<typeof setTimeout> | undefined;
    const load = async (): Promise<void> => {
      try {
        if (!document.hidden || round === 0) {
          setValue(await ask<T>(path, { signal: stop.signal }));
          setFailed("");
        }
      } catch (error) {
        if (aborted(error)) return;
        setFailed(words(error));
      }
      if (every > 0 && !stop.signal.aborted) timer = setTimeout(() => void load(), every * 1000);
    };
    void load();
    return () => {
      stop.abort();
      clearTimeout(timer);
    };
  }, [path, every, round, token]);
  return { value, failed, again: () => setRound((old) => old + 1) };
}
