import type { ComponentChildren } from "preact";

/** A page's heading, with what belongs beside it, and its content. */
export function Page({ title, beside, children, wide = false }: { title: string; beside?: ComponentChildren; children: ComponentChildren; wide?: boolean }) {
  return (
    <div class={wide ? "page wide" : "page"}>
      <header class="page-head">
        <h1 tabIndex={-1}>{title}</h1>
        {beside}
      </header>
      {children}
    </div>
  );
}

/** A figure with its name. id: what the API calls it. */
export function Figure({ name, value, note, id }: { name: string; value: ComponentChildren; note?: ComponentChildren; id: string }) {
  return (
    <div class="figure" data-figure={id}>
      <dt>{name}</dt>
      <dd>
        <b>{value}</b>
        {note && <small>{note}</small>}
      </dd>
    </div>
  );
}

export function Failed({ text }: { text: string }) {
  return text ? <p class="failed" data-figure="failed">{text}</p> : null;
}
