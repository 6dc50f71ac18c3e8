/** What an operator does with a machine. Each action says what will come of it before it is done. */
import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import { ask, words } from "../api/client";
import { cluster } from "../api/live";
import type { ActionResult, MachineView, PlanView } from "../api/types";
import { coloursOf } from "../parts/colours";
import { Dialog } from "../parts/dialog";
import { percent, plural, short } from "../parts/format";
import { useLoaded } from "../parts/loaded";
import { Failed } from "../parts/page";
import { say } from "../parts/say";
import { LayerBar } from "./layer_bar";
import { segments, withGaps } from "./state";

type Asked = "drain" | "remove";

export function MachineActions({ machine }: { machine: MachineView }) {
  const [asked, setAsked] = useState<Asked | null>(null);
  const close = (): void => setAsked(null);
  return (
    <>
      <select
        class="actions"
        aria-label={`Actions for ${machine.name}`}
        value=""
        onChange={(event) => {
          setAsked(event.currentTarget.value as Asked);
          event.currentTarget.value = "";
        }}
      >
        <option value="" disabled>
          Actions
        </option>
        <option value="drain">Drain…</option>
        <option value="remove">Remove…</option>
      </select>
      {asked === "drain" && <Drain machine={machine} onClose={close} />}
      {asked === "remove" && <Remove machine={machine} onClose={close} />}
    </>
  );
}

/** A form that acts on a node; what went wrong is said in it. */
function Act(props: {
  machine: MachineView;
  title: string;
  button: string;
  body: Record<string, string>;
  ready?: boolean;
  danger?: boolean;
  onClose: () => void;
  children: ComponentChildren;
}) {
  const [failed, setFailed] = useState("");
  const [busy, setBusy] = useState(false);
  const go = async (): Promise<void> => {
    setBusy(true);
    try {
      const path = `operator/nodes/${encodeURIComponent(props.machine.name)}`;
      const result = await ask<ActionResult>(path, { method: "POST", body: props.body });
      if (!result.done) return setFailed(result.message);
      say(result.message);
      props.onClose();
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

function Drain({ machine, onClose }: { machine: MachineView; onClose: () => void }) {
  const holds = machine.end_layer > machine.first_layer || machine.experts > 0;
  const plan = useLoaded<PlanView>(holds ? `operator/preview?drain=${encodeURIComponent(machine.name)}` : null);
  return (
    <Act
      machine={machine}
      title={`Drain ${machine.name}`}
      button="Drain it"
      body={{ action: "drain" }}
      ready={!holds || (plan.value !== null && !plan.value.why)}
      onClose={onClose}
    >
      <p>{holds ? "Its part moves to other machines while streams run; then it leaves. Nothing is lost." : "It has no part in the model and leaves at once."}</p>
      <Failed text={plan.failed} />
      {holds && plan.value === null && !plan.failed && <p class="soft">Planning…</p>}
      {plan.value && <Preview plan={plan.value} />}
    </Act>
  );
}

/** Before and after of a change. */
export function Preview({ plan }: { plan: PlanView }) {
  const view = cluster.value;
  if (plan.why) return <p class="failed">It cannot be done: {plan.why}</p>;
  if (view === null) return null;
  const colours = coloursOf(view.machines);
  const after = withGaps(
    plan.stages.map((stage) => ({ node: stage.node, first: stage.first_layer, end: stage.end_layer, share: 0 })),
    view.model.layers,
  );
  const moved = Object.entries(plan.moved).filter(([, layers]) => layers > 0);
  const change = plan.predicted_now > 0 ? plan.predicted / plan.predicted_now - 1 : 0;
  return (
    <div class="preview">
      <h3>Now</h3>
      <LayerBar parts={segments(view)} total={view.model.layers} colours={colours} label="Layers now" />
      <h3>Afterwards</h3>
      <LayerBar parts={after} total={view.model.layers} colours={colours} label="Layers afterwards" />
      <table>
        <tbody>
          <tr>
            <th scope="row">predicted now</th>
            <td class="n" data-figure="predicted_now">{short(plan.predicted_now)} tokens/s</td>
          </tr>
          <tr>
            <th scope="row">predicted afterwards</th>
            <td class="n">
              <span data-figure="predicted">{short(plan.predicted)} tokens/s</span>
              {change !== 0 && ` (${change > 0 ? "+" : "−"}${percent(Math.abs(change))})`}
            </td>
          </tr>
          {moved.map(([node, layers]) => (
            <tr key={node}>
              <th scope="row">{node}</th>
              <td class="n">loads {plural(layers, "layer")}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function Remove({ machine, onClose }: { machine: MachineView; onClose: () => void }) {
  return (
    <Act machine={machine} title={`Remove ${machine.name}`} button="Remove it" body={{ action: "remove" }} danger onClose={onClose}>
      <p>
        It is cut off at once, as if its cable were pulled: streams pause while others take over its part. Drain it instead if there is
        time.
      </p>
    </Act>
  );
}
