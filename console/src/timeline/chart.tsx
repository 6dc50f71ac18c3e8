import { effect, useSignal, type Signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { ink } from "../parts/colours";
import { dark } from "../parts/theme";
import { duration, held, moved, zoomed, type Sight } from "./layout";
import { height, paint, scale, type Inks } from "./paint";
import type { Watched } from "./watch";

const FOLLOWED = 3; // seconds in sight while it follows

function inks(): Inks {
  const tones = ["--t-schedule", "--t-wire", "--t-wait", "--t-prepare", "--t-compute", "--t-sample"].map(ink);
  return { tones, ink: ink("--ink"), soft: ink("--soft"), line: ink("--line"), lost: ink("--t-lost"), ground: ink("--raised"), accent: ink("--accent") };
}

/** The picture: wheel and drag, or the keyboard, zoom and pan; a click chooses a step. */
export function Chart({ of, chosen }: { of: Watched; chosen: Signal<number> }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const follow = useSignal(true);
  const sight = useRef<Sight>({ from: 0, to: FOLLOWED });
  const redraw = useRef<() => void>(() => undefined);

  const look = (next: Sight): void => {
    follow.value = false;
    sight.current = next;
    redraw.current();
  };
  const all = (): void => look(held({ from: -0.02 * of.tape.end, to: of.tape.end * 1.02 + 0.01 }, of.tape.end));

  useEffect(() => {
    const shown = canvas.current;
    const context = shown?.getContext("2d");
    if (!shown || !context) return undefined;
    let frame = 0;
    let colours = inks();
    let seen = -1; // wall clock at which the tape's end was reached
    let last = 0;
    let fresh = true; // one that has ended is shown whole at first
    const draw = (): void => {
      frame = 0;
      const width = shown.clientWidth;
      const tall = height(of.tape);
      const ratio = window.devicePixelRatio || 1;
      if (shown.width !== Math.round(width * ratio) || shown.height !== Math.round(tall * ratio)) {
        shown.width = Math.round(width * ratio);
        shown.height = Math.round(tall * ratio);
        shown.style.height = `${tall}px`;
      }
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      if (fresh && of.request.peek() !== null) {
        fresh = false;
        if (!of.live) all();
      }
      if (follow.peek() && of.tape.end > 0) {
        const now = performance.now() / 1000;
        if (of.tape.end !== last) {
          last = of.tape.end;
          seen = now;
        }
        // Between two answers time goes on, so that the picture glides and does not jump.
        const glide = of.live && !calm() ? Math.min(now - seen, 0.3) : 0;
        const wide = sight.current.to - sight.current.from;
        const to = Math.max(of.tape.end + glide, wide);
        sight.current = { from: to - wide, to };
        if (glide > 0 && glide < 0.3) ask();
      }
      shown.dataset["bars"] = String(paint(context, width, of.tape, sight.current, colours, chosen.peek()));
      shown.dataset["frames"] = String(Number(shown.dataset["frames"] ?? 0) + 1);
    };
    const ask = (): void => {
      frame ||= requestAnimationFrame(draw);
    };
    redraw.current = ask;
    const watcher = new ResizeObserver(ask);
    watcher.observe(shown);
    const stops = [
      effect(() => {
        void [of.changed.value, chosen.value, follow.value];
        ask();
      }),
      effect(() => {
        void dark.value;
        queueMicrotask(() => {
          colours = inks();
          ask();
        });
      }),
    ];
    return () => {
      cancelAnimationFrame(frame);
      watcher.disconnect();
      stops.forEach((stop) => stop());
    };
  }, [of]);

  const zoom = (factor: number, about?: number): void => {
    const { from, to } = sight.current;
    const kept = follow.value;
    const at = about ?? (kept ? to : (from + to) / 2);
    look(zoomed(sight.current, factor, at, of.tape.end));
    follow.value = kept && about === undefined;
  };
  const choose = (step: number): void => {
    const { steps, origin } = of.tape;
    if (steps.length === 0) return;
    const index = Math.min(steps.length - 1, Math.max(0, step));
    chosen.value = index;
    const span = steps[index];
    if (span === undefined) return;
    const start = span.at - origin;
    const took = duration(span);
    const { from, to } = sight.current;
    if (start < from || start + took > to) look(held({ from: start - (to - from) * 0.3, to: start + (to - from) * 0.7 }, of.tape.end));
    else follow.value = false;
  };
  const key = (event: KeyboardEvent): void => {
    const wide = sight.current.to - sight.current.from;
    const actions: Record<string, () => void> = {
      ArrowLeft: () => look(moved(sight.current, -wide * 0.15, of.tape.end)),
      ArrowRight: () => look(moved(sight.current, wide * 0.15, of.tape.end)),
      "+": () => zoom(0.7),
      "=": () => zoom(0.7),
      "-": () => zoom(1.4),
      Home: () => look({ from: 0, to: wide }),
      End: () => (follow.value = true),
      f: () => (follow.value = true),
      a: all,
      n: () => choose(chosen.value < 0 ? of.tape.stepAt(sight.current.from) + 1 : chosen.value + 1),
      p: () => choose(chosen.value < 0 ? of.tape.stepAt(sight.current.to) : chosen.value - 1),
      Escape: () => (chosen.value = -1),
    };
    const action = event.ctrlKey || event.metaKey || event.altKey ? undefined : actions[event.key];
    if (action === undefined) return;
    event.preventDefault();
    action();
  };
  const pointer = usePointer(canvas, sight, look, (x) => {
    const shown = canvas.current;
    if (shown === null) return;
    const { left, perSecond } = scale(shown.clientWidth, sight.current);
    choose(of.tape.stepAt((x - left) / perSecond + sight.current.from));
  }, of);

  useEffect(() => {
    const shown = canvas.current;
    if (shown === null) return undefined;
    const wheel = (event: WheelEvent): void => {
      event.preventDefault(); // only possible with a listener that is not passive
      const { left, perSecond } = scale(shown.clientWidth, sight.current);
      const { from, to } = sight.current;
      if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) look(moved(sight.current, ((event.deltaX || event.deltaY) / shown.clientWidth) * (to - from), of.tape.end));
      else zoom(1.0015 ** Math.max(-400, Math.min(400, event.deltaY)), (event.clientX - shown.getBoundingClientRect().left - left) / perSecond + from);
    };
    shown.addEventListener("wheel", wheel, { passive: false });
    return () => shown.removeEventListener("wheel", wheel);
  }, [of]);

  return (
    <div class="chart">
      <div class="row tools">
        <button type="button" aria-label="Zoom in" onClick={() => zoom(0.5)}>
          +
        </button>
        <button type="button" aria-label="Zoom out" onClick={() => zoom(2)}>
          −
        </button>
        <button type="button" onClick={all}>
          All
        </button>
        <button type="button" aria-pressed={follow.value} onClick={() => (follow.value = !follow.value)}>
          Follow
        </button>
        <button type="button" aria-label="Previous step" onClick={() => choose(chosen.value < 0 ? of.tape.steps.length - 1 : chosen.value - 1)}>
          ‹ step
        </button>
        <button type="button" aria-label="Next step" onClick={() => choose(chosen.value + 1)}>
          step ›
        </button>
        <Legend />
      </div>
      <canvas
        ref={canvas}
        tabIndex={0}
        role="application"
        aria-roledescription="timeline"
        aria-label="Steps over time. Arrow keys pan, plus and minus zoom, n and p choose the next and the previous step, f follows, a shows all."
        onKeyDown={key}
        {...pointer}
      />
    </div>
  );
}

