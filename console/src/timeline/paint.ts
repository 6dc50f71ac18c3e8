/** Draws a tape on a canvas. Where there are too many bars to tell apart, a frame costs what the screen is wide, however many there are. */
import { seconds } from "../parts/format";
import { barsIn, density, duration, recoveryParts, ticks, TONE_OF, TONES, type Sight, type Tape } from "./layout";

const LABELS = 104;
const AXIS = 24;
const LANE = 34;
const RECOVERY = 22;
const TOKENS = 12;
const BAR = 18;
const MOST_BARS = 6000; // that are drawn one by one

export interface Inks {
  tones: string[];
  ink: string;
  soft: string;
  line: string;
  lost: string;
  ground: string;
  accent: string;
}

export function height(tape: Tape): number {
  return AXIS + (tape.recoveries.length ? RECOVERY : 0) + tape.lanes.length * LANE + TOKENS + 6;
}

/** The left edge of times, and how many pixels a second takes. */
export function scale(width: number, sight: Sight): { left: number; perSecond: number } {
  const left = Math.min(LABELS, width * 0.28);
  return { left, perSecond: (width - left) / (sight.to - sight.from) };
}

/** Returns how many bars were drawn. chosen: a step, or -1. */
export function paint(context: CanvasRenderingContext2D, width: number, tape: Tape, sight: Sight, inks: Inks, chosen: number): number {
  const tall = height(tape);
  const { left, perSecond } = scale(width, sight);
  const x = (time: number): number => left + (time - sight.from) * perSecond;
  context.clearRect(0, 0, width, tall);
  context.font = "12px system-ui, sans-serif";
  context.textBaseline = "middle";
  axis(context, width, tall, sight, inks, left, x);
  const top = AXIS + (tape.recoveries.length ? RECOVERY : 0);

  context.save();
  context.beginPath();
  context.rect(left, 0, width - left, tall);
  context.clip();
  if (chosen >= 0) highlight(context, tape, tall, inks, chosen, x);
  recoveries(context, tape, sight, tall, inks, x);
  const many = barsIn(tape, sight) > MOST_BARS;
  const drawn = many ? summary(context, tape, sight, top, inks, left, width) : details(context, tape, sight, top, inks, x);
  tokens(context, tape, sight, top + tape.lanes.length * LANE + 2, inks, x);
  context.restore();

  context.fillStyle = inks.ink;
  tape.lanes.forEach((lane, i) => {
    context.fillStyle = inks.ink;
    context.fillText(fitted(context, lane, left - 14), 2, top + i * LANE + LANE / 2);
  });
  context.fillStyle = inks.soft;
  context.fillText("tokens", 2, top + tape.lanes.length * LANE + TOKENS / 2);
  if (tape.recoveries.length) context.fillText("recovery", 2, AXIS + RECOVERY / 2);
  return drawn;
}

function axis(context: CanvasRenderingContext2D, width: number, tall: number, sight: Sight, inks: Inks, left: number, x: (time: number) => number): void {
  const { step, at } = ticks(sight, Math.max(2, (width - left) / 110));
  context.fillStyle = inks.soft;
  for (const time of at) {
    context.globalAlpha = 1;
    context.fillText(label(time, step), x(time) + 4, AXIS / 2);
    context.fillStyle = inks.line;
    context.fillRect(Math.round(x(time)), 4, 1, tall);
    context.fillStyle = inks.soft;
  }
}

/** A time with as many digits as the steps between labels need. */
export function label(time: number, step: number): string {
  if (step >= 1) return `${Math.round(time)} s`;
  const digits = Math.min(6, Math.max(0, -Math.floor(Math.log10(step) + 1e-9)));
  return step >= 0.001 ? `${time.toFixed(digits)} s` : `${(time * 1e3).toFixed(Math.max(0, digits - 3))} ms`;
}

function highlight(context: CanvasRenderingContext2D, tape: Tape, tall: number, inks: Inks, chosen: number, x: (time: number) => number): void {
  const step = tape.steps[chosen];
  if (step === undefined) return;
  const start = step.at - tape.origin;
  context.globalAlpha = 0.16;
  context.fillStyle = inks.accent;
  context.fillRect(x(start), AXIS, Math.max(2, x(start + duration(step)) - x(start)), tall);
  context.globalAlpha = 1;
}

