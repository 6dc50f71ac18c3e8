import "./models.css";
import { useState } from "preact/hooks";
import { ask, words } from "../api/client";
import { operator } from "../api/live";
import type { ActionResult, ModelHere, ModelsView, PullView } from "../api/types";
import { Bar } from "../parts/bar";
import { bytes, percent, span } from "../parts/format";
import { useLoaded } from "../parts/loaded";
import { Failed, Page } from "../parts/page";
import { say } from "../parts/say";
import { Aliases } from "./aliases";
import { Load, Loaded } from "./loaded";
import { loadedAs, moving } from "./state";

export function ModelsPage() {
  const [busy, setBusy] = useState(false);
  const list = useLoaded<ModelsView>("operator/models", busy ? 1 : 10);
  const view = list.value;
  const pulls = view?.pulls ?? [];
  const models = view?.models ?? [];
  const now = view !== null && moving(view);
  if (now !== busy) setBusy(now);
  const pull = async (name: string): Promise<void> => {
    try {
      say((await ask<ActionResult>("operator/models", { method: "POST", body: { pull: name } })).message);
    } catch (error) {
      say(words(error), "bad");
    }
    list.again();
  };
  return (
    <Page title="Models" wide beside={view && <p class="soft" data-figure="memory">{bytes(view.memory)} of memory on all machines together</p>}>
      <Failed text={list.failed} />
      {view && <Loaded view={view} again={list.again} />}
      {view && <Aliases aliases={view.aliases} again={list.again} />}
      {operator.value && <Pull onPull={(name) => void pull(name)} />}
      {pulls.length > 0 && <Pulls list={pulls} />}
      <section class="card" aria-labelledby="models">
        <h2 id="models">
          On the head's machine, and in the catalogue <small data-figure="models">{models.length}</small>
        </h2>
        <div class="scroll">
          <table class="cards models">
            <thead>
              <tr>
                <th scope="col">model</th>
                <th scope="col" class="n">size</th>
                <th scope="col">fits</th>
                <th scope="col">where</th>
              </tr>
            </thead>
            <tbody>
              {models.map((model) => (
                <Model
                  key={model.reference + model.name}
                  model={model}
                  served={model.served || (view !== null && loadedAs(view, model) !== undefined)}
                  onPull={() => void pull(model.reference || model.name)}
                  onLoaded={list.again}
                />
              ))}
            </tbody>
          </table>
        </div>
      </section>
    </Page>
  );
}

function Model({ model, served, onPull, onLoaded }: { model: ModelHere; served: boolean; onPull: () => void; onLoaded: () => void }) {
  const [asked, setAsked] = useState(false);
  return (
    <tr data-model={model.name}>
      <th scope="row">
        <span class="name">{model.name}</span> {served && <span class="badge good">served</span>}
        <small>{[model.reference === model.name ? "" : model.reference, model.about].filter(Boolean).join(" · ")}</small>
      </th>
      <td class="n" data-label="size">
        {model.size > 0 ? bytes(model.size) : "–"}
      </td>
      <td data-label="fits">
        {model.fits === null ? <span class="badge">not known yet</span> : model.fits ? <span class="badge good">fits</span> : <span class="badge bad">too large</span>}
      </td>
      <td data-label="where">
        {model.here && (served || !operator.value) ? (
          "here"
        ) : model.here ? (
          <>
            here{" "}
            <button type="button" aria-label={`Load ${model.name}`} onClick={() => setAsked(true)}>
              Load…
            </button>
            {asked && <Load name={model.name} reference={model.reference || model.name} onClose={() => setAsked(false)} onDone={onLoaded} />}
          </>
        ) : operator.value ? (
          <button type="button" aria-label={`Fetch ${model.name}`} onClick={onPull}>
            Fetch
          </button>
        ) : (
          "not fetched"
        )}
      </td>
    </tr>
  );
}

function Pull({ onPull }: { onPull: (name: string) => void }) {
  const [name, setName] = useState("");
  return (
    <form
      class="row"
      onSubmit={(event) => {
        event.preventDefault();
        if (!name.trim()) return;
        onPull(name.trim());
        setName("");
      }}
    >
      <input
        class="pull-name"
        aria-label="Name of a model"
        placeholder="org/name:Q4_K_M, hf:org/name, or a name of the catalogue"
        spellcheck={false}
        value={name}
        onInput={(event) => setName(event.currentTarget.value)}
      />
      <button type="submit" class="main" disabled={!name.trim()}>
        Fetch
      </button>
    </form>
  );
}

function Pulls({ list }: { list: readonly PullView[] }) {
  return (
    <section class="card" aria-labelledby="pulls">
      <h2 id="pulls">Being fetched</h2>
      <ul class="pulls">
        {list.map((pull) => (
          <li key={`${pull.name} ${pull.began}`} data-figure="pull" data-pull={pull.name}>
            <b>{pull.name}</b>{" "}
            {pull.failed ? (
              <span class="failed-words">{pull.failed}</span>
            ) : pull.ended > 0 ? (
              <span class="soft">is here, after {span(pull.ended - pull.began)}</span>
            ) : pull.total > 0 ? (
              <>
                <Bar share={pull.done / pull.total} /> {percent(pull.done / pull.total)} of {bytes(pull.total)}
              </>
            ) : (
              <span class="soft">{pull.done > 0 ? bytes(pull.done) : "begins"}</span>
            )}
          </li>
        ))}
      </ul>
    </section>
  );
}
