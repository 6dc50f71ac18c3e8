import { layers, percent } from "../parts/format";
import type { Segment } from "./state";

/** All layers as one bar, coloured by machine; below it, if it is known, where a step's time goes, in the same colours. */
export function LayerBar(props: { parts: readonly Segment[]; total: number; colours: Map<string, string>; label: string; time?: boolean }) {
  const { parts, total, colours } = props;
  const known = props.time === true && parts.some((part) => part.share > 0);
  const rest = Math.max(0, 1 - parts.reduce((sum, part) => sum + part.share, 0));
  const told = parts.map((p) => `${p.node || "nobody"}: ${p.end - p.first === 1 ? "layer" : "layers"} ${layers(p.first, p.end)}`).join("; ");
  return (
    <figure class="layer-bar" role="img" aria-label={`${props.label}. ${told}`}>
      <div class="segments" data-figure="layers">
        {parts.map((part) => (
          <div
            key={`${part.first}`}
            class={part.node ? "" : "nobody"}
            style={{ flexGrow: part.end - part.first, "--c": colours.get(part.node) ?? "var(--line)" }}
            title={`${part.node || "nobody"}: layers ${layers(part.first, part.end)} of ${total}`}
          >
            {(part.end - part.first) / Math.max(total, 1) > 0.09 && (
              <>
                <b>{part.node || "nobody"}</b>
                <span>{layers(part.first, part.end)}</span>
              </>
            )}
          </div>
        ))}
      </div>
      {known && (
        <div class="segments shares" data-figure="shares">
          {parts.map((part) => (
            <div
              key={`${part.first}`}
              style={{ flexGrow: Math.max(part.share, 0.001), "--c": colours.get(part.node) ?? "var(--line)" }}
              title={`${part.node}: ${percent(part.share)} of a step`}
            >
              {part.share > 0.07 && <span>{percent(part.share)}</span>}
            </div>
          ))}
          {rest > 0.005 && (
            <div class="nobody" style={{ flexGrow: rest }} title={`between the stages and in the head: ${percent(rest)}`}>
              {rest > 0.14 && <span>wire, head</span>}
            </div>
          )}
        </div>
      )}
    </figure>
  );
}
