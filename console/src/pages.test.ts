import { expect, test } from "vitest";
import { CLIENTS, curl, shell } from "./connect/clients";
import { joinLine } from "./join/lines";
import { drawn } from "./join/qr";
import { keyBody, NEW } from "./keys/wanted";
import { href, parseHash } from "./route";

test("a hash names a page, and what is shown on it", () => {
  expect(parseHash("")).toEqual({ page: "cluster", rest: "" });
  expect(parseHash("#/nowhere/x")).toEqual({ page: "cluster", rest: "x" });
  expect(parseHash("#/timeline/%")).toEqual({ page: "timeline", rest: "" });
  expect(href("cluster", "org/model:Q4_K_M/2")).toBe("#/cluster/org%2Fmodel%3AQ4_K_M%2F2");
  for (const pipeline of ["tiny/1", "org/model:Q4_K_M/2"]) expect(parseHash(`#/cluster/${pipeline}`)).toEqual({ page: "cluster", rest: pipeline });
  for (const id of ["chatcmpl-1", "a/b c%?#<x>", "ü"]) expect(parseHash(href("timeline", id))).toEqual({ page: "timeline", rest: id });
});

test("whatever a model or a key is called, a line to paste has it as one word", () => {
  for (const name of ["a'b", "$(rm -rf ~)", "a b", "`x`", "a\nb", ""]) expect(shell(name)).toBe(`'${name.replace(/'/g, "'\\''")}'`);
  expect(shell("qwen2.5-coder:1.5b")).toBe("qwen2.5-coder:1.5b");
  const hostile = { url: "http://head:8000", model: `x'; rm -rf ~ #"</script>`, key: "" };
  expect(curl(hostile)).toContain(`'\\''`);
});

test("every client has the address, the model and the key", () => {
  const server = { url: "http://head:8000", model: "smollm2-135m", key: "sk-shoal-x" };
  for (const client of CLIENTS) {
    expect(client.text(server), client.name).toContain(server.url);
    expect(client.text(server), client.name).toContain(server.key);
    expect(client.text({ ...server, key: "" }), client.name).not.toContain("sk-shoal");
  }
});

test("Windows joins by Python's launcher", () => {
  expect(joinLine("Windows", "shoal join 192.168.1.20:7420 --code 7QFK-3M9X")).toBe("py -m shoal join 192.168.1.20:7420 --code 7QFK-3M9X");
  expect(joinLine("Linux", "shoal join x")).toBe("shoal join x");
});

test("a QR code is square, with its three finders", () => {
  const { size, path } = drawn("shoal join 192.168.1.20:7420 --code 7QFK-3M9X");
  expect((size - 17) % 4).toBe(0);
  for (const [x, y] of [[0, 0], [size - 7, 0], [0, size - 7]] as const) for (let i = 0; i < 7; i++) expect(path).toContain(`M${x + i} ${y}h1v1h-1z`);
});

test("a key's expiry is a moment, and none where none was set", () => {
  expect(keyBody({ ...NEW, name: " alice ", days: 2, rpm: 60 }, 1000.4)).toEqual({ name: "alice", role: "user", rpm: 60, tokens_per_minute: 0, concurrency: 0, priority: "urgent", expires: 173800 });
  expect(keyBody({ ...NEW, name: "b" }, 0)).not.toHaveProperty("expires");
});
