import { expect, test } from "vitest";
import * as format from "./format";
import cases from "./format_cases.json";

const formats = format as unknown as Record<string, (...values: unknown[]) => string>;

// The same cases are those of the formatter that compares the page with the API: tests/support/console_format.py.
test.each(Object.entries(cases))("%s", (name, told) => {
  for (const [values, text] of told as [unknown[], string][]) expect(formats[name]?.(...values), JSON.stringify(values)).toBe(text);
});

test("what has no cases depends on where the browser is", () => {
  expect(Object.keys(format).filter((name) => !(name in cases)).sort()).toEqual(["moment", "time"]);
});
