/** Figures as people read them. */

/** '1.5 GiB', as the commands print sizes. */
export function bytes(count: number): string {
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (Math.abs(count) < 1024) return unit === "B" ? `${count.toFixed(0)} B` : `${count.toFixed(1)} ${unit}`;
    count /= 1024;
  }
  return `${count.toFixed(1)} TiB`;
}

/** '850 µs', '12.3 ms', '4.2 s', '3 min 20 s'. 0 is '0'. */
export function seconds(value: number): string {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 0.9995e-3) return `${(value * 1e6).toFixed(0)} µs`;
  if (size < 0.09995) return `${(value * 1e3).toFixed(1)} ms`;
  if (size < 0.9995) return `${(value * 1e3).toFixed(0)} ms`;
  if (size < 59.95) return `${value.toFixed(1)} s`;
  return span(value);
}

/** '3 min 20 s', '5 h 2 min', '2 d 3 h': whole seconds of something long. */
export function span(value: number): string {
  const whole = Math.max(0, Math.round(value));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

/** Of a countdown: '9:05'. */
export function countdown(value: number): string {
  const whole = Math.max(0, Math.ceil(value));
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

/** '0.52', '34.2', '211', '1100', '12.3 k', '3.4 M'; whole numbers below 10,000 as they are. */
export function short(value: number): string {
  const size = Math.abs(value);
  if (size >= 999.5e6) return `${(value / 1e9).toFixed(1)} G`;
  if (size >= 999.5e3) return `${(value / 1e6).toFixed(1)} M`;
  if (size >= 9999.5) return `${(value / 1e3).toFixed(1)} k`;
  if (size >= 99.95 || Number.isInteger(value)) return value.toFixed(0);
  return value.toFixed(size < 9.995 ? 2 : 1);
}

export function count(value: number): string {
  return value.toLocaleString("en-US");
}

export function percent(share: number): string {
  const value = share * 100;
  return `${value > 0 && value < 9.95 ? value.toFixed(1) : value.toFixed(0)} %`;
}

/** 'layers 0–14' of [0, 15): as the head says it in its messages. */
export function layers(first: number, end: number): string {
  return end <= first ? "none" : end - first === 1 ? `${first}` : `${first}–${end - 1}`;
}

const two = (value: number): string => String(value).padStart(2, "0");

/** '14:03:21' here. */
export function time(at: number): string {
  const date = new Date(at * 1000);
  return `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
}

/** '2026-11-30 14:03:21' here. */
export function moment(at: number): string {
  const date = new Date(at * 1000);
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${time(at)}`;
}

export function plural(value: number, one: string, many = `${one}s`): string {
  return `${count(value)} ${value === 1 ? one : many}`;
}

/** A figure of an event: its name says the unit, otherwise seconds. */
export function figure(name: string, value: number): string {
  const last = name.split("_").at(-1) ?? name;
  if (last === "bytes" || last === "memory") return bytes(value);
  if (last === "share" || last === "gain") return percent(value);
  if (last === "slower") return `${short(value)} ×`;
  const counted = ["tokens", "layers", "epoch", "count", "nodes", "sequences", "requests", "blocks", "streams", "times", "number", "rows", "experts"];
  if (counted.includes(last)) return short(value);
  return seconds(value);
}
