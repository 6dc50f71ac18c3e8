import { useState } from "preact/hooks";
import { Copy } from "../parts/copy";
import { plural, seconds, short } from "../parts/format";
import { Failed } from "../parts/page";
import { href } from "../route";
import * as chats from "./chats";
import type { Call, Message } from "./conversation";
import { Markdown } from "./markdown";
import { TokenMap } from "./tokens";

export function Shown({ message, last, busy, results }: { message: Message; last: boolean; busy: boolean; results: ReadonlySet<string> }) {
  if (message.role === "user") return <Question message={message} busy={busy} />;
  if (message.role === "tool") return <Result message={message} />;
  return <Answer message={message} last={last} busy={busy} results={results} />;
}

function Question({ message, busy }: { message: Message; busy: boolean }) {
  const [draft, setDraft] = useState<string | null>(null);
  return (
    <article class="message question" aria-label="You">
      {draft === null ? (
        <>
          <p class="plain">{message.content}</p>
          <div class="under">
            <button type="button" class="quiet" disabled={busy} onClick={() => setDraft(message.content)}>
              Edit
            </button>
            <Copy text={message.content} />
          </div>
        </>
      ) : (
        <form
          onSubmit={(event) => {
            event.preventDefault();
            if (draft.trim()) chats.edit(message.id, draft);
          }}
        >
          <textarea
            aria-label="Your message"
            rows={Math.min(12, draft.split("\n").length + 1)}
            value={draft}
            ref={(area) => area?.focus()}
            onInput={(event) => setDraft(event.currentTarget.value)}
            onKeyDown={(event) => event.key === "Escape" && setDraft(null)}
          />
          <div class="under">
            <button type="submit" class="main" disabled={!draft.trim()}>
              Send again
            </button>
            <button type="button" onClick={() => setDraft(null)}>
              Cancel
            </button>
            <span class="soft">What came after it is given up.</span>
          </div>
        </form>
      )}
    </article>
  );
}

function Answer({ message, last, busy, results }: { message: Message; last: boolean; busy: boolean; results: ReadonlySet<string> }) {
  const [map, setMap] = useState(false);
  const coming = last && busy;
  const nothing = !message.content && !message.reasoning && message.calls.length === 0;
  return (
    <article class="message answer" aria-label="Answer" aria-busy={coming}>
      {message.reasoning && (
        <details class="reasoning" open={coming && !message.content}>
          <summary>Reasoning</summary>
          <Markdown text={message.reasoning} />
        </details>
      )}
      {map && message.scored.length > 0 ? <TokenMap scored={message.scored} /> : message.content && <Markdown text={message.content} />}
      {message.calls.map((call, i) => (
        <ToolCall key={i} call={call} open={last && !busy && !results.has(call.id)} />
      ))}
      {coming && nothing && <p class="soft waiting">Waiting for the first token…</p>}
      <Failed text={message.error} />
      {!coming && (
        <div class="under">
          {message.content && <Copy text={message.content} what="the answer" />}
          {last && (
            <button type="button" class="quiet" onClick={chats.again}>
              Regenerate
            </button>
          )}
          {message.scored.length > 0 && (
            <button type="button" class="quiet" aria-pressed={map} onClick={() => setMap(!map)}>
              Probabilities
            </button>
          )}
          <AnswerFigures message={message} />
        </div>
      )}
    </article>
  );
}

function AnswerFigures({ message }: { message: Message }) {
  const figures = message.figures;
  if (figures === null) return null;
  const parts = [plural(figures.generated, "token")];
  if (figures.rate > 0) parts.push(`${short(figures.rate)} tokens/s`);
  if (figures.first > 0) parts.push(`first after ${seconds(figures.first)}`);
  if (figures.prompt > 0) parts.push(`prompt ${figures.prompt}${figures.cached ? `, ${figures.cached} of it cached` : ""}`);
  if (figures.finish === "length") parts.push("cut at the limit");
  if (figures.finish === "stopped") parts.push("stopped");
  return (
    <p class="soft answer-figures" data-figure="usage">
      {parts.join(" · ")}
      {figures.request && (
        <>
          {" · "}
          <a href={href("timeline", figures.request)}>timeline</a>
        </>
      )}
    </p>
  );
}

function ToolCall({ call, open }: { call: Call; open: boolean }) {
  const [text, setText] = useState("");
  return (
    <details class="call" open>
      <summary>
        Calls <code>{call.name}</code>
      </summary>
      <pre tabIndex={0} aria-label="Arguments">
        {pretty(call.arguments)}
      </pre>
      {open && (
        <form
          onSubmit={(event) => {
            event.preventDefault();
            chats.result(call.id, text);
          }}
        >
          <label>
            Its result
            <textarea rows={2} value={text} onInput={(event) => setText(event.currentTarget.value)} />
          </label>
          <button type="submit">Send the result</button>
        </form>
      )}
    </details>
  );
}

function Result({ message }: { message: Message }) {
  return (
    <article class="message result" aria-label="Result of a tool">
      <details>
        <summary>Result</summary>
        <pre tabIndex={0}>{message.content}</pre>
      </details>
    </article>
  );
}

function pretty(json: string): string {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json; // not whole yet
  }
}