const calm = (): boolean => window.matchMedia("(prefers-reduced-motion: reduce)").matches;

/** Dragging pans, two fingers zoom, a click is told. */
function usePointer(canvas: { current: HTMLCanvasElement | null }, sight: { current: Sight }, look: (sight: Sight) => void, onClick: (x: number) => void, of: Watched) {
  const down = useRef(new Map<number, number>());
  const far = useRef(0);
  const x = (event: PointerEvent): number => event.clientX - (canvas.current?.getBoundingClientRect().left ?? 0);
  return {
    onPointerDown: (event: PointerEvent) => {
      canvas.current?.setPointerCapture(event.pointerId);
      down.current.set(event.pointerId, x(event));
      far.current = 0;
    },
    onPointerMove: (event: PointerEvent) => {
      const before = down.current.get(event.pointerId);
      const shown = canvas.current;
      if (before === undefined || shown === null) return;
      const now = x(event);
      const { perSecond, left } = scale(shown.clientWidth, sight.current);
      const other = [...down.current].find(([id]) => id !== event.pointerId)?.[1];
      far.current += Math.abs(now - before);
      if (far.current > 3) {
        if (other === undefined) look(moved(sight.current, (before - now) / perSecond, of.tape.end));
        else look(zoomed(sight.current, Math.max(8, Math.abs(before - other)) / Math.max(8, Math.abs(now - other)), (other - left) / perSecond + sight.current.from, of.tape.end));
      }
      down.current.set(event.pointerId, now);
    },
    onPointerUp: (event: PointerEvent) => {
      if (down.current.delete(event.pointerId) && far.current <= 3) onClick(x(event));
    },
    onPointerCancel: (event: PointerEvent) => void down.current.delete(event.pointerId),
  };
}

function Legend() {
  const parts = [
    ["schedule", "head: schedule, encode, apply"],
    ["wire", "wire: send, hop, back"],
    ["wait", "wait"],
    ["prepare", "prepare"],
    ["compute", "compute"],
    ["sample", "sample"],
  ] as const;
  return (
    <ul class="legend" aria-label="Colours">
      {parts.map(([name, label]) => (
        <li key={name}>
          <span class="chip" style={{ "--c": `var(--t-${name})` }} aria-hidden="true" />
          {label}
        </li>
      ))}
    </ul>
  );
}
