import type { ModelCard } from "../api/types";
import { useLoaded, type Loaded } from "./loaded";

const AGAIN = 5; // seconds

/** The models that may be asked for, the default first, and their aliases. */
export function useNames(): Loaded<{ data: ModelCard[] }> {
  return useLoaded<{ data: ModelCard[] }>("v1/models", AGAIN);
}

/** A name in a list: of an alias with the model that answers. */
export function called({ id, root }: ModelCard): string {
  return id === root ? id : `${id} (${root})`;
}
