import { useState } from "preact/hooks";
import { aborted, ROOT, send, words } from "../api/client";
import { key } from "../api/key";
import { me } from "../api/live";
import { messages } from "../api/sse";
import { Lines } from "../parts/copy";
import { called, useNames } from "../parts/names";
import { Failed, Page } from "../parts/page";
import { CLIENTS, type Server } from "./clients";

const HIDDEN = "sk-shoal-…";

export function ConnectPage() {
  const [name, setName] = useState("curl");
  const [show, setShow] = useState(false);
  const [wanted, setWanted] = useState("");
  const names = useNames().value?.data ?? [];
  const needed = me.value?.needs_key === true;
  const server: Server = {
    url: ROOT.replace(/\/$/, ""),
    model: names.find(({ id }) => id === wanted)?.id ?? names[0]?.id ?? "MODEL",
    key: needed ? (show && key.value) || HIDDEN : "",
  };
  const client = CLIENTS.find((each) => each.name === name) ?? CLIENTS[0];
  return (
    <Page title="Connect">
      <section class="card" aria-label="Address">
        <p>OpenAI's API is at</p>
        <Lines text={`${server.url}/v1`} what="the base URL" />
        <p class="soft" data-figure="url">
          Anthropic's and Ollama's are at {server.url}. {needed ? "A key is needed." : "No key is needed; clients that want one take any."}
        </p>
      </section>
      <section class="card" aria-labelledby="client">
        <h2 id="client">A client</h2>
        <div class="row">
          <select class="client" aria-label="Client" value={name} onChange={(event) => setName(event.currentTarget.value)}>
            {CLIENTS.map((each) => (
              <option key={each.name}>{each.name}</option>
            ))}
          </select>
          {names.length > 1 && (
            <select class="client" aria-label="Model" value={server.model} onChange={(event) => setWanted(event.currentTarget.value)}>
              {names.map((card) => (
                <option key={card.id} value={card.id}>
                  {called(card)}
                </option>
              ))}
            </select>
          )}
          {needed && key.value && (
            <label class="tick">
              <input type="checkbox" checked={show} onChange={(event) => setShow(event.currentTarget.checked)} />
              with my key
            </label>
          )}
        </div>
        {client && <Lines text={client.text(server)} what={`the lines for ${client.name}`} />}
      </section>
      <Try model={server.model} />
    </Page>
  );
}

/** A request that works from here. */
function Try({ model }: { model: string }) {
  const [text, setText] = useState("");
  const [failed, setFailed] = useState("");
  const [busy, setBusy] = useState(false);
  const go = async (): Promise<void> => {
    setBusy(true);
    setText("");
    setFailed("");
    try {
      const body = { model, stream: true, max_tokens: 32, messages: [{ role: "user", content: "Hello" }] };
      const response = await send("v1/chat/completions", { method: "POST", body });
      for await (const { data } of messages(response)) setText((old) => `${old}data: ${data}\n\n`);
    } catch (error) {
      if (!aborted(error)) setFailed(words(error));
    } finally {
      setBusy(false);
    }
  };
  return (
    <section class="card" aria-labelledby="try">
      <h2 id="try">Try it from here</h2>
      <p class="soft">The same request as curl's, with at most 32 tokens.</p>
      <div>
        <button type="button" disabled={busy} onClick={() => void go()}>
          {busy ? "…" : "Send"}
        </button>
      </div>
      <Failed text={failed} />
      {text && (
        <pre class="answer-events" tabIndex={0} aria-label="What came">
          {text}
        </pre>
      )}
    </section>
  );
}
