import "./join.css";
import { useEffect, useState } from "preact/hooks";
import { ask, words } from "../api/client";
import { cluster, events, eventsChanged, operator } from "../api/live";
import type { Invitation } from "../api/types";
import { MachineActions } from "../cluster/actions";
import { stateTone } from "../cluster/state";
import { ActionsHead } from "../parts/actions_head";
import { Lines } from "../parts/copy";
import { bytes, countdown, moment } from "../parts/format";
import { Failed, Page } from "../parts/page";
import { say } from "../parts/say";
import { installLine, joinLine, SERVICE, SYSTEMS, type System } from "./lines";
import { Qr } from "./qr";

export function JoinPage() {
  void eventsChanged.value;
  const refusals = events.items.filter((event) => event.kind === "refused").slice(-20).reverse();
  return (
    <Page title="Join a machine">
      {operator.value ? <Invite /> : <p class="notice">A machine is let in by somebody with the role of an operator: on the head, <code>shoal keys create NAME --role operator</code> makes such a key.</p>}
      <section class="card" aria-labelledby="members">
        <h2 id="members">
          Machines <small data-figure="machines">{cluster.value?.machines.length ?? 0}</small>
        </h2>
        <Members />
      </section>
      {refusals.length > 0 && (
        <section class="card" aria-labelledby="refusals">
          <h2 id="refusals">Not let in</h2>
          <ul class="refusals">
            {refusals.map((event) => (
              <li key={event.number} data-figure="refused">
                <time class="soft">{moment(event.at)}</time> {event.message}
              </li>
            ))}
          </ul>
        </section>
      )}
    </Page>
  );
}

function Invite() {
  const [made, setMade] = useState<Invitation | null>(null);
  const [failed, setFailed] = useState("");
  const [system, setSystem] = useState<System>("Linux");
  const left = useLeft(made?.expires ?? 0);
  const over = made !== null && made.expires > 0 && left <= 0;
  const invite = async (): Promise<void> => {
    try {
      setMade(await ask<Invitation>("operator/invitation", { method: "POST" }));
      setFailed("");
      say("A line to join with is ready");
    } catch (error) {
      setFailed(words(error));
    }
  };
  return (
    <section class="card" aria-labelledby="invite">
      <h2 id="invite">Invite</h2>
      <Failed text={failed} />
      {made === null || over ? (
        <>
          <p>{over ? "The code has expired; nobody can use it any more." : "A code lets one machine in, which then keeps a certificate."}</p>
          <div>
            <button type="button" class="main" onClick={() => void invite()}>
              {over ? "Make another code" : "Make a code"}
            </button>
          </div>
        </>
      ) : (
        <div class="invitation">
          <div class="steps">
            <fieldset class="tabs">
              <legend class="offscreen">System of the machine</legend>
              {SYSTEMS.map((name) => (
                <label key={name}>
                  <input type="radio" name="system" checked={name === system} onChange={() => setSystem(name)} />
                  <span>{name}</span>
                </label>
              ))}
            </fieldset>
            <p>Run this on the machine that is to join:</p>
            <Lines text={joinLine(system, made.command)} what={`the line for ${system}`} />
            {made.code && (
              <p data-figure="code">
                Code <b class="the-code">{made.code}</b>
                {made.expires > 0 && (
                  <>
                    , good for <span class="left" role="timer">{countdown(left)}</span>
                  </>
                )}
                , for one machine.{" "}
                <button type="button" class="link" onClick={() => void invite()}>
                  Another
                </button>
              </p>
            )}
            <details>
              <summary>If shoal is not installed there</summary>
              <Lines text={installLine(system)} what="the line that installs shoal" />
              <p class="soft" data-figure="version">From a wheel of this version ({cluster.value?.version}).</p>
            </details>
            {system === "Linux" && (
              <details>
                <summary>To keep it running</summary>
                <Lines text={SERVICE} what="the line that keeps it running" />
              </details>
            )}
          </div>
          <Qr text={made.command} label={`QR code of the line ${made.command}`} />
        </div>
      )}
    </section>
  );
}

function Members() {
  const machines = cluster.value?.machines ?? [];
  if (machines.length === 0) return <p class="soft">None yet.</p>;
  return (
    <div class="scroll">
      <table class="cards">
        <thead>
          <tr>
            <th scope="col">machine</th>
            <th scope="col">address</th>
            <th scope="col">state</th>
            <th scope="col" class="n">memory</th>
            {operator.value && <ActionsHead />}
          </tr>
        </thead>
        <tbody>
          {machines.map((machine) => (
            <tr key={machine.number}>
              <th scope="row">{machine.name}</th>
              <td data-label="address">{machine.address}</td>
              <td data-label="state">
                <span class={`dot ${stateTone(machine.state)}`} aria-hidden="true" /> {machine.state}
              </td>
              <td data-label="memory" class="n">
                {bytes(machine.memory)}
              </td>
              {operator.value && (
                <td data-label="">
                  <MachineActions machine={machine} />
                </td>
              )}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

/** Seconds until a moment, counted down once a second. */
function useLeft(until: number): number {
  const [now, setNow] = useState(Date.now() / 1000);
  useEffect(() => {
    if (until === 0) return undefined;
    setNow(Date.now() / 1000);
    const timer = setInterval(() => setNow(Date.now() / 1000), 1000);
    return () => clearInterval(timer);
  }, [until]);
  return until - now;
}
