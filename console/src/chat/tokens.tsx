import { useState } from "preact/hooks";
import type { Scored } from "./conversation";
import { surprise } from "./conversation";
import { percent } from "../parts/format";

/** An answer's tokens, the more coloured the less probable; the chosen one with what could have been in its place. */
export function TokenMap({ scored }: { scored: readonly Scored[] }) {
  const [chosen, setChosen] = useState(-1);
  const at = scored[chosen];
  const mean = scored.reduce((sum, { logprob }) => sum + logprob, 0) / Math.max(1, scored.length);
  const move = (step: number): void => setChosen(Math.min(scored.length - 1, Math.max(0, chosen + step)));
  return (
    <div class="token-map">
      <div
        class="tokens"
        tabIndex={0}
        role="application"
        aria-label={`${scored.length} tokens; arrow keys choose one`}
        onKeyDown={(event) => {
          if (event.key === "ArrowRight") move(1);
          else if (event.key === "ArrowLeft") move(-1);
          else return;
          event.preventDefault();
        }}
        onClick={(event) => {
          const index = event.target instanceof HTMLElement ? event.target.dataset["i"] : undefined;
          if (index !== undefined) setChosen(Number(index));
        }}
      >
        {scored.map(({ token, logprob }, i) => (
          <span key={i} data-i={i} class={i === chosen ? "chosen" : ""} style={{ "--p": surprise(logprob).toFixed(2) }} title={percent(Math.exp(logprob))}>
            {token.replace(/\n/g, "⏎\n")}
          </span>
        ))}
      </div>
      <p class="soft" data-figure="perplexity">
        Perplexity {Math.exp(-mean).toFixed(2)}. {at ? "" : "Choose a token to see what could have been in its place."}
      </p>
      {at && (
        <table aria-live="polite">
          <caption data-figure="token">Token {chosen + 1}</caption>
          <tbody>
            {[{ token: at.token, logprob: at.logprob }, ...at.top.filter(({ token }) => token !== at.token)].map(({ token, logprob }, i) => (
              <tr key={i}>
                <th scope="row">
                  <code>{JSON.stringify(token)}</code>
                </th>
                <td class="n">{percent(Math.exp(logprob))}</td>
                <td class="n soft">{logprob.toFixed(3)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
    </div>
  );
}
