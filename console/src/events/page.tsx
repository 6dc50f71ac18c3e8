import "./events.css";
import { useEffect, useMemo, useState } from "preact/hooks";
import { cluster, events, eventsChanged } from "../api/live";
import type { ClusterEvent } from "../api/types";
import { count, figure, moment } from "../parts/format";
import { Page } from "../parts/page";
import { Virtual } from "../parts/virtual";
import { Day } from "./day";
import { eventTone, filtered, KINDS, type Filter } from "./kinds";

const ALL: Filter = { kind: "", node: "", text: "" };

export function EventsPage() {
  const [filter, setFilter] = useState(ALL);
  const set = (some: Partial<Filter>): void => setFilter({ ...filter, ...some });
  const version = eventsChanged.value;
  const shown = useMemo(() => filtered(events.items, filter), [version, filter]);
  const nodes = useMemo(() => [...new Set(events.items.map((event) => event.node).filter(Boolean))].sort(), [version]);
  const attention = cluster.value?.attention ?? [];
  const narrow = useNarrow();
  return (
    <Page title="Events" wide>
      {attention.length > 0 && (
        <section class="card advice bad" aria-label="Needs attention">
          <h2>Needs attention</h2>
          <ul>
            {attention.map((advice) => (
              <li key={advice.kind + advice.node + advice.message} data-figure={advice.kind}>{advice.message}</li>
            ))}
          </ul>
        </section>
      )}
      <Day />
      <section aria-label="Events" class="events">
        <form class="row filters" role="search" onSubmit={(event) => event.preventDefault()}>
          <select aria-label="Kind" value={filter.kind} onChange={(event) => set({ kind: event.currentTarget.value })}>
            <option value="">all kinds</option>
            <option value="warnings">warnings</option>
            <optgroup label="one kind">
              {KINDS.map((kind) => (
                <option key={kind}>{kind}</option>
              ))}
            </optgroup>
          </select>
          <select aria-label="Machine" value={filter.node} onChange={(event) => set({ node: event.currentTarget.value })}>
            <option value="">all machines</option>
            {nodes.map((node) => (
              <option key={node} value={node}>
                {node}
              </option>
            ))}
          </select>
          <input type="search" aria-label="Words" placeholder="Words" value={filter.text} onInput={(event) => set({ text: event.currentTarget.value })} />
          <span class="soft" data-figure="events">
            {shown.length === events.items.length ? count(shown.length) : `${count(shown.length)} of ${count(events.items.length)}`}
          </span>
        </form>
        <Virtual
          label="Events, latest first"
          rows={shown}
          height={narrow ? 62 : 34}
          id={(event) => event.number}
          render={(event) => <Row event={event} />}
          empty={events.items.length ? "No event is like that." : "Nothing has happened yet."}
        />
      </section>
    </Page>
  );
}

function Row({ event }: { event: ClusterEvent }) {
  const figures = Object.entries(event.figures).map(([name, value]) => `${name.replace(/_/g, " ")} ${figure(name, value)}`);
  return (
    <div class="event" data-figure="event" data-event={event.number} title={figures.join(", ")}>
      <time dateTime={new Date(event.at * 1000).toISOString()}>{moment(event.at)}</time>
      <span class={`kind ${eventTone(event.kind)}`}>{event.kind}</span>
      <span class="what">
        {event.message}
        {figures.length > 0 && <small class="soft"> {figures.join(", ")}</small>}
      </span>
    </div>
  );
}

function useNarrow(): boolean {
  const query = "(max-width: 760px)";
  const [narrow, setNarrow] = useState(window.matchMedia(query).matches);
  useEffect(() => {
    const asked = window.matchMedia(query);
    const change = (): void => setNarrow(asked.matches);
    asked.addEventListener("change", change);
    return () => asked.removeEventListener("change", change);
  }, []);
  return narrow;
}
