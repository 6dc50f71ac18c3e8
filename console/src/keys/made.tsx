/** A key that was just made. It is shown until its maker has it, whatever becomes of the page meanwhile: with the first key the API begins to
 * ask for one. */
import { signal } from "@preact/signals";
import { enterKey, key } from "../api/key";
import type { KeyView } from "../api/types";
import { Lines } from "../parts/copy";
import { Dialog } from "../parts/dialog";

const made = signal<KeyView | null>(null);

/** Where this page had no key, it uses the new one. */
export function showMade(view: KeyView): void {
  made.value = view;
  if (key.value === "" && view.token) enterKey(view.token, false);
}

export function MadeKey() {
  const shown = made.value;
  if (shown === null) return null;
  const close = (): void => {
    made.value = null;
  };
  return (
    <Dialog title={`The key of ${shown.name}`} onClose={close}>
      <p>It is kept nowhere and not shown again.</p>
      <Lines text={shown.token ?? ""} what="the key" />
      <footer>
        <button type="button" class="main" onClick={close}>
          I have it
        </button>
      </footer>
    </Dialog>
  );
}
