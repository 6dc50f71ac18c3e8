import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import { ask, words } from "../api/client";
import type { ActionResult } from "../api/types";
import { Dialog } from "./dialog";
import { Failed } from "./page";
import { say } from "./say";

/** A form in a dialog that asks the operator's API for something; what went wrong is said in it. onDone: it was done. */
export function Act(props: {
  path: string;
  title: string;
  button: string;
  body: Record<string, string | number | null>;
  ready?: boolean;
  danger?: boolean;
  onClose: () => void;
  onDone?: () => void;
  children: ComponentChildren;
}) {
  const [failed, setFailed] = useState("");
  const [busy, setBusy] = useState(false);
  const go = async (): Promise<void> => {
    setBusy(true);
    try {
      const result = await ask<ActionResult>(props.path, { method: "POST", body: props.body });
      if (!result.done) return setFailed(result.message);
      say(result.message);
      props.onClose();
      props.onDone?.();
    } catch (error) {
      setFailed(words(error));
    } finally {
      setBusy(false);
    }
  };
  return (
    <Dialog title={props.title} onClose={props.onClose}>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          void go();
        }}
      >
        {props.children}
        <div role="alert">
          <Failed text={failed} />
        </div>
        <footer>
          <button type="button" onClick={props.onClose}>
            Cancel
          </button>
          <button type="submit" class={props.danger ? "main danger" : "main"} disabled={busy || props.ready === false}>
            {busy ? "…" : props.button}
          </button>
        </footer>
      </form>
    </Dialog>
  );
}
