import { useEffect } from "preact/hooks";
import type { ModelCard } from "../api/types";
import { called } from "../parts/names";
import { changed, save } from "./chats";
import type { Conversation } from "./conversation";

/** Which model a chat talks to, where there are several names, or its own is not there any more. names: the default first. */
export function ChatModel({ of, names }: { of: Conversation; names: readonly ModelCard[] }) {
  void changed.value; // settings change in place
  const { model = "" } = of.settings;
  const missing = model !== "" && names.length > 0 && !names.some(({ id }) => id === model);
  const begun = of.messages.length > 0;
  const set = (name: string): void => {
    of.settings.model = name;
    if (begun) save(of);
    else changed.value++;
  };
  useEffect(() => {
    if (missing && !begun) set(""); // it is that of an earlier chat
  }, [missing, begun]);
  if (names.length < 2 && !missing) return null;
  return (
    <select class="chat-model" aria-label="Model" value={model} onChange={(event) => set(event.currentTarget.value)}>
      <option value="">{names[0]?.id}, the first</option>
      {missing && <option value={model}>{model}, which is not served</option>}
      {names.map((card) => (
        <option key={card.id} value={card.id}>
          {called(card)}
        </option>
      ))}
    </select>
  );
}
