/** What to type on a machine that is to join. Pure. */

export const SYSTEMS = ["Linux", "macOS", "Windows"] as const;
export type System = (typeof SYSTEMS)[number];

/** The line itself: Windows has no `shoal` on the path of every installation, Python's launcher it has. */
export function joinLine(system: System, command: string): string {
  return system === "Windows" ? command.replace(/^shoal\b/, "py -m shoal") : command;
}

/** What comes first where shoal is not installed yet. */
export function installLine(system: System): string {
  return system === "Windows" ? "py -m pip install shoal-VERSION.whl" : "pipx install shoal-VERSION.whl";
}

/** To keep it running, once it has joined and has a certificate. */
export const SERVICE = "shoal service install join";
