/** A share as a bar. The figure beside it says the same in words. tone: '' or 'warn'. */
export function Bar({ share, tone = "", second = 0 }: { share: number; tone?: string; second?: number }) {
  const clip = (value: number): string => `${(Math.min(1, Math.max(0, value)) * 100).toFixed(1)}%`;
  return (
    <span class={`bar ${tone}`} aria-hidden="true">
      {second > 0 && <span class="second" style={{ width: clip(second) }} />}
      <span style={{ width: clip(share) }} />
    </span>
  );
}
