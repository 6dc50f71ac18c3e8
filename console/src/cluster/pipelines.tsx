import type { ClusterView } from "../api/types";
import { short } from "../parts/format";
import { href } from "../route";
import { someOf, stateTone } from "./state";

/** All pipelines, and which of them the page shows. */
export function Pipelines({ view }: { view: ClusterView }) {
  return (
    <nav class="card" aria-labelledby="pipelines">
      <h2 id="pipelines">
        Pipelines <small data-figure="pipelines">{view.pipelines.length}</small>
      </h2>
      <div class="scroll">
        <table class="pipelines cards">
          <thead>
            <tr>
              <th scope="col">pipeline</th>
              <th scope="col">state</th>
              <th scope="col" class="n">running</th>
              <th scope="col" class="n">waiting</th>
              <th scope="col" class="n">tokens/s</th>
              <th scope="col">machines</th>
            </tr>
          </thead>
          <tbody>
            {view.pipelines.map((pipeline) => (
              <tr key={pipeline.name} data-pipeline={pipeline.name} class={pipeline.name === view.pipeline ? "chosen" : ""}>
                <th scope="row">
                  <a class="name" href={href("cluster", pipeline.name)} aria-current={pipeline.name === view.pipeline ? "true" : undefined}>
                    {pipeline.name}
                  </a>
                </th>
                <td data-label="state">
                  <span class={`dot ${stateTone(pipeline.state)}`} aria-hidden="true" /> {pipeline.state}
                  {pipeline.reason && <small>{pipeline.reason}</small>}
                </td>
                <td class="n" data-label="running">
                  {pipeline.requests.running}
                </td>
                <td class="n" data-label="waiting">
                  {pipeline.requests.waiting}
                </td>
                <td class="n" data-label="tokens/s">
                  {short(pipeline.measured)}
                </td>
                <td data-label="machines">{someOf(pipeline.nodes) || "–"}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </nav>
  );
}
