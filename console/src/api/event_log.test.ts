import { expect, test } from "vitest";
import { EventLog } from "./event_log";

const event = (number: number) => ({ number, at: number, kind: "joined", message: `event ${number}`, node: "", figures: {} });

test("events that are known already are not added twice", () => {
  const log = new EventLog();
  log.add([event(1), event(2)]);
  log.add([event(2), event(3)]);
  expect(log.items.map(({ number }) => number)).toEqual([1, 2, 3]);
  expect(log.latest).toBe(3);
});

test("only the latest are kept", () => {
  const log = new EventLog(10);
  log.add(Array.from({ length: 25 }, (_, i) => event(i + 1)));
  expect(log.items.map(({ number }) => number)).toEqual([16, 17, 18, 19, 20, 21, 22, 23, 24, 25]);
  log.clear();
  expect(log.latest).toBe(0);
});
