/** Server-sent events, read from a fetch so that the key can travel in a header. */

export interface Message {
  event: string;
  data: string;
}

/** Turns text, however it is cut, into messages. */
export class MessageParser {
  private rest = "";
  private event = "";
  private data: string[] = [];
  private started = false;
  private cr = false;

  push(text: string): Message[] {
    if (!this.started && text) {
      this.started = true;
      if (text.startsWith("\uFEFF")) text = text.slice(1);
    }
    if (this.cr && text.startsWith("\n")) text = text.slice(1);
    if (text) this.cr = text.endsWith("\r");
    const lines = (this.rest + text).split(/\r\n|\r|\n/);
    this.rest = lines.pop() ?? "";
    return lines.flatMap((line) => this.line(line));
  }

  private line(line: string): Message[] {
    if (line === "") return this.dispatch();
    if (line.startsWith(":")) return [];
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "event") this.event = value;
    else if (field === "data") this.data.push(value);
    return [];
  }

  private dispatch(): Message[] {
    const message = { event: this.event || "message", data: this.data.join("\n") };
    const empty = this.data.length === 0;
    this.event = "";
    this.data = [];
    return empty ? [] : [message];
  }
}

/** Ends with the stream; throws what reading throws. */
export async function* messages(response: Response): AsyncGenerator<Message> {
  if (response.body === null) return;
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  const parser = new MessageParser();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield* parser.push(decoder.decode(value, { stream: true }));
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}
