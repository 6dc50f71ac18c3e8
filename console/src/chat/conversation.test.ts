import { expect, test } from "vitest";
import { body, conversation, exported, Incoming, message, parsedTools, PLAIN, surprise, titled } from "./conversation";

const chunk = (delta: object, more: object = {}) => JSON.stringify({ choices: [{ index: 0, delta, ...more }] });

test("an answer is put together from its chunks, and timed", () => {
  const into = message("assistant");
  const incoming = new Incoming(into, 10, "chatcmpl-1");
  incoming.take(chunk({ role: "assistant", content: "" }), 10.1);
  incoming.take(chunk({ reasoning_content: "Let me " }), 10.5);
  incoming.take(chunk({ reasoning_content: "think." }), 10.6);
  incoming.take(chunk({ content: "Hel" }, { logprobs: { content: [{ token: "Hel", logprob: -0.1, bytes: null, top_logprobs: [{ token: "He", logprob: -2 }] }] } }), 11);
  incoming.take(chunk({ content: "lo" }), 11.5);
  incoming.take(chunk({}, { finish_reason: "stop" }), 11.5);
  incoming.take(JSON.stringify({ choices: [], usage: { prompt_tokens: 20, completion_tokens: 5, prompt_tokens_details: { cached_tokens: 16 } } }), 11.5);
  incoming.take("[DONE]", 11.6);
  expect(into).toMatchObject({ reasoning: "Let me think.", content: "Hello", error: "" });
  expect(into.scored).toEqual([{ token: "Hel", logprob: -0.1, top: [{ token: "He", logprob: -2 }] }]);
  expect(into.figures).toEqual({ first: 0.5, rate: 4, prompt: 20, cached: 16, generated: 5, finish: "stop", request: "chatcmpl-1" });
});

test("calls come in pieces", () => {
  const into = message("assistant");
  const incoming = new Incoming(into, 0, "");
  incoming.take(chunk({ tool_calls: [{ index: 0, id: "call_1", type: "function", function: { name: "weather", arguments: "" } }] }), 1);
  incoming.take(chunk({ tool_calls: [{ index: 0, function: { arguments: '{"city":' } }, { index: 1, id: "call_2", function: { name: "time", arguments: "{}" } }] }), 1);
  incoming.take(chunk({ tool_calls: [{ index: 0, function: { arguments: '"Rome"}' } }] }), 2);
  expect(into.calls).toEqual([
    { id: "call_1", name: "weather", arguments: '{"city":"Rome"}' },
    { id: "call_2", name: "time", arguments: "{}" },
  ]);
});

test("an error in the stream is kept with what came before it", () => {
  const into = message("assistant");
  const incoming = new Incoming(into, 0, "");
  incoming.take(chunk({ content: "Half" }), 1);
  incoming.take(JSON.stringify({ error: { message: "no node can run layers 3 to 9", type: "server_error" } }), 2);
  expect(into).toMatchObject({ content: "Half", error: "no node can run layers 3 to 9" });
});

test("a request has the whole conversation, and only the settings that were set", () => {
  const of = conversation(0, { ...PLAIN, system: "Be brief.", temperature: 0, seed: 7, logprobs: true, model: "m" });
  const called = message("assistant", "", "");
  called.reasoning = "hm";
  called.calls = [{ id: "c1", name: "weather", arguments: "{}" }];
  of.messages = [message("user", "Hi"), called, message("tool", "sunny", "c1"), message("assistant", ""), message("user", "And?")];
  expect(body(of)).toEqual({
    model: "m",
    stream: true,
    stream_options: { include_usage: true },
    temperature: 0,
    seed: 7,
    logprobs: true,
    top_logprobs: 5,
    messages: [
      { role: "system", content: "Be brief." },
      { role: "user", content: "Hi" },
      { role: "assistant", content: "", reasoning_content: "hm", tool_calls: [{ id: "c1", type: "function", function: { name: "weather", arguments: "{}" } }] },
      { role: "tool", tool_call_id: "c1", content: "sunny" },
      { role: "user", content: "And?" },
    ],
  });
});

test("tools are taken bare or as OpenAI has them, one or several", () => {
  const bare = { name: "f", parameters: {} };
  const whole = { type: "function", function: bare };
  expect(parsedTools("")).toEqual([]);
  expect(parsedTools(JSON.stringify(bare))).toEqual([whole]);
  expect(parsedTools(JSON.stringify([whole, bare]))).toEqual([whole, whole]);
  expect(() => parsedTools("{")).toThrow("The tools are not JSON");
});

test("a chat is named after its first line, and can be taken along", () => {
  expect(titled("  Hello\nthere")).toBe("Hello");
  expect(titled("x".repeat(80))).toHaveLength(58);
  expect(titled(" ")).toBe("New chat");
  const of = conversation(0);
  of.title = "Cities";
  of.messages = [message("user", "Name one."), message("assistant", "Rome")];
  expect(exported(of)).toBe("# Cities\n\n**You**\n\nName one.\n\n**Answer**\n\nRome\n");
});

test("surprise is between 0 and 1", () => {
  expect([0, -2.5, -5, -1e9, -Infinity].map(surprise)).toEqual([0, 0.5, 1, 1, 1]);
});

test("a chat that chose no model, or was kept before there was a choice, leaves it to the server", () => {
  const of = conversation(0);
  expect(body(of)).not.toHaveProperty("model");
  const { model: _, ...before } = PLAIN;
  of.settings = before as typeof PLAIN;
  expect(body(of)).not.toHaveProperty("model");
});
