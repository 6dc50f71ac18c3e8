import "./chat.css";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { Dialog } from "../parts/dialog";
import { moment } from "../parts/format";
import { useNames } from "../parts/names";
import { Page } from "../parts/page";
import { route } from "../route";
import * as chats from "./chats";
import { exported, type Conversation } from "./conversation";
import { Shown } from "./message";
import { ChatModel } from "./model";
import { ChatSettings } from "./settings";

export function ChatPage() {
  const [shown, setShown] = useState<"" | "list" | "settings">("");
  useEffect(() => {
    void chats.load().then(() => {
      if (route.value.rest) chats.choose(route.value.rest);
      else if (chats.open.value === null) chats.begin();
    });
  }, []);
  const of = chats.open.value;
  const names = useNames().value?.data ?? [];
  const toggle = (which: "list" | "settings"): void => setShown(shown === which ? "" : which);
  return (
    <Page
      title="Chat"
      wide
      beside={
        <div class="row">
          {of && <ChatModel key={of.id} of={of} names={names} />}
          <button type="button" aria-expanded={shown === "list"} onClick={() => toggle("list")}>
            Chats
          </button>
          <button type="button" aria-expanded={shown === "settings"} onClick={() => toggle("settings")}>
            Settings
          </button>
          <button
            type="button"
            onClick={() => {
              chats.begin();
              setShown("");
            }}
          >
            New chat
          </button>
        </div>
      }
    >
      <div class={`chat ${shown}`}>
        {shown === "list" && <List onChosen={() => setShown("")} />}
        {of && <Thread key={of.id} of={of} model={of.settings.model || names[0]?.id} />}
        {shown === "settings" && of && <ChatSettings of={of} />}
      </div>
    </Page>
  );
}

function Thread({ of, model = "the model" }: { of: Conversation; model: string | undefined }) {
  void chats.changed.value; // messages change in place
  const busy = chats.answering.value === of.id;
  const scrolled = useRef<HTMLDivElement>(null);
  const atEnd = useRef(true);
  const results = new Set(of.messages.filter(({ role }) => role === "tool").map(({ call }) => call));
  useLayoutEffect(() => {
    const box = scrolled.current;
    if (box !== null && atEnd.current) box.scrollTop = box.scrollHeight;
  });
  return (
    <section class="thread" aria-label={of.title || "New chat"}>
      <div
        class="messages"
        ref={scrolled}
        tabIndex={0}
        role="region"
        aria-label="Messages"
        onScroll={({ currentTarget: box }) => (atEnd.current = box.scrollHeight - box.scrollTop - box.clientHeight < 40)}
      >
        {of.messages.length === 0 && <p class="empty">Ask {model} something. Chats are kept in this browser, and nowhere else.</p>}
        {of.messages.map((message, i) => (
          <Shown key={message.id} message={message} last={i === of.messages.length - 1} busy={busy} results={results} />
        ))}
      </div>
      <Composer busy={busy} onSend={() => (atEnd.current = true)} />
    </section>
  );
}

function Composer({ busy, onSend }: { busy: boolean; onSend: () => void }) {
  const [text, setText] = useState("");
  const area = useRef<HTMLTextAreaElement>(null);
  const go = (): void => {
    if (!text.trim() || busy) return;
    onSend();
    chats.ask(text.trim());
    setText("");
  };
  useLayoutEffect(() => {
    const box = area.current;
    if (box === null) return;
    box.style.height = "auto";
    box.style.height = `${Math.min(box.scrollHeight + 2, 220)}px`;
  }, [text]);
  return (
    <form
      class="composer"
      onSubmit={(event) => {
        event.preventDefault();
        go();
      }}
    >
      <textarea
        ref={area}
        rows={1}
        aria-label="Message"
        placeholder="Message; Shift-Enter for a new line"
        value={text}
        onInput={(event) => setText(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
            event.preventDefault();
            go();
          } else if (event.key === "Escape" && busy) chats.halt();
        }}
      />
      {busy ? (
        <button type="button" class="main" onClick={chats.halt}>
          Stop
        </button>
      ) : (
        <button type="submit" class="main" disabled={!text.trim()}>
          Send
        </button>
      )}
    </form>
  );
}

function List({ onChosen }: { onChosen: () => void }) {
  const [asked, setAsked] = useState<{ of: Conversation; what: "rename" | "delete" } | null>(null);
  return (
    <nav class="chats" aria-label="Chats">
      {chats.list.value.length === 0 && <p class="soft">There are none yet.</p>}
      <ul>
        {chats.list.value.map((of) => (
          <li key={of.id} class={of.id === chats.open.value?.id ? "chosen" : ""}>
            <button
              type="button"
              class="link name"
              aria-current={of.id === chats.open.value?.id ? "true" : undefined}
              onClick={() => {
                chats.choose(of.id);
                onChosen();
              }}
            >
              {of.title || "New chat"}
              <small data-figure="updated">{moment(of.updated)}</small>
            </button>
            <span class="row">
              <button type="button" class="quiet" aria-label={`Rename ${of.title}`} onClick={() => setAsked({ of, what: "rename" })}>
                Rename
              </button>
              <button type="button" class="quiet" aria-label={`Export ${of.title}`} onClick={() => download(of)}>
                Export
              </button>
              <button type="button" class="quiet" aria-label={`Delete ${of.title}`} onClick={() => setAsked({ of, what: "delete" })}>
                Delete
              </button>
            </span>
          </li>
        ))}
      </ul>
      {asked?.what === "rename" && <RenameChat of={asked.of} onClose={() => setAsked(null)} />}
      {asked?.what === "delete" && (
        <Dialog title="Delete this chat?" onClose={() => setAsked(null)}>
          <p>{asked.of.title || "New chat"}</p>
          <footer>
            <button type="button" onClick={() => setAsked(null)}>
              Cancel
            </button>
            <button
              type="button"
              class="main danger"
              onClick={() => {
                chats.remove(asked.of);
                setAsked(null);
              }}
            >
              Delete it
            </button>
          </footer>
        </Dialog>
      )}
    </nav>
  );
}

function RenameChat({ of, onClose }: { of: Conversation; onClose: () => void }) {
  const [title, setTitle] = useState(of.title);
  return (
    <Dialog title="Rename this chat" onClose={onClose}>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          chats.rename(of, title.trim());
          onClose();
        }}
      >
        <label>
          Title
          <input value={title} maxLength={200} onInput={(event) => setTitle(event.currentTarget.value)} />
        </label>
        <footer>
          <button type="button" onClick={onClose}>
            Cancel
          </button>
          <button type="submit" class="main" disabled={!title.trim()}>
            Rename
          </button>
        </footer>
      </form>
    </Dialog>
  );
}

function download(of: Conversation): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([exported(of)], { type: "text/markdown" }));
  link.download = `${(of.title || "chat").replace(/[^\p{L}\p{N} _-]/gu, "").slice(0, 50) || "chat"}.md`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
