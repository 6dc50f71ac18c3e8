/** A colour for each machine, light enough for dark ink in both themes. */

const FIRST = [205, 75, 150, 300, 30, 250, 110, 340];

function hue(index: number): number {
  return FIRST[index] ?? (index * 137.508 + 20) % 360;
}

function machineColour(index: number): string {
  const ring = Math.floor(index / FIRST.length) % 3;
  return `oklch(${[0.8, 0.74, 0.86][ring]} 0.09 ${hue(index).toFixed(1)})`;
}

/** The colour of each machine by name, in the order of their numbers, so that it stays when others leave. */
export function coloursOf(machines: readonly { name: string; number: number }[]): Map<string, string> {
  return new Map(machines.map((machine) => [machine.name, machineColour(Math.max(0, machine.number - 1))]));
}

let probe: HTMLElement | null = null;

/** What a custom property of the style sheet is now, for canvases. */
export function ink(name: string): string {
  if (probe === null) {
    probe = document.createElement("i");
    probe.hidden = true;
    document.body.append(probe);
  }
  probe.style.color = `var(${name})`;
  return getComputedStyle(probe).color;
}
