/** Markdown as elements. Nothing is ever parsed as HTML, so no text can inject any: markup in it is shown as text. */
import { Lexer, type Token, type Tokens } from "marked";
import { type ComponentChild, type VNode } from "preact";
import { memo } from "preact/compat";
import { Copy } from "../parts/copy";
import { coloured } from "./code";

export const Markdown = memo(function Markdown({ text }: { text: string }) {
  return <div class="markdown">{rendered(text)}</div>;
});

export function rendered(text: string): ComponentChild[] {
  return blocks(new Lexer({ gfm: true, breaks: false }).lex(text));
}

/** An address that a link may have; undefined: none. */
export function safeAddress(href: string): string | undefined {
  try {
    const url = new URL(href);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : undefined;
  } catch {
    return undefined;
  }
}

function blocks(tokens: readonly Token[]): ComponentChild[] {
  return tokens.map((token, i) => block(token as Tokens.Generic & Token, i));
}

function block(token: Token, key: number): ComponentChild {
  switch (token.type) {
    case "space":
    case "def":
      return null;
    case "hr":
      return <hr key={key} />;
    case "heading": {
      const { depth, tokens = [] } = token as Tokens.Heading;
      return (
        <h3 key={key} class={`depth-${depth}`}>
          {inlines(tokens)}
        </h3>
      );
    }
    case "code":
      return <Code key={key} text={(token as Tokens.Code).text} language={(token as Tokens.Code).lang ?? ""} />;
    case "blockquote":
      return <blockquote key={key}>{blocks((token as Tokens.Blockquote).tokens)}</blockquote>;
    case "list":
      return list(token as Tokens.List, key);
    case "table":
      return table(token as Tokens.Table, key);
    case "paragraph":
      return <p key={key}>{inlines((token as Tokens.Paragraph).tokens)}</p>;
    case "text": {
      const { tokens, text } = token as Tokens.Text;
      return <span key={key}>{tokens ? inlines(tokens) : entities(text)}</span>;
    }
    case "html":
      return <p key={key}>{token.raw.trim()}</p>;
    default:
      return inline(token, key);
  }
}

function list(token: Tokens.List, key: number): VNode {
  const items = token.items.map((item, i) => (
    <li key={i} class={item.task ? "task" : undefined}>
      {item.task && <span aria-label={item.checked ? "done" : "to do"}>{item.checked ? "☑ " : "☐ "}</span>}
      {blocks(item.tokens.filter(({ type }) => type !== "checkbox"))}
    </li>
  ));
  return token.ordered ? (
    <ol key={key} start={typeof token.start === "number" ? token.start : 1}>
      {items}
    </ol>
  ) : (
    <ul key={key}>{items}</ul>
  );
}

function table(token: Tokens.Table, key: number): VNode {
  const side = (at: Tokens.TableCell): string => (at.align === "right" ? "n" : "");
  return (
    <div key={key} class="scroll" tabIndex={0} role="region" aria-label="Table">
      <table>
        <thead>
          <tr>
            {token.header.map((at, i) => (
              <th key={i} scope="col" class={side(at)}>
                {inlines(at.tokens)}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {token.rows.map((row, r) => (
            <tr key={r}>
              {row.map((at, i) => (
                <td key={i} class={side(at)}>
                  {inlines(at.tokens)}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function inlines(tokens: readonly Token[]): ComponentChild[] {
  return tokens.map((token, i) => inline(token, i));
}

function inline(token: Token, key: number): ComponentChild {
  switch (token.type) {
    case "strong":
      return <strong key={key}>{inlines((token as Tokens.Strong).tokens)}</strong>;
    case "em":
      return <em key={key}>{inlines((token as Tokens.Em).tokens)}</em>;
    case "del":
      return <del key={key}>{inlines((token as Tokens.Del).tokens)}</del>;
    case "codespan":
      return <code key={key}>{(token as Tokens.Codespan).text}</code>;
    case "br":
      return <br key={key} />;
    case "link": {
      const { href, tokens } = token as Tokens.Link;
      const address = safeAddress(href);
      if (address === undefined) return <span key={key}>{inlines(tokens)}</span>;
      return (
        <a key={key} href={address} target="_blank" rel="noopener noreferrer nofollow">
          {inlines(tokens)}
        </a>
      );
    }
    case "image": {
      // Showing it would ask another server for it.
      const { href, text } = token as Tokens.Image;
      const address = safeAddress(href);
      return address === undefined ? (
        <span key={key}>{text}</span>
      ) : (
        <a key={key} href={address} target="_blank" rel="noopener noreferrer nofollow">
          {text || "image"}
        </a>
      );
    }
    case "text": {
      const { tokens, text } = token as Tokens.Text;
      return tokens ? <span key={key}>{inlines(tokens)}</span> : entities(text);
    }
    case "escape":
      return (token as Tokens.Escape).text;
    default:
      return token.raw;
  }
}

const NAMED: Record<string, string> = { amp: "&", lt: "<", gt: ">", quot: '"', nbsp: "\u00A0" };

function entities(text: string): string {
  return text.replace(/&(?:(amp|lt|gt|quot|nbsp)|#(\d{1,6})|#x([0-9a-f]{1,5}));/gi, (all, name: string | undefined, decimal: string | undefined, hex: string | undefined) => {
    if (name) return NAMED[name.toLowerCase()] ?? all;
    const point = decimal ? Number(decimal) : Number.parseInt(hex ?? "", 16);
    return point > 0 && point <= 0x10ffff ? String.fromCodePoint(point) : all;
  });
}

function Code({ text, language }: { text: string; language: string }) {
  const name = /^[\w+#.-]{1,20}/.exec(language)?.[0] ?? "";
  return (
    <div class="code">
      <div class="code-head">
        <span>{name || "code"}</span>
        <Copy text={text} what={name ? `the ${name} code` : "the code"} />
      </div>
      <pre tabIndex={0}>
        <code>{coloured(text).map(([kind, part], i) => (kind ? <span key={i} class={`c-${kind}`}>{part}</span> : part))}</code>
      </pre>
    </div>
  );
}
