/** Light or dark: what the system says, unless the user has chosen. */
import { computed, effect, signal } from "@preact/signals";
import { storage } from "../api/key";

export type Choice = "auto" | "light" | "dark";

const NAME = "shoal.theme";
const system = window.matchMedia("(prefers-color-scheme: dark)");
const systemDark = signal(system.matches);
system.addEventListener("change", (event) => (systemDark.value = event.matches));

const kept = storage("localStorage")?.getItem(NAME);
export const choice = signal<Choice>(kept === "light" || kept === "dark" ? kept : "auto");
export const dark = computed(() => (choice.value === "auto" ? systemDark.value : choice.value === "dark"));

effect(() => {
  document.documentElement.dataset["theme"] = dark.value ? "dark" : "light";
});

export function choose(value: Choice): void {
  choice.value = value;
  storage("localStorage")?.setItem(NAME, value);
}
