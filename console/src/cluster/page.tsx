import { useMemo } from "preact/hooks";
import { cluster, gone, NO_MODEL, offline } from "../api/live";
import type { Advice, ClusterView } from "../api/types";
import { Bar } from "../parts/bar";
import { coloursOf } from "../parts/colours";
import { bytes, layers, percent, seconds, short, span } from "../parts/format";
import { Figure, Page } from "../parts/page";
import { href } from "../route";
import { Experts } from "./experts";
import { LayerBar } from "./layer_bar";
import { Machines } from "./machines";
import { Pipelines } from "./pipelines";
import { segments } from "./state";

export function ClusterPage() {
  const view = cluster.value;
  const names = view?.machines.map((machine) => `${machine.number} ${machine.name}`).join("\n");
  const colours = useMemo(() => coloursOf(view?.machines ?? []), [names]);
  if (view === null)
    return (
      <Page title="Cluster">
        <Gone />
        {offline.value === NO_MODEL ? (
          <p class="soft">
            No model is loaded. <a href={href("models")}>Load one</a>
          </p>
        ) : (
          <p class="soft">{offline.value === "connecting" ? "Connecting…" : `Nothing to show: ${offline.value}. Trying again.`}</p>
        )}
      </Page>
    );
  return (
    <Page title="Cluster" wide beside={<p class="soft" data-figure="started">{view.cluster && `${view.cluster}, `}shoal {view.version}, up for {span(view.at - view.started)}</p>}>
      <Gone shown={view.pipeline} />
      {view.pipelines.length > 1 && <Pipelines view={view} />}
      <Advices title="Needs attention" list={view.attention} tone="bad" />
      {view.state !== "serving" && <p class="notice" data-figure="reason">Not serving yet ({view.state}): {view.reason || "the head says no more"}</p>}
      {view.state === "serving" && view.reason && <p class="notice" data-figure="reason">{view.reason}</p>}
      <Figures view={view} />
      <section class="card" aria-labelledby="layers">
        <h2 id="layers">
          Layers <small data-figure="model">{view.model.layers} of {view.model.name}, {bytes(view.model.weights)}</small>
        </h2>
        <LayerBar parts={segments(view)} total={view.model.layers} colours={colours} label="Where the layers are" time />
        {view.stages.length > 0 && <Stages view={view} colours={colours} />}
      </section>
      <Advices title="What would help" list={view.advice} tone="" />
      <section class="card" aria-labelledby="machines">
        <h2 id="machines">
          Machines <small data-figure="machines">{view.machines.length}</small>
        </h2>
        {view.machines.length > 0 ? (
          <Machines view={view} colours={colours} />
        ) : (
          <p class="soft">
            None has joined. <a href={href("join")}>Join a machine</a>
          </p>
        )}
      </section>
      {view.model.experts > 0 && (
        <section class="card" aria-labelledby="experts">
          <h2 id="experts">
            Experts <small data-figure="experts">{view.model.experts} in a layer</small>
          </h2>
          <Experts pipeline={view.pipeline} />
        </section>
      )}
    </Page>
  );
}

/** That what was looked at is no more. */
function Gone({ shown = "" }: { shown?: string }) {
  if (!gone.value) return null;
  return (
    <p class="notice">
      <span data-figure="gone">
        {gone.value} is gone: its model was unloaded, or has fewer copies now.{shown && ` This is ${shown}.`}
      </span>{" "}
      <button type="button" class="link" onClick={() => (gone.value = "")}>
        Close
      </button>
    </p>
  );
}

function Figures({ view }: { view: ClusterView }) {
  const { requests } = view;
  const blocks = requests.blocks > 0 ? requests.blocks_used / requests.blocks : 0;
  return (
    <dl class="figures">
      <Figure id="measured" name="tokens per second" value={short(view.measured)} note="the last 10 s" />
      <Figure
        id="predicted"
        name="predicted"
        value={view.predicted > 0 ? short(view.predicted) : "–"}
        note={view.predicted_single > 0 ? `one stream ${short(view.predicted_single)}` : "full slots"}
      />
      <Figure id="running" name="running" value={requests.running} note={`of ${requests.slots} at once`} />
      <Figure id="waiting" name="waiting" value={requests.waiting} />
      <Figure id="blocks" name="KV blocks" value={percent(blocks)} note={`${requests.blocks_used} of ${requests.blocks}`} />
      <Figure id="context" name="context" value={view.model.context} note="tokens" />
    </dl>
  );
}

function Advices({ title, list, tone }: { title: string; list: readonly Advice[]; tone: string }) {
  if (list.length === 0) return null;
  return (
    <section class={`card advice ${tone}`} aria-label={title}>
      <h2>{title}</h2>
      <ul>
        {list.map((advice) => (
          <li key={advice.kind + advice.node + advice.message} data-figure={advice.kind}>
            {advice.message}
            {advice.gain > 0 && <b class="gain"> +{percent(advice.gain)}</b>}
          </li>
        ))}
      </ul>
    </section>
  );
}

function Stages({ view, colours }: { view: ClusterView; colours: Map<string, string> }) {
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label="Stages of the route">
      <table class="stages">
        <thead>
          <tr>
            <th scope="col">stage</th>
            <th scope="col">layers</th>
            <th scope="col" class="n">way to it</th>
            <th scope="col" class="n">waits</th>
            <th scope="col" class="n">computes</th>
            <th scope="col" class="n">samples</th>
            <th scope="col" class="n">predicted</th>
            <th scope="col">of a step</th>
          </tr>
        </thead>
        <tbody>
          {view.stages.map((stage, i) => (
            <tr key={stage.node} data-stage={i}>
              <th scope="row">
                <span class="chip" style={{ "--c": colours.get(stage.node) ?? "" }} aria-hidden="true" />
                <span class="name">{stage.node}</span>
              </th>
              <td>{layers(stage.first_layer, stage.end_layer)}</td>
              <td class="n">{seconds(stage.hop)}</td>
              <td class="n">{seconds(stage.wait)}</td>
              <td class="n">{seconds(stage.compute)}</td>
              <td class="n">{seconds(stage.sample)}</td>
              <td class="n">{seconds(stage.predicted)}</td>
              <td>
                <Bar share={stage.share} /> <small>{percent(stage.share)}</small>
              </td>
            </tr>
          ))}
          <tr>
            <th scope="row">back to the head</th>
            <td />
            <td class="n">{seconds(view.last_hop)}</td>
            <td colSpan={5} />
          </tr>
        </tbody>
      </table>
    </div>
  );
}
