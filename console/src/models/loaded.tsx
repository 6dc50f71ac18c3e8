import { useState } from "preact/hooks";
import { cluster, operator } from "../api/live";
import type { LoadedModel, ModelsView } from "../api/types";
import { Act } from "../parts/act";
import { ActionsHead } from "../parts/actions_head";
import { count, plural, short } from "../parts/format";
import { href } from "../route";
import { aliasesOf, requestsOf } from "./state";

/** The models that are served or about to be. */
export function Loaded({ view, again }: { view: ModelsView; again: () => void }) {
  return (
    <section class="card" aria-labelledby="loaded">
      <h2 id="loaded">
        Loaded <small data-figure="loaded">{view.loaded.length}</small>
      </h2>
      {view.loaded.length === 0 ? (
        <p class="soft">No model is loaded.</p>
      ) : (
        <div class="scroll">
          <table class="cards models">
            <thead>
              <tr>
                <th scope="col">model</th>
                <th scope="col">state</th>
                <th scope="col">copies</th>
                <th scope="col" class="n">context</th>
                <th scope="col">quantised</th>
                <th scope="col">can</th>
                <th scope="col">aliases</th>
                {operator.value && <ActionsHead />}
              </tr>
            </thead>
            <tbody>
              {view.loaded.map((model) => (
                <Row key={model.name} model={model} aliases={aliasesOf(view.aliases, model.name)} again={again} />
              ))}
            </tbody>
          </table>
        </div>
      )}
      {(view.loading.length > 0 || Object.keys(view.failed).length > 0) && (
        <ul class="pulls" aria-label="Being loaded">
          {view.loading.map((name) => (
            <li key={name} data-figure="loading">
              <b>{name}</b> <span class="soft">is being fetched and read</span>
            </li>
          ))}
          {Object.entries(view.failed).map(([name, why]) => (
            <li key={name} data-figure="not loaded">
              <b>{name}</b> <span class="failed-words">{why}</span>
            </li>
          ))}
        </ul>
      )}
    </section>
  );
}

function Row({ model, aliases, again }: { model: LoadedModel; aliases: string[]; again: () => void }) {
  const [asked, setAsked] = useState<"" | "copies" | "unload">("");
  const close = (): void => setAsked("");
  const first = cluster.value?.pipelines.find((pipeline) => pipeline.model === model.name)?.name;
  const about = [model.reference === model.name ? "" : model.reference, model.family, `${short(model.parameters)} parameters`];
  return (
    <tr data-loaded={model.name}>
      <th scope="row">
        {first ? (
          <a class="name" href={href("cluster", first)}>
            {model.name}
          </a>
        ) : (
          <span class="name">{model.name}</span>
        )}
        <small>{about.filter(Boolean).join(" · ")}</small>
      </th>
      <td data-label="state">
        <span class={`dot ${model.short ? "bad" : model.state ? "busy" : "good"}`} aria-hidden="true" /> {model.state || "serving"}
      </td>
      <td data-label="copies">
        {model.serving} of {model.replicas}
      </td>
      <td class="n" data-label="context">
        {count(model.context)}
      </td>
      <td data-label="quantised">{model.quantization || "–"}</td>
      <td data-label="can">{model.can.join(", ") || "–"}</td>
      <td data-label="aliases">{aliases.join(", ") || "–"}</td>
      {operator.value && (
        <td data-label="" class="acts">
          <span class="row">
            <button type="button" aria-label={`Copies of ${model.name}`} onClick={() => setAsked("copies")}>
              Copies…
            </button>
            <button type="button" aria-label={`Unload ${model.name}`} onClick={() => setAsked("unload")}>
              Unload…
            </button>
          </span>
          {asked === "copies" && <Load name={model.name} reference={model.reference} copies={model.replicas} onClose={close} onDone={again} />}
          {asked === "unload" && <Unload name={model.name} onClose={close} onDone={again} />}
        </td>
      )}
    </tr>
  );
}

function Unload({ name, onClose, onDone }: { name: string; onClose: () => void; onDone: () => void }) {
  const { running, waiting } = requestsOf(cluster.value?.pipelines ?? [], name);
  const waits = waiting > 0 ? ` and ${plural(waiting, "waits", "wait")}` : "";
  return (
    <Act path="operator/models" title={`Unload ${name}`} button="Unload it" body={{ unload: name }} danger onClose={onClose} onDone={onDone}>
      <p data-figure="requests">
        {running + waiting > 0 ? `${plural(running, "request runs", "requests run")}${waits}: they end with an error.` : "No request runs."}
      </p>
      <p>Its memory on the machines is free afterwards. Its files stay.</p>
    </Act>
  );
}

/** copies: of a model that is loaded already. */
export function Load(props: { name: string; reference: string; copies?: number; onClose: () => void; onDone: () => void }) {
  const [copies, setCopies] = useState<number | null>(props.copies ?? null);
  const already = props.copies !== undefined;
  return (
    <Act
      path="operator/models"
      title={already ? `Copies of ${props.name}` : `Load ${props.name}`}
      button={already ? "Have so many" : "Load it"}
      body={{ load: props.reference, replicas: copies }}
      ready={!already || (copies !== null && copies !== props.copies)}
      onClose={props.onClose}
      onDone={props.onDone}
    >
      <label>
        Copies
        <input
          type="number"
          min={1}
          max={64}
          step={1}
          placeholder="as many as last time"
          defaultValue={props.copies?.toString() ?? ""}
          onInput={(event) => {
            const value = event.currentTarget.valueAsNumber;
            setCopies(Number.isNaN(value) ? null : value);
          }}
        />
      </label>
      <p class="soft">Each copy runs on machines of its own.{already && " Requests of a copy that goes go on at the others."}</p>
    </Act>
  );
}
