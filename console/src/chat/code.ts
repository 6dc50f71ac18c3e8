/** What most languages have in common, coloured: comments, strings, numbers, common keywords. */

export type Kind = "" | "comment" | "string" | "number" | "word";

const WORDS =
  "and|as|assert|async|await|begin|break|case|catch|class|const|continue|def|default|del|do|done|elif|else|end|enum|except|export|extends|extern|false|False|fi|finally|fn|for|from|func|function|global|go|if|impl|implements|import|in|include|interface|is|lambda|let|match|mod|mut|namespace|new|nil|None|not|null|or|package|pass|private|protected|public|pub|raise|return|select|self|static|struct|super|switch|template|then|this|throw|trait|true|True|try|type|typedef|use|using|var|void|where|while|with|yield|SELECT|FROM|WHERE|INSERT|INTO|VALUES|UPDATE|SET|DELETE|CREATE|TABLE|JOIN|ON|GROUP|ORDER|BY|LIMIT|AND|OR|NOT";
const PARTS = new RegExp(
  [
    String.raw`(?<comment>\/\*[\s\S]*?(?:\*\/|$)|\/\/[^\n]*|(?<![\w$&])#(?![\w]*[({;])[^\n]*|--\s[^\n]*|<!--[\s\S]*?(?:-->|$))`,
    String.raw`(?<string>"""[\s\S]*?(?:"""|$)|'''[\s\S]*?(?:'''|$)|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'|\x60(?:\\.|[^\x60\\])*\x60?)`,
    String.raw`(?<number>\b(?:0x[\da-fA-F_]+|\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?)\b)`,
    `(?<word>\\b(?:${WORDS})\\b)`,
  ].join("|"),
  "g",
);
const LONGEST = 20_000;

/** Parts of the text, in order; together they are the text. */
export function coloured(text: string): [Kind, string][] {
  if (text.length > LONGEST) return [["", text]];
  const parts: [Kind, string][] = [];
  let at = 0;
  for (const match of text.matchAll(PARTS)) {
    if (match.index > at) parts.push(["", text.slice(at, match.index)]);
    const kind = Object.entries(match.groups ?? {}).find(([, found]) => found !== undefined)?.[0] ?? "";
    parts.push([kind as Kind, match[0]]);
    at = match.index + match[0].length;
  }
  if (at < text.length) parts.push(["", text.slice(at)]);
  return parts;
}
