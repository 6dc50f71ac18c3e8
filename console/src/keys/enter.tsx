import { useState } from "preact/hooks";
import { enterKey, locked } from "../api/key";
import { Page } from "../parts/page";

/** Asks for the API's key. */
export function EnterKey() {
  const [value, setValue] = useState("");
  const [remember, setRemember] = useState(false);
  return (
    <Page title="A key, please">
      <form
        class="card enter-key"
        autocomplete="off"
        onSubmit={(event) => {
          event.preventDefault();
          if (value.trim()) enterKey(value.trim(), remember);
        }}
      >
        <p>
          {locked.value} On the head, <code>shoal keys create NAME</code> makes one.
        </p>
        <label>
          Key
          <input
            type="password"
            value={value}
            placeholder="sk-shoal-…"
            spellcheck={false}
            autocomplete="current-password"
            onInput={(event) => setValue(event.currentTarget.value)}
          />
        </label>
        <label class="tick">
          <input type="checkbox" checked={remember} onChange={(event) => setRemember(event.currentTarget.checked)} />
          Keep it in this browser; otherwise it is forgotten with this tab
        </label>
        <button type="submit" class="main" disabled={!value.trim()}>
          Use this key
        </button>
      </form>
    </Page>
  );
}
