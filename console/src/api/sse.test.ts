import { expect, test } from "vitest";
import { MessageParser, messages } from "./sse";

const all = (...parts: string[]) => {
  const parser = new MessageParser();
  return parts.flatMap((part) => parser.push(part));
};

test("a message ends with an empty line, whatever ends lines", () => {
  for (const end of ["\n", "\r", "\r\n"])
    expect(all(`event: cluster${end}id: 7${end}data: {"a":1}${end}${end}`, "data: x\n\n")).toEqual([
      { event: "cluster", data: '{"a":1}' },
      { event: "message", data: "x" },
    ]);
});

test("wherever the text is cut, the messages are the same", () => {
  const text = "\uFEFF: ping\r\nevent: event\r\nid: 12\r\ndata: a\r\ndata:b\r\n\r\ndata: ü€😀\n\nid: 13\n\ndata: c\n\n";
  const whole = all(text);
  expect(whole.map(({ data }) => data)).toEqual(["a\nb", "ü€😀", "c"]);
  for (let first = 0; first <= text.length; first++)
    for (const second of [first, Math.min(text.length, first + 1), text.length]) expect(all(text.slice(0, first), text.slice(first, second), text.slice(second))).toEqual(whole);
});

test("comments, unknown fields and messages without data are passed over", () => {
  expect(all(": hello\n\n", "retry: 5\nfoo\n\n", "event: only\n\n", "data\n\n")).toEqual([{ event: "message", data: "" }]);
});

test("bytes that are cut inside a character are put together", async () => {
  const bytes = new TextEncoder().encode("data: é😀\n\ndata: end");
  const stream = new ReadableStream<Uint8Array>({
    start(controller) {
      for (const byte of bytes) controller.enqueue(Uint8Array.of(byte));
      controller.close();
    },
  });
  const found = [];
  for await (const message of messages(new Response(stream))) found.push(message.data);
  expect(found).toEqual(["é😀"]); // what has no end was not sent whole
});
