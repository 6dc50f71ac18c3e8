/** What an operator does with a machine. Each action says what will come of it before it is done. */
import { useState } from "preact/hooks";
import { cluster } from "../api/live";
import type { ClusterView, MachineView, PlanView } from "../api/types";
import { Act } from "../parts/act";
import { coloursOf } from "../parts/colours";
import { percent, plural, short } from "../parts/format";
import { useLoaded, type Loaded } from "../parts/loaded";
import { Failed } from "../parts/page";
import { useSettled } from "../parts/settled";
import { LayerBar } from "./layer_bar";
import { segments, withGaps } from "./state";

const TYPING = 300; // milliseconds without a key, after which a figure is taken as meant

type Asked = "drain" | "remove" | "rename" | "cap";

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
        <option value="rename">Rename…</option>
        <option value="cap">Limit memory…</option>
      </select>
      {asked === "drain" && <Drain machine={machine} onClose={close} />}
      {asked === "remove" && <Remove machine={machine} onClose={close} />}
      {asked === "rename" && <Rename machine={machine} onClose={close} />}
      {asked === "cap" && <Cap machine={machine} onClose={close} />}
    </>
  );
}

const pathOf = (machine: MachineView): string => `operator/nodes/${encodeURIComponent(machine.name)}`;

/** The pipeline that a change of a machine is planned for: the first that it has a part in; null: there is none. */
function touched(machine: MachineView): string | null {
  const view = cluster.value;
  const first = view?.pipelines.find(({ nodes }) => nodes.includes(machine.name))?.name;
  if (first !== undefined || view === null) return first ?? null;
  return machine.end_layer > machine.first_layer || machine.experts > 0 ? view.pipeline : null;
}

const holds = (machine: MachineView): boolean => touched(machine) !== null;

/** What would come of an action; nothing is asked for a machine without a part in the model. */
function usePlan(machine: MachineView, action: Record<string, string>): Loaded<PlanView> {
  return useLoaded<PlanView>(holds(machine) ? `operator/preview?${new URLSearchParams({ node: machine.name, ...action }).toString()}` : null);
}

function Drain({ machine, onClose }: { machine: MachineView; onClose: () => void }) {
  const plan = usePlan(machine, { action: "drain" });
  const part = holds(machine);
  return (
    <Act
      path={pathOf(machine)}
      title={`Drain ${machine.name}`}
      button="Drain it"
      body={{ action: "drain" }}
      ready={!part || (plan.value !== null && !plan.value.why)}
      onClose={onClose}
    >
      <p>{part ? "Its part moves to other machines while streams run; then it leaves. Nothing is lost." : "It has no part in the model and leaves at once."}</p>
      {part && <Planned of={touched(machine)} plan={plan} />}
    </Act>
  );
}

/** of: the pipeline. lack: what is so where there is no plan. */
function Planned({ of, plan, lack = "It cannot be done" }: { of: string | null; plan: Loaded<PlanView>; lack?: string }) {
  const shown = cluster.value;
  const other = useLoaded<ClusterView>(of === null || of === shown?.pipeline ? null : `operator/cluster?pipeline=${encodeURIComponent(of)}`);
  const view = other.value ?? (of === shown?.pipeline ? shown : null);
  if (plan.failed) return <Failed text={plan.failed} />;
  if (plan.value === null) return <p class="soft">Planning…</p>;
  if (plan.value.why) return <p class="failed" data-figure="why">{`${lack}: ${plan.value.why}`}</p>;
  if (view === null) return <Failed text={other.failed} />;
  return <Preview view={view} plan={plan.value} />;
}

/** Before and after of a change. */
function Preview({ view, plan }: { view: ClusterView; plan: PlanView }) {
  const colours = coloursOf(view.machines);
  const after = withGaps(
    plan.stages.map((stage) => ({ node: stage.node, first: stage.first_layer, end: stage.end_layer, share: 0 })),
    view.model.layers,
  );
  const moved = Object.entries(plan.moved).filter(([, layers]) => layers > 0);
  const change = plan.predicted_now > 0 ? plan.predicted / plan.predicted_now - 1 : 0;
  return (
    <div class="preview">
      {view.pipelines.length > 1 && <p class="soft" data-figure="pipeline">Of {view.pipeline}:</p>}
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
  const plan = usePlan(machine, { action: "remove" });
  return (
    <Act path={pathOf(machine)} title={`Remove ${machine.name}`} button="Remove it" body={{ action: "remove" }} danger onClose={onClose}>
      <p>
        It is cut off at once, as if its cable were pulled: streams pause while others take over its part. Drain it instead if there is
        time.
      </p>
      {holds(machine) && <Planned of={touched(machine)} plan={plan} lack="Afterwards nobody serves the model" />}
    </Act>
  );
}

function Rename({ machine, onClose }: { machine: MachineView; onClose: () => void }) {
  const [name, setName] = useState(machine.name);
  const ready = name.trim() !== "" && name.trim() !== machine.name;
  return (
    <Act path={pathOf(machine)} title={`Rename ${machine.name}`} button="Rename it" body={{ action: "rename", name: name.trim() }} ready={ready} onClose={onClose}>
      <label>
        New name
        <input value={name} maxLength={200} spellcheck={false} onInput={(event) => setName(event.currentTarget.value)} />
      </label>
    </Act>
  );
}

function Cap({ machine, onClose }: { machine: MachineView; onClose: () => void }) {
  const [memory, setMemory] = useState("");
  const limit = useSettled(memory.trim(), TYPING);
  const plan = usePlan(machine, limit ? { action: "cap", memory: limit } : { action: "cap" });
  return (
    <Act path={pathOf(machine)} title={`Limit the memory of ${machine.name}`} button="Set the limit" body={{ action: "cap", memory: memory.trim() || null }} onClose={onClose}>
      <label>
        Most memory for weights and KV blocks
        <input value={memory} maxLength={40} placeholder="8GiB; empty: all that it offers" spellcheck={false} onInput={(event) => setMemory(event.currentTarget.value)} />
      </label>
      <p class="soft">What no longer fits moves to other machines.</p>
      {holds(machine) && <Planned of={touched(machine)} plan={plan} />}
    </Act>
  );
}
