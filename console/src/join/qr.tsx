import qrcode from "qrcode-generator";
import { useMemo } from "preact/hooks";

/** A text as a QR code: one path, black on white in both themes, since not every reader knows the other way round. */
export function Qr({ text, label }: { text: string; label: string }) {
  const { size, path } = useMemo(() => drawn(text), [text]);
  return (
    <svg class="qr" viewBox={`-4 -4 ${size + 8} ${size + 8}`} role="img" aria-label={label} shape-rendering="crispEdges">
      <rect x="-4" y="-4" width={size + 8} height={size + 8} fill="#fff" />
      <path d={path} fill="#000" />
    </svg>
  );
}

export function drawn(text: string): { size: number; path: string } {
  const made = qrcode(0, "M");
  made.addData(text);
  made.make();
  const size = made.getModuleCount();
  let path = "";
  for (let row = 0; row < size; row++) for (let column = 0; column < size; column++) if (made.isDark(row, column)) path += `M${column} ${row}h1v1h-1z`;
  return { size, path };
}
