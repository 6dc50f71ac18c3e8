import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import type { ExpertsView } from "../api/types";
import { dark } from "../parts/theme";
import { count, percent } from "../parts/format";
import { useLoaded } from "../parts/loaded";
import { Failed } from "../parts/page";
import { evenness } from "./state";

/** Which experts compute how many rows: a row of the picture for each layer, a column for each expert. */
export function Experts({ pipeline }: { pipeline: string }) {
  const { value, failed } = useLoaded<ExpertsView>(`operator/experts?pipeline=${encodeURIComponent(pipeline)}`, 5);
  const canvas = useRef<HTMLCanvasElement>(null);
  const [at, setAt] = useState<[number, number] | null>(null);
  const layers = useMemo(
    () =>
      Object.entries(value?.rows ?? {})
        .map(([layer, rows]) => ({ layer: Number(layer), rows, ...evenness(rows) }))
        .sort((a, b) => a.layer - b.layer),
    [value],
  );
  const columns = Math.max(1, ...layers.map(({ rows }) => rows.length));
  const isDark = dark.value;
  useEffect(() => {
    const drawn = canvas.current?.getContext("2d");
    if (!drawn || layers.length === 0) return;
    const image = drawn.createImageData(columns, layers.length);
    layers.forEach(({ rows }, y) => {
      const total = rows.reduce((sum, n) => sum + n, 0);
      rows.forEach((n, x) => {
        // 0 to twice the mean takes most of the scale; what is beyond is at its end
        const heat = total > 0 ? Math.min(1, Math.sqrt((n * rows.length) / total / 4)) : 0;
        image.data.set([...shade(heat, isDark), 255], (y * columns + x) * 4);
      });
    });
    drawn.putImageData(image, 0, 0);
  }, [layers, columns, isDark]);
  if (failed) return <Failed text={failed} />;
  if (layers.length === 0) return <p class="soft">No expert has computed anything yet.</p>;
  const chosen = at && layers[at[1]];
  const rows = chosen ? (chosen.rows[at[0]] ?? 0) : 0;
  const mean = chosen ? chosen.rows.reduce((sum, n) => sum + n, 0) / Math.max(1, chosen.rows.length) : 0;
  return (
    <>
      <div class="heat">
        <canvas
          ref={canvas}
          width={columns}
          height={layers.length}
          role="img"
          aria-label="Rows by layer and expert; the table below has the figures"
          onPointerMove={(event) => {
            const box = event.currentTarget.getBoundingClientRect();
            const x = Math.floor(((event.clientX - box.left) / box.width) * columns);
            const y = Math.floor(((event.clientY - box.top) / box.height) * layers.length);
            setAt([x, y]);
          }}
          onPointerLeave={() => setAt(null)}
        />
      </div>
      <p class="soft heat-at" data-figure="rows">
        {chosen && at
          ? `layer ${chosen.layer}, expert ${at[0]}: ${count(rows)} rows, ${mean > 0 ? (rows / mean).toFixed(2) : "0"} × the mean`
          : "A row for each layer, a column for each expert; the darker, the more rows it has computed."}
      </p>
      <details>
        <summary>Figures by layer</summary>
        <div class="scroll" tabIndex={0} role="region" aria-label="Expert use by layer">
          <table>
            <thead>
              <tr>
                <th scope="col">layer</th>
                <th scope="col" class="n">rows</th>
                <th scope="col" class="n">busiest expert</th>
                <th scope="col" class="n">× the mean</th>
                <th scope="col" class="n">evenness</th>
              </tr>
            </thead>
            <tbody>
              {layers.map((layer) => (
                <tr key={layer.layer}>
                  <th scope="row">{layer.layer}</th>
                  <td class="n">{count(layer.rows.reduce((sum, n) => sum + n, 0))}</td>
                  <td class="n">{layer.ratio > 0 ? layer.busiest : "–"}</td>
                  <td class="n">{layer.ratio.toFixed(2)}</td>
                  <td class="n">{percent(layer.even)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      </details>
    </>
  );
}

/** From the ground to the accent. */
function shade(heat: number, isDark: boolean): [number, number, number] {
  const [from, to] = isDark
    ? ([[24, 32, 34], [126, 231, 228]] as const)
    : ([[240, 244, 243], [6, 74, 82]] as const);
  const mix = (i: 0 | 1 | 2): number => Math.round(from[i] + (to[i] - from[i]) * heat);
  return [mix(0), mix(1), mix(2)];
}
