import "./timeline.css";
import { useSignal } from "@preact/signals";
import { useEffect, useMemo } from "preact/hooks";
import type { RequestView } from "../api/types";
import { moment, plural, seconds, short, time } from "../parts/format";
import { useLoaded } from "../parts/loaded";
import { Failed, Figure, Page } from "../parts/page";
import { href, route } from "../route";
import { Chart } from "./chart";
import { recoveryWords } from "./layout";
import { StepTable } from "./step_table";
import { Watched } from "./watch";

export function TimelinePage() {
  const id = route.value.rest;
  const list = useLoaded<{ requests: RequestView[] }>("operator/requests", 2);
  const requests = list.value?.requests ?? [];
  return (
    <Page title="Timeline" wide>
      <Failed text={list.failed} />
      {id ? <One key={id} id={id} /> : <p class="soft">Every token's way over every hop. Choose a request.</p>}
      <section class="card" aria-labelledby="requests">
        <h2 id="requests">
          Requests <small data-figure="requests">the latest {requests.length}</small>
        </h2>
        {requests.length === 0 ? (
          <p class="soft">
            None yet. <a href={href("chat")}>Ask something</a>
          </p>
        ) : (
          <Requests list={requests} chosen={id} />
        )}
      </section>
    </Page>
  );
}

function Requests({ list, chosen }: { list: readonly RequestView[]; chosen: string }) {
  return (
    <div class="scroll requests" tabIndex={0} role="region" aria-label="Requests">
      <table>
        <thead>
          <tr>
            <th scope="col">began</th>
            <th scope="col">request</th>
            <th scope="col">key</th>
            <th scope="col">state</th>
            <th scope="col" class="n">prompt</th>
            <th scope="col" class="n">tokens</th>
            <th scope="col" class="n">first token</th>
            <th scope="col" class="n">tokens/s</th>
          </tr>
        </thead>
        <tbody>
          {list.map((request) => (
            <tr key={request.id} data-request={request.id} class={request.id === chosen ? "chosen" : ""}>
              <td>{time(request.began)}</td>
              <td class="id">
                <a href={href("timeline", request.id)} aria-current={request.id === chosen ? "true" : undefined}>
                  {request.id}
                </a>
              </td>
              <td>{request.key || "–"}</td>
              <td>{request.state}</td>
              <td class="n">{request.prompt_tokens}</td>
              <td class="n">{request.generated}</td>
              <td class="n">{request.first > 0 ? seconds(request.first - request.began) : "–"}</td>
              <td class="n">{request.tokens_per_second > 0 ? short(request.tokens_per_second) : "–"}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function One({ id }: { id: string }) {
  const of = useMemo(() => new Watched(id), [id]);
  useEffect(() => () => of.stop(), [of]);
  const chosen = useSignal(-1);
  void of.changed.value;
  const request = of.request.value;
  return (
    <section class="card one" aria-label={`Timeline of ${id}`}>
      <Failed text={of.failed.value} />
      {request && (
        <dl class="figures">
          <Figure id="state" name={`began ${moment(request.began)}`} value={request.state} note={request.reason} />
          <Figure id="generated" name="tokens" value={request.generated} note={`prompt ${request.prompt_tokens}, ${request.cached_tokens} cached`} />
          <Figure id="first" name="first token after" value={request.first > 0 ? seconds(request.first - request.began) : "–"} />
          <Figure id="rate" name="tokens per second" value={request.tokens_per_second > 0 ? short(request.tokens_per_second) : "–"} />
          <Figure id="steps" name="steps" value={of.tape.steps.length} note={of.lost > 0 ? `${of.lost} older ones are not kept` : undefined} />
        </dl>
      )}
      <Chart of={of} chosen={chosen} />
      {of.tape.recoveries.length > 0 && (
        <div class="recoveries">
          <h2 data-figure="interruptions">{plural(of.tape.recoveries.length, "interruption")}</h2>
          <ul>
            {of.tape.recoveries.map((recovery) => (
              <li key={recovery.at} data-figure="recovery">{recoveryWords(recovery)}</li>
            ))}
          </ul>
        </div>
      )}
      <StepTable of={of} chosen={chosen} />
    </section>
  );
}
