import type { ComponentChild, VNode } from "preact";
import { expect, test } from "vitest";
import { coloured } from "./code";
import { rendered, safeAddress } from "./markdown";

interface Seen {
  tags: string[];
  hrefs: string[];
  text: string;
}

/** What a browser would be given. Components are called as Preact would call them, without state. */
function seen(children: ComponentChild | ComponentChild[], into: Seen = { tags: [], hrefs: [], text: "" }): Seen {
  for (const child of Array.isArray(children) ? children : [children]) {
    if (Array.isArray(child)) seen(child, into);
    else if (typeof child === "string" || typeof child === "number") into.text += child;
    else if (child !== null && typeof child === "object") {
      const { type, props } = child as VNode<Record<string, unknown>>;
      expect(props).not.toHaveProperty("dangerouslySetInnerHTML");
      expect(Object.keys(props).filter((name) => /^on/i.test(name) && typeof props[name] !== "function")).toEqual([]);
      if (typeof type === "string") {
        into.tags.push(type);
        if (props["href"] !== undefined) into.hrefs.push(String(props["href"]));
        if (type === "a") expect(props["rel"]).toContain("noopener");
        seen(props["children"] as ComponentChild[], into);
      } else into.text += String(props["text"] ?? "");
    }
  }
  return into;
}

const ALLOWED = new Set(["p", "h3", "ul", "ol", "li", "strong", "em", "del", "code", "pre", "br", "hr", "a", "span", "blockquote", "div", "table", "thead", "tbody", "tr", "th", "td"]);

const HOSTILE = [
  "<script>alert(1)</script>",
  "<img src=x onerror=alert(1)>",
  "hello <b onclick='alert(1)'>bold</b> <svg/onload=alert(1)>",
  "<iframe src='https://evil.example'></iframe>",
  "[click](javascript:alert(1)) [click](JaVaScRiPt:alert(1)) [x](data:text/html,<script>1</script>) [y](vbscript:x)",
  "[a](java\nscript:alert(1)) <javascript:alert(1)> [b](&#106;avascript:alert(1))",
  "![pixel](https://evil.example/pixel.png) ![x](javascript:alert(1))",
  "[ref]: javascript:alert(1)\n\n[ref]",
  "| <script>a</script> | b |\n|---|---|\n| <img onerror=x> | [z](javascript:1) |",
  "- <style>*{display:none}</style>\n- [ ] <input autofocus onfocus=alert(1)>",
  "```html\n<script>alert(1)</script>\n```",
  "> <form action=https://evil.example><button>",
  "`<script>`",
  "<!-- --><script>",
];

for (const text of HOSTILE)
  test(`nothing of ${JSON.stringify(text)} becomes markup`, () => {
    const found = seen(rendered(text));
    expect(found.tags.filter((tag) => !ALLOWED.has(tag))).toEqual([]);
    expect(found.hrefs.filter((href) => !/^(https?|mailto):/.test(href))).toEqual([]);
  });

test("markup is shown as it was written", () => {
  expect(seen(rendered("<script>alert(1)</script>")).text).toContain("<script>alert(1)</script>");
  expect(seen(rendered("a <b>c</b> & d &lt; &amp;lt; e")).text).toBe("a <b>c</b> & d < &lt; e");
});

test("an image is a link, so that nothing is asked of another server until somebody follows it", () => {
  const found = seen(rendered("![a picture](https://elsewhere.example/x.png)"));
  expect(found.tags).not.toContain("img");
  expect(found).toMatchObject({ hrefs: ["https://elsewhere.example/x.png"], text: "a picture" });
});

test("what Markdown has is shown", () => {
  const found = seen(rendered("# Title\n\nSome *em*, **strong**, ~~gone~~ and `code`.\n\n1. one\n2. two\n   - inner\n\n- [x] done\n\n> quoted\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n\n---\n\nhttps://shoal.example\n"));
  for (const tag of ["h3", "em", "strong", "del", "code", "ol", "ul", "li", "blockquote", "table", "th", "td", "hr", "a"]) expect(found.tags, tag).toContain(tag);
  expect(found.hrefs).toEqual(["https://shoal.example/"]);
});

test("addresses", () => {
  expect(["https://a.example/?b=c", "mailto:a@b.example", "//a.example", "/x", "javascript:1", " javascript:1", "file:///etc/passwd", "blob:x"].map(safeAddress)).toEqual([
    "https://a.example/?b=c",
    "mailto:a@b.example",
    ...Array<undefined>(6).fill(undefined),
  ]);
});

test("colouring keeps the text, and finds comments, strings, numbers and words", () => {
  const code = 'def add(a, b):  # sums "them"\n    return a + 0x1F if "x\\"y" else \'z\'\n// more\n/* open';
  const parts = coloured(code);
  expect(parts.map(([, text]) => text).join("")).toBe(code);
  const of = (kind: string) => parts.filter(([found]) => found === kind).map(([, text]) => text);
  expect(of("comment")).toEqual(['# sums "them"', "// more", "/* open"]);
  expect(of("string")).toEqual(['"x\\"y"', "'z'"]);
  expect(of("number")).toEqual(["0x1F"]);
  expect(of("word")).toEqual(["def", "return", "if", "else"]);
  for (const text of ["", "`".repeat(1000), '"'.repeat(999), "/*".repeat(5000), "a".repeat(30_000)]) expect(coloured(text).map(([, part]) => part).join("")).toBe(text);
});
