import { useState } from "preact/hooks";
import { say } from "./say";

/** The clipboard needs a secure context, which a head on a LAN is not: there the old way is taken. */
export async function copy(text: string): Promise<boolean> {
  if (window.isSecureContext) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // not allowed here: the old way
    }
  }
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "offscreen";
  const focused = document.activeElement;
  (document.querySelector("dialog[open]") ?? document.body).append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (focused instanceof HTMLElement) focused.focus();
  return done;
}

export function Copy({ text, what = "" }: { text: string; what?: string }) {
  const [done, setDone] = useState(false);
  const go = async (): Promise<void> => {
    if (await copy(text)) {
      say(what ? `Copied: ${what}` : "Copied");
      setDone(true);
      setTimeout(() => setDone(false), 1500);
    } else say("The browser does not let this page copy: select the text and copy it yourself", "bad");
  };
  return (
    <button type="button" class="small" onClick={() => void go()} aria-label={what ? `Copy ${what}` : "Copy"}>
      {done ? "Copied" : "Copy"}
    </button>
  );
}

/** Lines to paste, with a button. */
export function Lines({ text, what }: { text: string; what: string }) {
  return (
    <div class="lines">
      <pre tabIndex={0} aria-label={what}>
        {text}
      </pre>
      <Copy text={text} what={what} />
    </div>
  );
}
