"""Batches that are cancelled, expire, or go on in another process."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from shoal.errors import CapacityError
from shoal.gateway.endpoints.batches.state import Batch, BatchStatus
from shoal.gateway.endpoints.batches.store import BatchStore
from tests.support.batches import Api, Clock, Gated, echo, line, run, served
from tests.support.engine import FakeEngine
from tests.support.http import eventually

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
            await eventually(lambda: bool(first.streams))

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


def test_a_batch_that_could_not_be_ended_is_ended_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.gateway.endpoints.batches.runner._REST", 0.01)
    real, failures = BatchStore.move, [CapacityError("the disk is full")] * 3

    def move(self: BatchStore, id: str, to: BatchStatus, **changes: Any) -> Batch:
        if to is BatchStatus.COMPLETED and failures:
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
