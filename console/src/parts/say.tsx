/** One quiet line for what was done, read out by screen readers. */
import { signal } from "@preact/signals";

const said = signal<{ text: string; bad: boolean } | null>(null);
let timer: ReturnType<typeof setTimeout> | undefined;

export function say(text: string, bad = false): void {
  said.value = { text, bad };
  clearTimeout(timer);
  timer = setTimeout(() => (said.value = null), bad ? 12_000 : 5_000);
}

export function Said() {
  const shown = said.value;
  return (
    <div class="said" role="status">
      {shown && <p class={shown.bad ? "bad" : ""}>{shown.text}</p>}
    </div>
  );
}
