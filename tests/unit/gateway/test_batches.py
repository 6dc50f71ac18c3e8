"""Batches over an engine without a model."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import time
from typing import Any

import pytest

from shoal.errors import CapacityError, ClusterError, NotReady, QueueFull
from shoal.gateway.app import create_app
from shoal.gateway.auth.key import KeyLimits
from shoal.gateway.auth.key_store import KeyStore
from shoal.gateway.endpoints.batches.state import Batch, Status
from shoal.gateway.endpoints.batches.store import BatchStore
from shoal.request import Priority, Request
from tests.support.batches import Api, Clock, becomes, jsonl, line, served
from tests.support.engine import FakeEngine, ScriptedStream, says, spoken
from tests.support.http import CHAT, COMPLETIONS, fetch


def run(engine: FakeEngine, data: Path, what: Callable[[Api], Awaitable[None]], **options: Any) -> None:
    async def go() -> None:
        async with served(engine, data, **options) as api:
            await what(api)

    asyncio.run(go())


def echo(request: Request) -> list[Any]:
    return spoken(request, bytes(request.prompt).decode())


class Gated(FakeEngine):
    """Answers only prompts that a test lets through."""

    def __init__(self) -> None:
        super().__init__(echo)
        self.open: set[str] = set()

    def submit(self, request: Request) -> ScriptedStream:
        stream = super().submit(request)
        stream._hang = not any(word in bytes(request.prompt).decode() for word in self.open)
        if stream._hang:
            stream._items = []
        return stream

    def prompts(self) -> list[str]:
        return [bytes(stream.request.prompt).decode() for stream in self.streams]


# The way of a batch


def test_a_batch_is_answered_and_every_result_names_its_request(tmp_path: Path) -> None:
    async def go(api: Api) -> None:
        id = await api.begin([line(f"r{i}") for i in range(20)])
        batch = await api.ended(id)
        assert (batch["status"], batch["error_file_id"], batch["errors"]) == ("completed", None, None)
        assert batch["request_counts"] == {"total": 20, "completed": 20, "failed": 0}
        results = await api.results(batch["output_file_id"])
        assert set(results) == {f"r{i}" for i in range(20)}
        for id, result in results.items():
            assert set(result) == {"id", "custom_id", "response", "error"}
            assert (result["error"], result["response"]["status_code"]) == (None, 200)
            assert result["response"]["body"]["choices"][0]["message"]["content"] == f"user: {id}\n"
            assert result["response"]["request_id"] == result["response"]["body"]["id"]
        assert len({result["id"] for result in results.values()}) == 20

    run(FakeEngine(echo), tmp_path, go)


def test_a_batch_shows_all_that_the_sdk_knows_of_one(tmp_path: Path) -> None:
    async def go(api: Api) -> None:
        file = (await api.upload(jsonl([line("a")]))).json()["id"]
        made = (await api.create(file, metadata={"who": "me"})).json()
        assert (made["object"], made["endpoint"], made["input_file_id"], made["completion_window"]) == ("batch", CHAT, file, "24h")
        assert (made["status"], made["metadata"], made["expires_at"] - made["created_at"]) == ("validating", {"who": "me"}, 86400)
        done = await api.ended(made["id"])
        stamps = [done[f"{at}_at"] for at in ("created", "in_progress", "finalizing", "completed")]
        assert stamps == sorted(stamps)
        assert [done[f"{at}_at"] for at in ("failed", "expired", "cancelling", "cancelled")] == [None] * 4

    run(FakeEngine(), tmp_path, go)


def test_completions_are_batched_too(tmp_path: Path) -> None:
    async def go(api: Api) -> None:
        batch = await api.ended(await api.begin([line("a", COMPLETIONS, prompt="Hi", max_tokens=2)], COMPLETIONS))
        (result,) = (await api.results(batch["output_file_id"])).values()
        assert result["response"]["body"]["choices"][0]["text"] == "He"

    run(FakeEngine(), tmp_path, go)


def test_what_the_endpoint_refuses_is_in_the_error_file(tmp_path: Path) -> None:
    async def go(api: Api) -> None:
        hi = [{"role": "user", "content": "Hi"}]
        bad = [line("t", messages=hi, temperature=-1), line("m", messages=hi, model="other")]
        batch = await api.ended(await api.begin([line("a"), *bad]))
        assert batch["request_counts"] == {"total": 3, "completed": 1, "failed": 2}
        errors = await api.results(batch["error_file_id"])
        assert {id: (r["response"]["status_code"], r["response"]["body"]["error"]["param"]) for id, r in errors.items()} == {
            "t": (400, "temperature"),
            "m": (404, "model"),
        }
        assert set(await api.results(batch["output_file_id"])) == {"a"}

    run(FakeEngine(), tmp_path, go)


def test_an_endpoint_that_breaks_is_a_result_and_not_the_end(tmp_path: Path) -> None:
    def broken(request: Request) -> list[Any]:
        if b"bad" in bytes(request.prompt):
            raise RuntimeError("a bug")
        return echo(request)

    async def go(api: Api) -> None:
        batch = await api.ended(await api.begin([line("bad"), line("good")]))
        (error,) = (await api.results(batch["error_file_id"])).values()
        assert (error["custom_id"], error["response"]["status_code"]) == ("bad", 500)
        assert set(await api.results(batch["output_file_id"])) == {"good"}

    run(FakeEngine(broken), tmp_path, go)


# Below interactive requests


def test_the_engine_is_asked_in_the_lowest_class_whatever_a_line_says(tmp_path: Path) -> None:
    engine = FakeEngine()

    async def go(api: Api) -> None:
        tiers = [{}, *({"service_tier": tier} for tier in ("auto", "flex", "batch", "priority"))]
        hi = [{"role": "user", "content": "Hi"}]
        await api.ended(await api.begin([line(f"r{i}", messages=hi, **tier) for i, tier in enumerate(tiers)]))
        assert [stream.request.priority for stream in engine.streams] == [Priority.BATCH] * 5
        await api.http.post(CHAT, json={"messages": hi})
        assert engine.streams[-1].request.priority is Priority.NORMAL

    run(engine, tmp_path, go)


def test_no_more_requests_run_at_once_than_are_set_over_all_batches(tmp_path: Path) -> None:
    engine = Gated()

    async def go(api: Api) -> None:
        ids = [await api.begin([line(f"{name}{i}") for i in range(6)]) for name in "ab"]
        for id in ids:
            await api.until(id, lambda batch: batch["status"] == "in_progress")
        await becomes(lambda: len(engine.streams) >= 3)
        await asyncio.sleep(0.1)
        assert len(engine.streams) == 3

    run(engine, tmp_path, go, batch_concurrency=3)


def test_two_batches_take_turns(tmp_path: Path) -> None:
    engine = FakeEngine(echo)

    async def go(api: Api) -> None:
        ids = [await api.begin([line(f"{name}{i}") for i in range(30)]) for name in "ab"]
        for id in ids:
            await api.ended(id)

    run(engine, tmp_path, go, batch_concurrency=1)
    order = "".join(bytes(s.request.prompt).decode().removeprefix("user: ")[0] for s in engine.streams)
    assert "b" in order[:45] and "a" in order[-45:]


def test_a_client_may_ask_for_the_lowest_class_itself() -> None:
    for options in ({"headers": {"X-Priority": "batch"}}, {"json": {"prompt": "Hi", "service_tier": "batch"}}):
        engine = FakeEngine()
        answer = fetch(create_app(engine), "POST", COMPLETIONS, **{"json": {"prompt": "Hi"}, **options})
        assert (answer.status_code, engine.asked.priority) == (200, Priority.BATCH)


@pytest.mark.parametrize(("tier", "header", "priority"), [("priority", "flex", Priority.FLEX), ("flex", "urgent", Priority.FLEX)])
def test_of_two_classes_the_lower_counts(tier: str, header: str, priority: Priority) -> None:
    engine = FakeEngine()
    fetch(create_app(engine), "POST", COMPLETIONS, json={"prompt": "Hi", "service_tier": tier}, headers={"X-Priority": header})
    assert engine.asked.priority is priority


def test_a_class_that_is_none_is_refused() -> None:
    answer = fetch(create_app(FakeEngine()), "POST", COMPLETIONS, json={"prompt": "Hi"}, headers={"X-Priority": "first"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "X-Priority")


def test_requests_of_a_batch_are_not_kept_for_the_next_engine_unless_they_are_named() -> None:
    engine = FakeEngine()
    for headers in ({}, {"X-Request-Id": "mine"}):
        engine.forget = lambda id: None
        fetch(create_app(engine), "POST", COMPLETIONS, json={"prompt": "Hi", "service_tier": "batch"}, headers=headers)
    assert list(engine.kept) == ["mine"]


# What passes, and what does not


@pytest.mark.parametrize("refusal", [QueueFull(9, 9), NotReady("loading")])
def test_a_full_queue_and_a_model_being_loaded_are_waited_for(tmp_path: Path, refusal: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "shoal.gateway.endpoints.batches.retry_policy.RetryPolicy.pause", lambda self, status, *_: 0.001 if status in (429, 503) else None
    )
    engine = FakeEngine()
    engine.refusal = refusal

    async def go(api: Api) -> None:
        id = await api.begin([line("a")])
        await becomes(lambda: len(engine.observed) >= 12)
        assert (await api.batch(id))["request_counts"]["failed"] == 0
        engine.refusal = None
        assert (await api.ended(id))["request_counts"]["completed"] == 1

    run(engine, tmp_path, go)


def test_a_request_that_the_cluster_fails_at_again_and_again_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.gateway.endpoints.batches.retry_policy.retry_after", lambda *_: 0.0)
    monkeypatch.setattr("shoal.gateway.endpoints.batches.retry_policy._FIRST", 0.001)
    engine = FakeEngine(lambda request: [ClusterError("a stage failed")])

    async def go(api: Api) -> None:
        batch = await api.ended(await api.begin([line("a")]))
        (error,) = (await api.results(batch["error_file_id"])).values()
        assert error["response"]["status_code"] == 503

    run(engine, tmp_path, go)
    assert len(engine.streams) == 5


# Validation


BAD_LINES: list[tuple[Any, str]] = [
    ({**line("a"), "method": "GET"}, "invalid_method"),
    (line("a", COMPLETIONS), "invalid_url"),
    ({**line("a"), "extra": 1}, "unknown_parameter"),
    ({"method": "POST"}, "invalid_custom_id"),
    ([], "invalid_json_line"),
    ({**line("a"), "body": 3}, "invalid_body"),
    (line("a", messages=[], stream=True), "unsupported_parameter"),
    (line("first"), "duplicate_custom_id"),
]


@pytest.mark.parametrize(("bad", "code"), BAD_LINES, ids=[code for _, code in BAD_LINES])
def test_a_line_that_is_no_request_fails_the_batch_before_anything_runs(tmp_path: Path, bad: Any, code: str) -> None:
    engine = FakeEngine()

    async def go(api: Api) -> None:
        batch = await api.ended(await api.begin([line("first"), bad]))
        assert (batch["status"], batch["output_file_id"], engine.streams) == ("failed", None, [])
        (error,) = batch["errors"]["data"]
        assert (error["line"], error["code"]) == (2, code)
        assert batch["failed_at"] is not None

    run(engine, tmp_path, go)


def test_an_empty_file_is_no_batch(tmp_path: Path) -> None:
    async def go(api: Api) -> None:
        file = (await api.upload(b"\n \n")).json()["id"]
        batch = await api.ended((await api.create(file)).json()["id"])
        assert (batch["status"], batch["errors"]["data"][0]["code"]) == ("failed", "empty_file")

    run(FakeEngine(), tmp_path, go)


def test_too_many_requests_are_no_batch(tmp_path: Path) -> None:
    async def go(api: Api) -> None:
        batch = await api.ended(await api.begin(line(str(i)) for i in range(5)))
        assert [(e["code"], e["line"]) for e in batch["errors"]["data"]] == [("too_many_requests", 5)]

    run(FakeEngine(), tmp_path, go, batch_requests=4)


BAD_BODIES = [
    ({"input_file_id": "file-none"}, "input_file_id"),
    ({"input_file_id": "../../etc/passwd"}, "input_file_id"),
    ({"endpoint": "/v1/files"}, "endpoint"),
    ({"completion_window": "1h"}, "completion_window"),
    ({"metadata": {"k" * 65: ""}}, "metadata"),
    ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
    ({"nope": 1}, "nope"),
    ({"output_expires_after": {"anchor": "created_at", "seconds": 3600}}, "output_expires_after"),
]


@pytest.mark.parametrize(("change", "param"), BAD_BODIES)
def test_what_makes_no_batch_is_refused(tmp_path: Path, change: dict[str, Any], param: str) -> None:
    async def go(api: Api) -> None:
        file = (await api.upload(jsonl([line("a")]))).json()["id"]
        body = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h", **change}
        answer = await api.http.post("/v1/batches", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"].split(".")[0] == param

    run(FakeEngine(), tmp_path, go, works=False)


def test_more_batches_than_the_queue_holds_are_refused(tmp_path: Path) -> None:
    async def go(api: Api) -> None:
        file = (await api.upload(jsonl([line("a")]))).json()["id"]
        statuses = [(await api.create(file)).status_code for _ in range(3)]
        assert statuses == [200, 200, 429]

    run(FakeEngine(), tmp_path, go, works=False, batch_queue=2)


# Cancelling and expiring


def test_a_cancelled_batch_keeps_what_was_answered(tmp_path: Path) -> None:
    engine = Gated()
    engine.open = {"r0\n", "r1\n"}

    async def go(api: Api) -> None:
        id = await api.begin([line(f"r{i}") for i in range(9)])
        await api.until(id, lambda batch: batch["request_counts"]["completed"] == 2)
        asked = (await api.http.post(f"/v1/batches/{id}/cancel")).json()
        assert asked["status"] == "cancelling"
        assert (await api.http.post(f"/v1/batches/{id}/cancel")).status_code == 200
        batch = await api.ended(id)
        assert batch["status"] == "cancelled"
        assert None not in (batch["cancelling_at"], batch["cancelled_at"])
        assert set(await api.results(batch["output_file_id"])) == {"r0", "r1"}
        errors = await api.results(batch["error_file_id"])
        assert {e["error"]["code"] for e in errors.values()} == {"batch_cancelled"}
        assert set(errors) == {f"r{i}" for i in range(2, 9)}
        assert all(stream.closed for stream in engine.streams if stream._hang)

    run(engine, tmp_path, go, batch_concurrency=4)


def test_what_has_ended_cannot_be_cancelled(tmp_path: Path) -> None:
    async def go(api: Api) -> None:
        id = await api.begin([line("a")])
        await api.ended(id)
        answer = await api.http.post(f"/v1/batches/{id}/cancel")
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")

    run(FakeEngine(), tmp_path, go)


def test_a_batch_expires_with_what_it_has(tmp_path: Path) -> None:
    engine = Gated()
    engine.open = {"r0\n"}

    async def go(api: Api) -> None:
        id = await api.begin([line(f"r{i}") for i in range(3)])
        await api.until(id, lambda batch: batch["request_counts"]["completed"] == 1)
        api.clock.ahead = 86401
        batch = await api.ended(id)
        assert (batch["status"], batch["request_counts"]) == ("expired", {"total": 3, "completed": 1, "failed": 2})
        assert set(await api.results(batch["output_file_id"])) == {"r0"}
        assert {e["error"]["code"] for e in (await api.results(batch["error_file_id"])).values()} == {"batch_expired"}

    run(engine, tmp_path, go)


def test_a_batch_whose_window_was_over_while_nobody_worked_expires(tmp_path: Path) -> None:
    clock, made = Clock(), list[str]()

    async def begin(api: Api) -> None:
        made.append(await api.begin([line("a")]))

    async def end(api: Api) -> None:
        assert (await api.ended(made[0]))["status"] == "expired"

    run(FakeEngine(), tmp_path, begin, works=False)
    clock.ahead = 90000
    engine = FakeEngine()
    run(engine, tmp_path, end, clock=clock)
    assert engine.streams == []


# Several processes, one after another and at once


def test_a_batch_goes_on_where_the_process_before_left_it(tmp_path: Path) -> None:
    made: list[str] = []
    before, after = Gated(), FakeEngine(echo)
    before.open = {f"r{i}\n" for i in range(5)}

    async def begin(api: Api) -> None:
        made.append(await api.begin([line(f"r{i}") for i in range(12)]))
        await api.until(made[0], lambda batch: batch["request_counts"]["completed"] == 5)

    async def end(api: Api) -> None:
        batch = await api.ended(made[0])
        assert batch["request_counts"] == {"total": 12, "completed": 12, "failed": 0}
        assert len(await api.results(batch["output_file_id"])) == 12

    run(before, tmp_path, begin)
    run(after, tmp_path, end)
    assert {bytes(s.request.prompt).decode() for s in after.streams} == {f"user: r{i}\n" for i in range(5, 12)}


def test_a_torn_result_is_asked_for_again(tmp_path: Path) -> None:
    made: list[str] = []
    before = Gated()
    before.open = {"r0\n", "r1\n"}

    async def begin(api: Api) -> None:
        made.append(await api.begin([line(f"r{i}") for i in range(3)]))
        await api.until(made[0], lambda batch: batch["request_counts"]["completed"] == 2)

    async def end(api: Api) -> None:
        batch = await api.ended(made[0])
        assert len(await api.results(batch["output_file_id"])) == 3

    run(before, tmp_path, begin)
    (output,) = (tmp_path / "files").glob("*-output")
    output.write_bytes(output.read_bytes()[:-7])
    after = FakeEngine(echo)
    run(after, tmp_path, end)
    assert len(after.streams) == 2


def test_of_two_processes_one_works_a_batch_off_and_the_other_takes_over(tmp_path: Path) -> None:
    first, second = Gated(), FakeEngine(echo)

    async def go() -> None:
        async with served(second, tmp_path) as api:
            await api.ended(await api.begin([line("a")]))
            async with served(first, tmp_path) as other:
                id = await other.begin([line(f"r{i}") for i in range(10)])
                batch = await other.ended(id)
                assert batch["request_counts"]["completed"] == 10
        assert first.streams == []
        async with served(first, tmp_path) as other:
            await other.begin([line("late")])
            await becomes(lambda: bool(first.streams))

    asyncio.run(go())


def test_a_batch_waits_for_the_model_that_it_was_made_for(tmp_path: Path) -> None:
    another = FakeEngine()
    another.name = "another"
    made: list[str] = []

    async def begin(api: Api) -> None:
        made.append(await api.begin([line("a"), line("b")]))

    async def wait(api: Api) -> None:
        id = await api.begin([line("c")])
        assert (await api.ended(id))["model"] == "another"
        assert (await api.batch(made[0]))["status"] == "validating"
        await api.http.post(f"/v1/batches/{made[0]}/cancel")  # for which it needs no model
        assert (await api.ended(made[0]))["status"] == "cancelled"

    run(FakeEngine(), tmp_path, begin, works=False)
    run(another, tmp_path, wait)
    assert len(another.streams) == 1


def test_a_batch_whose_input_somebody_removed_fails_and_keeps_its_results(tmp_path: Path) -> None:
    engine = Gated()
    engine.open = {"r0\n"}
    made: list[str] = []

    async def begin(api: Api) -> None:
        made.append(await api.begin([line(f"r{i}") for i in range(3)]))
        batch = await api.until(made[0], lambda batch: batch["request_counts"]["completed"] == 1)
        (tmp_path / "files" / batch["input_file_id"]).unlink()

    async def end(api: Api) -> None:
        batch = await api.ended(made[0])
        assert (batch["status"], batch["errors"]["data"][0]["code"]) == ("failed", "file_not_found")
        assert set(await api.results(batch["output_file_id"])) == {"r0"}

    run(engine, tmp_path, begin)
    run(FakeEngine(), tmp_path, end)


# Lists


def test_batches_are_listed_page_by_page_newest_first(tmp_path: Path) -> None:
    async def go(api: Api) -> None:
        file = (await api.upload(jsonl([line("a")]))).json()["id"]
        ids = [(await api.create(file)).json()["id"] for _ in range(5)]
        first = (await api.http.get("/v1/batches", params={"limit": 2})).json()
        assert ([b["id"] for b in first["data"]], first["has_more"]) == ([ids[4], ids[3]], True)
        rest = (await api.http.get("/v1/batches", params={"limit": 3, "after": first["last_id"]})).json()
        assert ([b["id"] for b in rest["data"]], rest["has_more"]) == ([ids[2], ids[1], ids[0]], False)
        assert (rest["first_id"], rest["last_id"]) == (ids[2], ids[0])

    run(FakeEngine(), tmp_path, go, works=False)


@pytest.mark.parametrize(
    "params", [{"limit": "0"}, {"limit": "101"}, {"limit": "x"}, {"after": "batch_no"}, {"order": "asc"}, {"nope": "1"}]
)
def test_a_page_that_is_none_is_refused(tmp_path: Path, params: dict[str, str]) -> None:
    async def go(api: Api) -> None:
        answer = await api.http.get("/v1/batches", params=params)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, next(iter(params)))

    run(FakeEngine(), tmp_path, go, works=False)


def test_what_is_not_there_is_404(tmp_path: Path) -> None:
    async def go(api: Api) -> None:
        for answer in (await api.http.get("/v1/batches/batch_x"), await api.http.post("/v1/batches/batch_x/cancel")):
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "batch_not_found")

    run(FakeEngine(), tmp_path, go, works=False)


def test_the_requests_and_tokens_of_a_batch_count_for_its_owner_s_key_and_are_not_limited_by_it(tmp_path: Path) -> None:
    keys = KeyStore(tmp_path)
    _, token = keys.create("alice", time(), KeyLimits(requests=2, tokens=1))

    async def go(api: Api) -> None:
        api.http.headers["Authorization"] = f"Bearer {token}"
        await api.ended(await api.begin([line(f"r{i}") for i in range(4)]))
        api.service.keyring.flush()
        (key,) = keys.all()
        assert (key.requests, key.prompt_tokens, key.completion_tokens) == (2 + 4, 4 * len("user: r0\n"), 4 * 6)

    run(FakeEngine(), tmp_path, go)


def test_a_server_without_settings_keeps_nothing() -> None:
    assert fetch(create_app(FakeEngine(says("x"))), "GET", "/v1/batches").status_code == 404


def test_outputs_are_private(tmp_path: Path) -> None:
    async def go(api: Api) -> None:
        await api.ended(await api.begin([line("a")]))
        kept = [path for path in data.rglob("*") if path.is_file()]
        assert len(kept) >= 4
        assert {path.stat().st_mode & 0o777 for path in kept} == {0o600}
        assert {folder.stat().st_mode & 0o777 for folder in (data, data / "files")} == {0o700}

    data = tmp_path / "data"
    run(FakeEngine(), data, go)


def test_a_batch_that_could_not_be_ended_is_ended_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.gateway.endpoints.batches.runner._REST", 0.01)
    real, failures = BatchStore.move, [CapacityError("the disk is full")] * 3

    def move(self: BatchStore, id: str, to: Status, **changes: Any) -> Batch:
        if to is Status.COMPLETED and failures:
            raise failures.pop()
        return real(self, id, to, **changes)

    monkeypatch.setattr(BatchStore, "move", move)

    async def go(api: Api) -> None:
        batch = await api.ended(await api.begin([line("a"), line("b", messages=[])]))
        assert (batch["status"], batch["request_counts"]) == ("completed", {"total": 2, "completed": 1, "failed": 1})
        files = (await api.http.get("/v1/files", params={"purpose": "batch_output"})).json()["data"]
        assert {file["id"] for file in files} == {batch["output_file_id"], batch["error_file_id"]}

    run(FakeEngine(), tmp_path, go)
    assert failures == []


def test_a_disk_that_fails_for_a_while_costs_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.gateway.endpoints.batches.runner._REST", 0.01)
    real, writes = os.write, [0]

    def write(file: int, data: bytes) -> int:
        if b"custom_id" in bytes(data):
            writes[0] += 1
            if writes[0] % 3 == 2:
                raise OSError(28, "No space left on device")
        return real(file, data)

    async def go(api: Api) -> None:
        file = (await api.upload(jsonl(line(f"r{i}") for i in range(12)))).json()["id"]
        monkeypatch.setattr(os, "write", write)
        batch = await api.ended((await api.create(file)).json()["id"])
        assert batch["request_counts"] == {"total": 12, "completed": 12, "failed": 0}
        assert len(await api.results(batch["output_file_id"])) == 12

    run(FakeEngine(echo), tmp_path, go, batch_concurrency=2)
    assert writes[0] > 3
