import "./keys.css";
import { useState } from "preact/hooks";
import { ask, words } from "../api/client";
import { me, operator } from "../api/live";
import type { KeyView } from "../api/types";
import { ActionsHead } from "../parts/actions_head";
import { Dialog } from "../parts/dialog";
import { count, moment } from "../parts/format";
import { useLoaded } from "../parts/loaded";
import { Failed, Page } from "../parts/page";
import { say } from "../parts/say";
import { showMade } from "./made";
import { keyBody, NEW, PRIORITIES, type Wanted } from "./wanted";

export function KeysPage() {
  const allowed = operator.value;
  const list = useLoaded<{ keys: KeyView[] }>(allowed ? "operator/keys" : null, 10);
  const [revoked, setRevoked] = useState<KeyView | null>(null);
  if (!allowed)
    return (
      <Page title="Keys">
        <p class="notice">{me.value ? "Keys are for operators: this one has the role of a user." : "Connecting…"}</p>
      </Page>
    );
  const keys = list.value?.keys ?? [];
  return (
    <Page title="Keys" wide>
      <Create
        first={keys.length === 0 && list.value !== null}
        onMade={(key) => {
          showMade(key);
          list.again();
        }}
      />
      <section class="card" aria-labelledby="keys">
        <h2 id="keys">
          Keys <small data-figure="keys">{keys.length}</small>
        </h2>
        <Failed text={list.failed} />
        {keys.length === 0 ? (
          <p class="soft">There are none. Where the API listens on this machine alone, it needs none.</p>
        ) : (
          <Table keys={keys} onRevoke={setRevoked} />
        )}
      </section>
      {revoked && <Revoke key={revoked.id} of={revoked} onClose={() => setRevoked(null)} onDone={list.again} />}
    </Page>
  );
}

function Create({ first, onMade }: { first: boolean; onMade: (key: KeyView) => void }) {
  const [wanted, setWanted] = useState<Wanted>(NEW);
  const [failed, setFailed] = useState("");
  const set = (some: Partial<Wanted>): void => setWanted({ ...wanted, ...some });
  const make = async (): Promise<void> => {
    try {
      const made = await ask<KeyView>("operator/keys", { method: "POST", body: keyBody(wanted, Date.now() / 1000) });
      setFailed("");
      setWanted(NEW);
      onMade(made);
    } catch (error) {
      setFailed(words(error));
    }
  };
  const number = (label: string, name: "rpm" | "tokens" | "concurrency" | "days", none: string) => (
    <label>
      {label}
      <input
        type="number"
        min={0}
        placeholder={none}
        value={wanted[name] || ""}
        onInput={(event) => set({ [name]: Math.max(0, event.currentTarget.valueAsNumber || 0) })}
      />
    </label>
  );
  return (
    <form
      class="card"
      aria-labelledby="create"
      onSubmit={(event) => {
        event.preventDefault();
        void make();
      }}
    >
      <h2 id="create">Create a key</h2>
      {first && <p class="notice">This is the first: from then on the API asks everybody for a key, and this page, too. Make it an operator's.</p>}
      <div class="fields">
        <label>
          Name
          <input value={wanted.name} maxLength={100} autocomplete="off" placeholder="its user or purpose" onInput={(event) => set({ name: event.currentTarget.value })} />
        </label>
        <label>
          Role
          <select value={wanted.role} onChange={(event) => set({ role: event.currentTarget.value as Wanted["role"] })}>
            <option value="user">user: asks the model</option>
            <option value="operator">operator: manages the cluster, too</option>
          </select>
        </label>
        {number("Requests a minute", "rpm", "no limit")}
        {number("Tokens a minute", "tokens", "no limit")}
        {number("Requests at once", "concurrency", "no limit")}
        {number("Expires after days", "days", "never")}
        <label>
          Highest class
          <select value={wanted.priority} onChange={(event) => set({ priority: event.currentTarget.value })}>
            {PRIORITIES.map((name) => (
              <option key={name}>{name}</option>
            ))}
          </select>
        </label>
      </div>
      <div role="alert">
        <Failed text={failed} />
      </div>
      <div>
        <button type="submit" class="main" disabled={!wanted.name.trim()}>
          Create
        </button>
      </div>
    </form>
  );
}

function Table({ keys, onRevoke }: { keys: readonly KeyView[]; onRevoke: (key: KeyView) => void }) {
  return (
    <div class="scroll">
      <table class="cards keys">
        <thead>
          <tr>
            <th scope="col">key</th>
            <th scope="col">state</th>
            <th scope="col">role</th>
            <th scope="col" class="n">requests</th>
            <th scope="col" class="n">prompt tokens</th>
            <th scope="col" class="n">tokens</th>
            <th scope="col">last used</th>
            <th scope="col">limits</th>
            <ActionsHead />
          </tr>
        </thead>
        <tbody>
          {keys.map((key) => (
            <tr key={key.id} data-key={key.id}>
              <th scope="row">
                <span class="name">{key.name}</span>
                <small>{key.id}</small>
              </th>
              <td data-label="state">
                <span class={`badge ${key.state === "good" ? "good" : "bad"}`}>{key.state}</span>
              </td>
              <td data-label="role">{key.role}</td>
              <td data-label="requests" class="n">
                {count(key.requests)}
              </td>
              <td data-label="prompt tokens" class="n">
                {count(key.prompt_tokens)}
              </td>
              <td data-label="tokens" class="n">
                {count(key.completion_tokens)}
              </td>
              <td data-label="last used">{key.last_used ? moment(key.last_used) : "never"}</td>
              <td data-label="limits">{limits(key).join(", ") || "none"}</td>
              <td data-label="">
                {key.state === "good" && (
                  <button type="button" aria-label={`Revoke ${key.name}`} onClick={() => onRevoke(key)}>
                    Revoke…
                  </button>
                )}
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function limits(key: KeyView): string[] {
  const all = [];
  if (key.rpm) all.push(`${count(key.rpm)} requests/min`);
  if (key.tokens_per_minute) all.push(`${count(key.tokens_per_minute)} tokens/min`);
  if (key.concurrency) all.push(`${key.concurrency} at once`);
  if (key.priority !== "urgent") all.push(key.priority);
  if (key.expires) all.push(`until ${moment(key.expires)}`);
  return all;
}

function Revoke({ of, onClose, onDone }: { of: KeyView; onClose: () => void; onDone: () => void }) {
  const [failed, setFailed] = useState("");
  const go = async (): Promise<void> => {
    try {
      await ask(`operator/keys/${encodeURIComponent(of.id)}`, { method: "DELETE" });
      say(`The key of ${of.name} is revoked`);
      onDone();
      onClose();
    } catch (error) {
      setFailed(words(error));
    }
  };
  return (
    <Dialog title={`Revoke the key of ${of.name}?`} onClose={onClose}>
      <p>It stops working within a second, for good.</p>
      <Failed text={failed} />
      <footer>
        <button type="button" onClick={onClose}>
          Cancel
        </button>
        <button type="button" class="main danger" onClick={() => void go()}>
          Revoke it
        </button>
      </footer>
    </Dialog>
  );
}
