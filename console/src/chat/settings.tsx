import type { ComponentChildren } from "preact";
import { useId } from "preact/hooks";
import { save, changed } from "./chats";
import { parsedTools, type Conversation, type Settings } from "./conversation";

const NUMBERS: [keyof Settings & string, string, string, number, number, number][] = [
  ["temperature", "Temperature", "1", 0, 5, 0.1],
  ["top_p", "Top p", "1", 0.01, 1, 0.01],
  ["top_k", "Top k", "off", 0, 100000, 1],
  ["min_p", "Min p", "off", 0, 1, 0.01],
  ["repetition_penalty", "Repetition penalty", "1", 0.01, 10, 0.05],
  ["max_tokens", "Most tokens", "as fit", 1, 1000000, 1],
  ["seed", "Seed", "random", 0, 2 ** 31, 1],
];

/** Of the open conversation; new ones begin with them. */
export function ChatSettings({ of }: { of: Conversation }) {
  const { settings } = of;
  const set = (some: Partial<Settings>): void => {
    Object.assign(of.settings, some);
    if (of.messages.length) save(of);
    else changed.value++;
  };
  let wrong = "";
  try {
    parsedTools(settings.tools);
  } catch (error) {
    wrong = (error as Error).message;
  }
  return (
    <section class="chat-settings" aria-label="Settings of this chat">
      <Field label="System prompt">
        {(id) => <textarea id={id} rows={4} value={settings.system} onInput={(event) => set({ system: event.currentTarget.value })} />}
      </Field>
      <div class="numbers">
        {NUMBERS.map(([name, label, plain, min, max, step]) => (
          <Field key={name} label={label}>
            {(id) => (
              <input
                id={id}
                type="number"
                min={min}
                max={max}
                step={step}
                placeholder={plain}
                value={(settings[name] as number | null) ?? ""}
                onInput={(event) => {
                  const value = event.currentTarget.valueAsNumber;
                  set({ [name]: Number.isNaN(value) ? null : value });
                }}
              />
            )}
          </Field>
        ))}
        <Field label="Reasoning">
          {(id) => (
            <select id={id} value={settings.effort} onChange={(event) => set({ effort: event.currentTarget.value })}>
              <option value="">as the model does</option>
              {["none", "low", "medium", "high"].map((effort) => (
                <option key={effort}>{effort}</option>
              ))}
            </select>
          )}
        </Field>
      </div>
      <label class="tick">
        <input type="checkbox" checked={settings.logprobs} onChange={(event) => set({ logprobs: event.currentTarget.checked })} />
        Ask for the probabilities of tokens
      </label>
      <details>
        <summary>Tools</summary>
        <Field label="Functions, as JSON">
          {(id) => (
            <textarea
              id={id}
              rows={6}
              spellcheck={false}
              class="mono"
              placeholder={'[{"name": "weather", "parameters": {"type": "object", …}}]'}
              value={settings.tools}
              onInput={(event) => set({ tools: event.currentTarget.value })}
            />
          )}
        </Field>
        {wrong && <p class="failed">{wrong}</p>}
      </details>
    </section>
  );
}

function Field({ label, children }: { label: string; children: (id: string) => ComponentChildren }) {
  const id = useId();
  return (
    <div class="field">
      <label for={id}>{label}</label>
      {children(id)}
    </div>
  );
}