function recoveries(context: CanvasRenderingContext2D, tape: Tape, sight: Sight, tall: number, inks: Inks, x: (time: number) => number): void {
  for (const recovery of tape.recoveries) {
    const parts = recoveryParts(recovery, tape.origin);
    const start = parts[0]?.start ?? recovery.at - tape.origin;
    const end = Math.max(recovery.ended - tape.origin, parts.at(-1)?.end ?? start);
    if (end < sight.from || start > sight.to) continue;
    context.fillStyle = inks.lost;
    context.globalAlpha = 0.1;
    context.fillRect(x(start), AXIS, Math.max(1, x(end) - x(start)), tall);
    parts.forEach((part, i) => {
      const [from, wide] = [x(part.start), Math.max(1, x(part.end) - x(part.start) - 1)];
      context.globalAlpha = part.name === "silence" ? 0.3 : i % 2 ? 0.95 : 0.75;
      context.fillStyle = inks.lost;
      context.fillRect(from, AXIS + 2, wide, RECOVERY - 5);
      context.globalAlpha = 1;
      if (wide > 46) {
        context.fillStyle = part.name === "silence" ? inks.ink : inks.ground;
        const told = `${part.name} ${seconds(part.end - part.start)}`; // never cut: '74…' would be another figure
        const fits = context.measureText(told).width <= wide - 8;
        context.fillText(fits ? told : fitted(context, part.name, wide - 8), from + 4, AXIS + RECOVERY / 2);
      }
    });
    context.globalAlpha = 1;
  }
}

/** Every bar; returns how many. */
function details(context: CanvasRenderingContext2D, tape: Tape, sight: Sight, top: number, inks: Inks, x: (time: number) => number): number {
  let drawn = 0;
  TONES.forEach((tone, index) => {
    const inset = tone === "wire" || tone === "wait" ? 5 : 0;
    context.fillStyle = inks.tones[index] ?? inks.ink;
    for (let i = tape.firstBar(sight.from); i < tape.length; i++) {
      const start = tape.starts[i] as number;
      if (start > sight.to + tape.longest) break;
      const end = tape.ends[i] as number;
      const mark = tape.marks[i] as number;
      if (TONE_OF[mark & 15] !== tone || end < sight.from || start > sight.to) continue;
      const from = x(start);
      context.fillRect(from, top + (mark >> 4) * LANE + (LANE - BAR) / 2 + inset, Math.max(0.8, x(end) - from - 0.4), BAR - 2 * inset);
      drawn++;
    }
  });
  return drawn;
}

let buffer: HTMLCanvasElement | null = null;

/** Where bars are too many to be told apart: in each column of pixels, what the time went to, one over the other; returns how many columns. */
function summary(context: CanvasRenderingContext2D, tape: Tape, sight: Sight, top: number, inks: Inks, left: number, width: number): number {
  const columns = Math.max(1, Math.floor(width - left));
  const lanes = tape.lanes.length;
  const each = (sight.to - sight.from) / columns;
  const sums = density(tape, sight.from, each, columns);
  const colours = inks.tones.map(packed);
  const image = new ImageData(columns, lanes * BAR);
  const pixels = new Uint32Array(image.data.buffer);
  let drawn = 0;
  for (let cell = 0; cell < lanes * columns; cell++) {
    const lane = Math.floor(cell / columns);
    const column = cell % columns;
    let filled = 0;
    let share = 0;
    for (let tone = 0; tone < TONES.length; tone++) {
      share += (sums[cell * TONES.length + tone] as number) / each;
      const reach = Math.min(BAR, Math.round(share * BAR));
      for (; filled < reach; filled++) pixels[(lane * BAR + BAR - 1 - filled) * columns + column] = colours[tone] as number;
    }
    if (filled > 0) drawn++;
  }
  buffer ??= document.createElement("canvas");
  buffer.width = columns;
  buffer.height = lanes * BAR;
  buffer.getContext("2d")?.putImageData(image, 0, 0);
  context.imageSmoothingEnabled = false;
  for (let lane = 0; lane < lanes; lane++) context.drawImage(buffer, 0, lane * BAR, columns, BAR, left, top + lane * LANE + (LANE - BAR) / 2, columns, BAR);
  return drawn;
}

/** 'rgb(1, 2, 3)' as a pixel. */
export function packed(colour: string): number {
  const [red = 0, green = 0, blue = 0] = (colour.match(/\d+/g) ?? []).map(Number);
  return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}

function tokens(context: CanvasRenderingContext2D, tape: Tape, sight: Sight, top: number, inks: Inks, x: (time: number) => number): void {
  context.fillStyle = inks.accent;
  let reached = -1;
  for (let i = Math.max(0, tape.stepAt(sight.from - tape.longest)); i < tape.steps.length; i++) {
    const step = tape.steps[i];
    if (step === undefined || step.at - tape.origin > sight.to) break;
    if (step.tokens === 0) continue;
    const at = Math.round(x(step.at - tape.origin + duration(step)));
    if (at <= reached) continue;
    reached = at;
    context.fillRect(at, top, 1.5, TOKENS - 3);
  }
}

function fitted(context: CanvasRenderingContext2D, text: string, width: number): string {
  if (context.measureText(text).width <= width) return text;
  let kept = text;
  while (kept.length > 1 && context.measureText(`${kept}…`).width > width) kept = kept.slice(0, -1);
  return `${kept}…`;
}
