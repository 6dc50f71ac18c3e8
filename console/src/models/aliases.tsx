import { useState } from "preact/hooks";
import { ask, words } from "../api/client";
import { operator } from "../api/live";
import type { ActionResult } from "../api/types";
import { useNames } from "../parts/names";
import { Failed } from "../parts/page";
import { say } from "../parts/say";

/** Other names for models. again: is called when they have changed. */
export function Aliases({ aliases, again }: { aliases: Record<string, string>; again: () => void }) {
  const names = useNames();
  const [failed, setFailed] = useState("");
  const set = async (alias: string, to: string | null): Promise<boolean> => {
    try {
      say((await ask<ActionResult>("operator/models", { method: "POST", body: { alias, to } })).message);
      setFailed("");
      return true;
    } catch (error) {
      setFailed(words(error));
      return false;
    } finally {
      again();
      names.again();
    }
  };
  const all = Object.entries(aliases);
  if (all.length === 0 && !operator.value) return null;
  return (
    <section class="card" aria-labelledby="aliases">
      <h2 id="aliases">
        Aliases <small data-figure="aliases">{all.length}</small>
      </h2>
      <p class="soft">Other names by which requests may ask for a model, like those that a client has built in.</p>
      {all.length > 0 && (
        <ul class="pulls">
          {all.map(([alias, target]) => (
            <li key={alias} data-alias={alias}>
              <span data-figure="alias">
                <b>{alias}</b> <span class="soft">stands for</span> {target}
              </span>{" "}
              {operator.value && (
                <button type="button" class="quiet" aria-label={`Remove ${alias}`} onClick={() => void set(alias, null)}>
                  Remove
                </button>
              )}
            </li>
          ))}
        </ul>
      )}
      {operator.value && <Add names={(names.value?.data ?? []).map(({ id }) => id)} onAdd={set} />}
      <div role="alert">
        <Failed text={failed} />
      </div>
    </section>
  );
}

/** names: of models and aliases. onAdd: answers whether it was done. */
function Add({ names, onAdd }: { names: readonly string[]; onAdd: (alias: string, to: string) => Promise<boolean> }) {
  const [alias, setAlias] = useState("");
  const [wanted, setWanted] = useState("");
  const to = names.find((name) => name === wanted) ?? names[0] ?? "";
  return (
    <form
      class="row"
      onSubmit={(event) => {
        event.preventDefault();
        if (alias.trim()) void onAdd(alias.trim(), to).then((done) => done && setAlias(""));
      }}
    >
      <input class="alias-name" aria-label="Alias" placeholder="gpt-4o-mini" maxLength={256} spellcheck={false} value={alias} onInput={(event) => setAlias(event.currentTarget.value)} />
      <span class="soft">stands for</span>
      <select class="alias-name" aria-label="Stands for" value={to} onChange={(event) => setWanted(event.currentTarget.value)}>
        {names.map((name) => (
          <option key={name}>{name}</option>
        ))}
      </select>
      <button type="submit" disabled={!alias.trim() || !to}>
        Add
      </button>
    </form>
  );
}
