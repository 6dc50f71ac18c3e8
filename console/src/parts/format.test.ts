import { expect, test } from "vitest";
import { bytes, count, countdown, figure, layers, percent, plural, seconds, short, span } from "./format";

const cases = <T,>(shown: (value: T) => string, expected: [T, string][]) => {
  for (const [value, text] of expected) expect(shown(value), String(value)).toBe(text);
};

test("sizes are as the commands print them", () => {
  cases(bytes, [[0, "0 B"], [1023, "1023 B"], [1024, "1.0 KiB"], [1.5 * 2 ** 30, "1.5 GiB"], [3 * 2 ** 40, "3.0 TiB"]]);
});

test("durations have three figures and never round up into the next unit's thousand", () => {
  cases(seconds, [[0, "0"], [0.00000083, "1 µs"], [0.00085, "850 µs"], [0.0009996, "1.0 ms"], [0.0123, "12.3 ms"], [0.09996, "100 ms"], [0.25, "250 ms"], [0.9996, "1.0 s"], [4.24, "4.2 s"], [59.96, "1 min 0 s"], [200, "3 min 20 s"]]);
  cases(span, [[0.4, "0 s"], [59, "59 s"], [3599.7, "1 h 0 min"], [86400 * 2 + 3 * 3600, "2 d 3 h"]]);
  cases(countdown, [[-3, "0:00"], [0.2, "0:01"], [545, "9:05"], [3600, "60:00"]]);
});

test("figures", () => {
  cases(short, [[0, "0"], [0.518, "0.52"], [34.25, "34.3"], [99.97, "100"], [211.4, "211"], [1100, "1100"], [12345, "12.3 k"], [3.4e6, "3.4 M"], [7, "7"], [9.999, "10.0"]]);
  cases(percent, [[0, "0 %"], [0.004, "0.4 %"], [0.0996, "10 %"], [0.61, "61 %"], [1, "100 %"]]);
  expect(count(1234567)).toBe("1,234,567");
  expect(plural(1, "token")).toBe("1 token");
  expect(plural(2, "reply", "replies")).toBe("2 replies");
});

test("layers are said as the head says them", () => {
  expect([layers(0, 15), layers(15, 16), layers(0, 0)]).toEqual(["0–14", "15", "none"]);
});

test("an event's figure has the unit that its name says", () => {
  expect(figure("silence", 0.0213)).toBe("21.3 ms");
  expect(figure("memory_bytes", 2 ** 30)).toBe("1.0 GiB");
  expect(figure("tokens", 311)).toBe("311");
  expect(figure("epoch", 4)).toBe("4");
});
