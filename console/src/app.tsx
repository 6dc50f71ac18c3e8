/** The shell: navigation, the page, and the key where one is asked for. */
import { useEffect, useRef, useState } from "preact/hooks";
import { key, locked, forgetKey } from "./api/key";
import { chosen, cluster, me, NO_MODEL, offline } from "./api/live";
import { ChatPage } from "./chat/page";
import { ClusterPage } from "./cluster/page";
import { stateTone } from "./cluster/state";
import { ConnectPage } from "./connect/page";
import { EventsPage } from "./events/page";
import { JoinPage } from "./join/page";
import { EnterKey } from "./keys/enter";
import { MadeKey } from "./keys/made";
import { KeysPage } from "./keys/page";
import { ModelsPage } from "./models/page";
import { choice, choose, type Choice } from "./parts/theme";
import { Said } from "./parts/say";
import { href, route, type PageName } from "./route";
import { TimelinePage } from "./timeline/page";

const TITLES: Record<PageName, string> = {
  cluster: "Cluster",
  chat: "Chat",
  timeline: "Timeline",
  events: "Events",
  join: "Join a machine",
  keys: "Keys",
  models: "Models",
  connect: "Connect",
};

const SHOWN: Record<PageName, () => preact.JSX.Element> = {
  cluster: ClusterPage,
  chat: ChatPage,
  timeline: TimelinePage,
  events: EventsPage,
  join: JoinPage,
  keys: KeysPage,
  models: ModelsPage,
  connect: ConnectPage,
};

export function App() {
  const { page } = route.value;
  const main = useRef<HTMLElement>(null);
  const [open, setOpen] = useState(false);
  const first = useRef(true);
  useEffect(() => {
    document.title = `${TITLES[page]} · shoal`;
    setOpen(false);
    if (!first.current) main.current?.querySelector<HTMLElement>("h1")?.focus({ preventScroll: true });
    first.current = false;
    window.scrollTo(0, 0);
  }, [page]);
  const Shown = SHOWN[page];
  return (
    <>
      <a
        class="skip"
        href="#main"
        onClick={(event) => {
          event.preventDefault();
          main.current?.querySelector<HTMLElement>("h1")?.focus();
        }}
      >
        Skip to content
      </a>
      <header class="side">
        <div class="brand">
          <Mark />
          <span>shoal</span>
          <button type="button" class="menu" aria-expanded={open} aria-controls="nav" onClick={() => setOpen(!open)}>
            Menu
          </button>
        </div>
        <div id="nav" class={open ? "nav open" : "nav"}>
          <nav aria-label="Console">
            <ul>
              {(Object.keys(TITLES) as PageName[]).map((name) => (
                <li key={name}>
                  <a href={href(name, name === "cluster" ? chosen.value : "")} aria-current={name === page ? "page" : undefined} onClick={() => setOpen(false)}>
                    {TITLES[name]}
                    {name === "cluster" && <Attention />}
                  </a>
                </li>
              ))}
            </ul>
          </nav>
          <Whose />
          <Theme />
        </div>
        <State />
      </header>
      <main id="main" ref={main}>
        {locked.value ? <EnterKey /> : <Shown />}
        <MadeKey />
      </main>
      <Said />
    </>
  );
}

function Mark() {
  return (
    <svg class="mark" viewBox="0 0 32 24" aria-hidden="true">
      <path d="M3 7c3-3.200 7-3.200 10 0l3-2v4l-3-2c-3 3.200-7 3.200-10 0z" />
      <path opacity=".7" d="M14 14c3-3.200 7-3.200 10 0l3-2v4l-3-2c-3 3.200-7 3.200-10 0z" />
      <path opacity=".4" d="M4 20c2.400-2.600 5.600-2.600 8 0l2.400-1.600v3.200L12 20c-2.400 2.600-5.600 2.600-8 0z" />
    </svg>
  );
}

function Attention() {
  const wanted = cluster.value?.attention.length ?? 0;
  return wanted > 0 ? (
    <span class="count" title="needs attention" data-figure="attention">
      {wanted}
      <span class="offscreen"> to look at</span>
    </span>
  ) : null;
}

function State() {
  const view = cluster.value;
  if (locked.value) return null;
  const lost = offline.value !== "";
  const waiting = offline.value === NO_MODEL ? NO_MODEL : "connecting";
  const state = lost ? (view === null ? waiting : "not connected") : (view?.state ?? "");
  return (
    <div class="state-line">
      <span class={`dot ${lost ? "bad" : stateTone(state)}`} aria-hidden="true" />
      <span>{state}</span>
      {view && <span class="model" data-figure="name">{view.pipelines.length > 1 ? view.pipeline : view.model.name}</span>}
    </div>
  );
}

function Whose() {
  const who = me.value;
  if (!key.value) return null;
  return (
    <p class="whose">
      {who ? `${who.key || "a key"}, ${who.role}` : "with a key"}{" "}
      <button
        type="button"
        class="link"
        onClick={() => {
          forgetKey();
          location.reload();
        }}
      >
        forget it
      </button>
    </p>
  );
}

function Theme() {
  const options: Choice[] = ["auto", "light", "dark"];
  return (
    <fieldset class="theme">
      <legend class="offscreen">Theme</legend>
      {options.map((option) => (
        <label key={option}>
          <input type="radio" name="theme" checked={choice.value === option} onChange={() => choose(option)} />
          <span>{option}</span>
        </label>
      ))}
    </fieldset>
  );
}

