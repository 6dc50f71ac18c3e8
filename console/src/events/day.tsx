import "uplot/dist/uPlot.min.css";
import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import type { History } from "../api/types";
import { ink } from "../parts/colours";
import { bytes, seconds, short, time } from "../parts/format";
import { useLoaded } from "../parts/loaded";
import { Failed } from "../parts/page";
import { dark } from "../parts/theme";

interface Series {
  id: string;
  name: string;
  lines: { label: string; of: (day: History) => (number | null)[]; colour: string }[];
  shown: (value: number) => string;
}

const SERIES: Series[] = [
  { id: "tokens_per_second", name: "tokens per second", shown: short, lines: [{ label: "", of: (day) => day.tokens_per_second, colour: "--accent" }] },
  {
    id: "first",
    name: "first token",
    shown: seconds,
    lines: [
      { label: "p50", of: (day) => day.first_p50, colour: "--accent" },
      { label: "p99", of: (day) => day.first_p99, colour: "--busy" },
    ],
  },
  { id: "queue", name: "waiting", shown: short, lines: [{ label: "", of: (day) => day.queue, colour: "--accent" }] },
  { id: "memory", name: "memory of all nodes", shown: bytes, lines: [{ label: "", of: (day) => day.memory, colour: "--accent" }] },
];

/** The last 24 hours. */
export function Day() {
  const { value, failed } = useLoaded<History>("operator/history", 30);
  return (
    <section class="card" aria-labelledby="day">
      <h2 id="day">The last 24 hours</h2>
      <Failed text={failed} />
      <div class="day">{SERIES.map((series) => value && <Sparkline key={series.id} series={series} day={value} />)}</div>
    </section>
  );
}

/** The latest value that there is, and the most. */
export function summary(values: readonly (number | null)[]): { now: number | null; most: number | null } {
  const known = values.filter((value) => value !== null);
  return { now: known.at(-1) ?? null, most: known.length ? known.reduce((a, b) => Math.max(a, b)) : null };
}

/** Where no sample is, for the minutes in which the head was away, the line is broken. */
export function withBreaks(at: readonly number[], values: readonly (number | null)[], step = 60): [number[], (number | null)[]] {
  const times: number[] = [];
  const kept: (number | null)[] = [];
  at.forEach((moment, i) => {
    const before = at[i - 1];
    if (before !== undefined && moment - before > 2.5 * step) {
      times.push(before + step);
      kept.push(null);
    }
    times.push(moment);
    kept.push(values[i] ?? null);
  });
  return [times, kept];
}

function Sparkline({ series, day }: { series: Series; day: History }) {
  const box = useRef<HTMLDivElement>(null);
  const readout = useRef<HTMLSpanElement>(null);
  const chart = useRef<uPlot | null>(null);
  const isDark = dark.value;
  const data = (): uPlot.AlignedData => {
    const [times] = withBreaks(day.at, []);
    return [times, ...series.lines.map((line) => withBreaks(day.at, line.of(day))[1])];
  };
  useEffect(() => {
    const shown = box.current;
    if (shown === null) return undefined;
    const axis = { stroke: ink("--soft"), grid: { stroke: ink("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
    const made = new uPlot(
      {
        width: shown.clientWidth,
        height: 110,
        legend: { show: false },
        cursor: { y: false, drag: { x: false, y: false }, sync: { key: "day" } },
        scales: { y: { range: (_, __, most) => [0, most > 0 ? most * 1.1 : 1] } },
        axes: [
          { ...axis, space: 60, size: 22, values: (_, times) => times.map((at) => time(at).slice(0, 5)) },
          { ...axis, size: 62, space: 26, values: (_, values) => values.map((value) => series.shown(value)) },
        ],
        series: [{}, ...series.lines.map((line) => ({ stroke: ink(line.colour), width: 1.4, points: { show: false }, spanGaps: false }))],
        hooks: {
          setCursor: [
            (u) => {
              const at = u.cursor.idx;
              if (readout.current === null) return;
              const moment = at === null || at === undefined ? undefined : u.data[0][at];
              const parts = series.lines.map((line, i) => {
                const value = at === null || at === undefined ? null : u.data[i + 1]?.[at];
                return value === null || value === undefined ? "" : `${line.label} ${series.shown(value)}`.trim();
              });
              readout.current.textContent = moment === undefined ? "" : `${time(moment).slice(0, 5)} ${parts.filter(Boolean).join(", ")}`;
            },
          ],
        },
      },
      data(),
      shown,
    );
    chart.current = made;
    const watcher = new ResizeObserver(() => made.setSize({ width: shown.clientWidth, height: 110 }));
    watcher.observe(shown);
    return () => {
      watcher.disconnect();
      made.destroy();
      chart.current = null;
    };
  }, [isDark]);
  useEffect(() => chart.current?.setData(data()), [day]);
  const words = series.lines.map((line) => {
    const { now, most } = summary(line.of(day));
    return now === null || most === null ? "" : `${line.label ? `${line.label} ` : ""}${series.shown(now)}, at most ${series.shown(most)}`;
  });
  return (
    <figure class="sparkline" data-series={series.id}>
      <figcaption data-figure={series.id}>
        <b>{series.name}</b> <span class="soft">{words.filter(Boolean).join("; ") || "nothing yet"}</span> <span class="at soft" ref={readout} aria-hidden="true" />
      </figcaption>
      <div ref={box} aria-hidden="true" />
    </figure>
  );
}
