/** One line for what was done, which screen readers read out. */
import { signal } from "@preact/signals";

const said = signal<{ text: string; tone: Tone } | null>(null);
let timer: ReturnType<typeof setTimeout> | undefined;

/** 'heard': for those alone who do not see what has changed. */
type Tone = "" | "bad" | "heard";

export function say(text: string, tone: Tone = ""): void {
  said.value = { text, tone };
  clearTimeout(timer);
  timer = setTimeout(() => (said.value = null), tone === "bad" ? 12_000 : 5_000);
}

export function Said() {
  const shown = said.value;
  return (
    <div class="said" role="status">
      {shown && <p class={shown.tone === "heard" ? "offscreen" : shown.tone}>{shown.text}</p>}
    </div>
  );
}
