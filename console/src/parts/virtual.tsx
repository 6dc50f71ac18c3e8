import type { VNode } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";

/** Rows of one height of which only those in sight are in the page. */
export function Virtual<T>(props: {
  label: string;
  rows: readonly T[];
  height: number;
  id: (row: T) => number;
  render: (row: T) => VNode;
  empty: string;
}) {
  const box = useRef<HTMLDivElement>(null);
  const [top, setTop] = useState(0);
  const [room, setRoom] = useState(400);
  const { rows, height } = props;
  useEffect(() => {
    const seen = box.current;
    if (seen === null) return undefined;
    const watcher = new ResizeObserver(() => setRoom(seen.clientHeight));
    watcher.observe(seen);
    return () => watcher.disconnect();
  }, []);
  // What is read stays where it is while new rows come above it.
  const first = rows[0] === undefined ? 0 : props.id(rows[0]);
  const before = useRef({ first, count: rows.length });
  useLayoutEffect(() => {
    const seen = box.current;
    if (seen !== null && seen.scrollTop > 0 && first !== before.current.first) {
      const moved = rows.findIndex((row) => props.id(row) === before.current.first);
      if (moved > 0) seen.scrollTop += moved * height;
    }
    before.current = { first, count: rows.length };
  }, [first]);
  const from = Math.max(0, Math.floor(top / height) - 8);
  const shown = rows.slice(from, Math.ceil((top + room) / height) + 8);
  return (
    <div
      class="virtual"
      ref={box}
      tabIndex={0}
      role="list"
      aria-label={props.label}
      onScroll={(event) => setTop(event.currentTarget.scrollTop)}
    >
      {rows.length === 0 && <p class="empty" role="listitem">{props.empty}</p>}
      {rows.length > 0 && (
        <div role="presentation" class="virtual-all" style={{ height: `${rows.length * height}px` }}>
          {shown.map((row, i) => (
            <div
              key={props.id(row)}
              role="listitem"
              aria-setsize={rows.length}
              aria-posinset={from + i + 1}
              style={{ top: `${(from + i) * height}px`, height: `${height}px` }}
            >
              {props.render(row)}
            </div>
          ))}
        </div>
      )}
    </div>
  );
}
