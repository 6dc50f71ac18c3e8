import type { Signal } from "@preact/signals";
import { plural, seconds, time } from "../parts/format";
import { duration } from "./layout";
import type { Watched } from "./watch";

/** The figures of the chosen step, or of the latest. */
export function StepTable({ of, chosen }: { of: Watched; chosen: Signal<number> }) {
  void of.changed.value;
  const { steps, lanes } = of.tape;
  const index = chosen.value >= 0 ? chosen.value : steps.length - 1;
  const step = steps[index];
  if (step === undefined) return null;
  const { number, epoch, at, rows, own, tokens, schedule, encode, send, stages, back, apply } = step;
  const nodes = of.epochs[String(epoch)] ?? lanes.slice(1);
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label="The step's figures">
      <table class="step-table" data-step={number}>
        <caption data-figure="step">
          Step {number} <small class="soft">{chosen.value >= 0 ? "" : "(the latest) "}at {time(at)}, took {seconds(duration(step))}; {plural(rows, "row")}, {own} of this request; {plural(tokens, "token")}</small>
        </caption>
        <thead>
          <tr>
            <th scope="col">where</th>
            {["way to it", "waits", "prepares", "computes", "samples", "encodes"].map((name) => (
              <th key={name} scope="col" class="n">{name}</th>
            ))}
          </tr>
        </thead>
        <tbody>
          <tr>
            <th scope="row">head</th>
            <td class="n">–</td>
            <td class="n">–</td>
            <td class="n">schedules {seconds(schedule)}</td>
            <td class="n">–</td>
            <td class="n">–</td>
            <td class="n">
              {seconds(encode)}, sends {seconds(send)}
            </td>
          </tr>
          {stages.map((parts, i) => (
            <tr key={i}>
              <th scope="row">{nodes[i] ?? `stage ${i + 1}`}</th>
              {parts.map((part, p) => (
                <td key={p} class="n">{seconds(part)}</td>
              ))}
            </tr>
          ))}
          <tr>
            <th scope="row">head</th>
            <td class="n">{seconds(back)}</td>
            <td class="n">–</td>
            <td class="n">applies {seconds(apply)}</td>
            <td class="n">–</td>
            <td class="n">–</td>
            <td class="n">–</td>
          </tr>
        </tbody>
      </table>
    </div>
  );
}
