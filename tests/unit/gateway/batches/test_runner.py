"""The way of a batch: its results, its place below interactive requests, and what it waits for."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from shoal.errors import ClusterError, NotReady, QueueFull, ShoalError
from shoal.request import Priority, Request
from tests.support.app import app_of
from tests.support.batches import Api, Gated, echo, jsonl, line, run
from tests.support.engine import FakeEngine
from tests.support.http import CHAT, COMPLETIONS, eventually, fetch

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
        await eventually(lambda: len(engine.streams) >= 3)
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
        answer = fetch(app_of(engine), "POST", COMPLETIONS, **{"json": {"prompt": "Hi"}, **options})
        assert (answer.status_code, engine.asked.priority) == (200, Priority.BATCH)


@pytest.mark.parametrize(("tier", "header", "priority"), [("priority", "flex", Priority.FLEX), ("flex", "urgent", Priority.FLEX)])
def test_of_two_classes_the_lower_counts(tier: str, header: str, priority: Priority) -> None:
    engine = FakeEngine()
    fetch(app_of(engine), "POST", COMPLETIONS, json={"prompt": "Hi", "service_tier": tier}, headers={"X-Priority": header})
    assert engine.asked.priority is priority


def test_a_class_that_is_none_is_refused() -> None:
    answer = fetch(app_of(FakeEngine()), "POST", COMPLETIONS, json={"prompt": "Hi"}, headers={"X-Priority": "first"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "X-Priority")


def test_requests_of_a_batch_are_not_kept_for_the_next_engine_unless_they_are_named() -> None:
    engine = FakeEngine()
    for headers in ({}, {"X-Request-Id": "mine"}):
        engine.forget = lambda answer: None
        fetch(app_of(engine), "POST", COMPLETIONS, json={"prompt": "Hi", "service_tier": "batch"}, headers=headers)
    assert list(engine.kept) == ["mine"]


# What passes, and what does not


@pytest.mark.parametrize("refusal", [QueueFull(9, 9), NotReady("loading")])
def test_a_full_queue_and_a_model_being_loaded_are_waited_for(tmp_path: Path, refusal: ShoalError, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "shoal.gateway.endpoints.batches.retry_policy.RetryPolicy.pause", lambda self, status, *_: 0.001 if status in (429, 503) else None
    )
    engine = FakeEngine()
    engine.refusal = refusal

    async def go(api: Api) -> None:
        id = await api.begin([line("a")])
        await eventually(lambda: len(engine.observed) >= 12)
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


# Lists


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
