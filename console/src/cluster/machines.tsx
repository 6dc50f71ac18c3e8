import { operator } from "../api/live";
import type { ClusterView, MachineView } from "../api/types";
import { ActionsHead } from "../parts/actions_head";
import { Bar } from "../parts/bar";
import { bytes, layers, percent, plural, seconds, span } from "../parts/format";
import { MachineActions } from "./actions";
import { memoryShares, progressShare, stateTone } from "./state";

/** A row for each machine; on a phone, a card. */
export function Machines({ view, colours }: { view: ClusterView; colours: Map<string, string> }) {
  return (
    <div class="scroll">
      <table class="machines cards">
        <thead>
          <tr>
            <th scope="col">machine</th>
            <th scope="col">state</th>
            <th scope="col">holds</th>
            <th scope="col">memory</th>
            <th scope="col" class="n">threads</th>
            <th scope="col" class="n">reads</th>
            <th scope="col" class="n">link to the head</th>
            <th scope="col">busy</th>
            {operator.value && <ActionsHead />}
          </tr>
        </thead>
        <tbody>
          {view.machines.map((machine) => (
            <Machine key={machine.number} machine={machine} colour={colours.get(machine.name) ?? ""} />
          ))}
        </tbody>
      </table>
    </div>
  );
}

function Machine({ machine, colour }: { machine: MachineView; colour: string }) {
  const shares = memoryShares(machine);
  const done = progressShare(machine);
  return (
    <tr data-machine={machine.number}>
      <th scope="row">
        <span class="chip" style={{ "--c": colour }} aria-hidden="true" />
        <span class="name">{machine.name}</span>
        <small>
          {machine.machine || machine.address}
          {machine.role === "experts" && ", experts"}
        </small>
      </th>
      <td data-label="state">
        <span class={`dot ${stateTone(machine.state)}`} aria-hidden="true" /> {machine.state}
        {machine.slower > 1.05 && <small class="warn">{machine.slower.toFixed(1)} × slower than it measured</small>}
        {machine.silence > 2 && <small class="warn">silent for {span(machine.silence)}</small>}
        {machine.progress && (
          <small class="progress">
            {machine.progress.words}
            {done !== null && (
              <>
                <Bar share={done} /> {percent(done)} of {bytes(machine.progress.total)}
              </>
            )}
          </small>
        )}
        {!machine.progress && machine.words && machine.state !== "serving" && machine.state !== "idle" && <small>{machine.words}</small>}
      </td>
      <td data-label="holds">
        {machine.end_layer > machine.first_layer && layers(machine.first_layer, machine.end_layer)}
        {machine.experts > 0 && <small>{plural(machine.experts, "expert")}</small>}
        {machine.end_layer <= machine.first_layer && machine.experts === 0 && <span class="soft">nothing</span>}
      </td>
      <td data-label="memory">
        <Bar share={shares.weights} second={shares.resident} tone={shares.resident > 1 ? "warn" : ""} />
        <small>
          {bytes(machine.weights)} of {bytes(machine.memory)}
        </small>
        <small>
          process {bytes(machine.resident)}
        </small>
      </td>
      <td class="n" data-label="threads">
        {machine.threads}
        {machine.runtime && <small>{machine.runtime}</small>}
      </td>
      <td class="n" data-label="reads">
        {machine.bytes_per_second > 0 ? `${bytes(machine.bytes_per_second)}/s` : "–"}
        {machine.disk > 0 && <small>disk {bytes(machine.disk)}/s</small>}
      </td>
      <td class="n" data-label="link to the head">
        {machine.round_trip > 0 ? seconds(machine.round_trip) : "–"}
        {machine.link_bytes_per_second > 0 && <small>{bytes(machine.link_bytes_per_second)}/s</small>}
      </td>
      <td data-label="busy">
        <Bar share={machine.busy} />
        <small>{percent(machine.busy)}</small>
        {machine.queue > 0 && <small>{plural(machine.queue, "frame")} waiting</small>}
      </td>
      {operator.value && (
        <td data-label="" class="acts">
          <MachineActions machine={machine} />
        </td>
      )}
    </tr>
  );
}
