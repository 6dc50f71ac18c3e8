"""Keys and their limits hold for what upstreams answer; batches go on to them, too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from shoal.gateway.auth.key import KeyLimits
from shoal.gateway.auth.key_store import KeyStore
from tests.support.fake_upstream import FakeUpstream, chunk, said, streamed
from tests.support.forwarding import CHAT, HI, Gateway, over
from tests.support.gate import bearer
from tests.support.http import eventually


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path)


def key(store: KeyStore, limits: KeyLimits) -> Mapping[str, str]:
    return bearer(store.create("one", 0.0, limits)[1])


def used(gate: Gateway, store: KeyStore) -> tuple[int, int, int]:
    gate.service.keyring.flush()
    (one,) = store.all()
    return one.requests, one.prompt_tokens, one.completion_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_of_upstreams_are_counted_and_limited(stream: bool, store: KeyStore) -> None:
    async def work(gate: Gateway, far: FakeUpstream) -> None:
        status = (await gate.stream())[0] if stream else (await gate.chat()).status_code
        assert status == 200
        assert used(gate, store) == (1, 11, 3)
        refused = await gate.chat()
        assert refused.status_code == 429 and refused.json()["error"]["type"] == "tokens" and len(far.heard) == 1
        assert refused.headers["retry-after"]

    over(work, FakeUpstream(), folder=store.path.parent, headers=key(store, KeyLimits(tokens=14)))


def test_requests_are_limited_and_the_limits_told(store: KeyStore) -> None:
    async def work(gate: Gateway, far: FakeUpstream) -> None:
        answer = await gate.chat()
        assert answer.headers["x-ratelimit-remaining-requests"] == "0"
        assert (await gate.chat()).status_code == 429 and len(far.heard) == 1

    far = FakeUpstream(answer=lambda _: said({"id": "a"}, x_ratelimit_remaining_requests="999"))
    over(work, far, folder=store.path.parent, headers=key(store, KeyLimits(requests=1)))


def test_an_answer_without_usage_costs_an_estimate(store: KeyStore) -> None:
    async def work(gate: Gateway, far: FakeUpstream) -> None:
        await gate.stream()
        _, prompt, completion = used(gate, store)
        assert prompt == len(far.heard[0].raw) // 4 and completion == 2

    far = FakeUpstream(answer=lambda _: streamed(chunk("a"), chunk("b"), b"data: [DONE]\n\n"))
    over(work, far, folder=store.path.parent, headers=key(store, KeyLimits()))


def test_without_a_key_nothing_reaches_an_upstream(store: KeyStore) -> None:
    key(store, KeyLimits())

    async def work(gate: Gateway, far: FakeUpstream) -> None:
        assert (await gate.chat()).status_code == 401 and not far.heard

    over(work, FakeUpstream(), folder=store.path.parent)


def test_a_batch_asks_the_upstream_and_is_charged(store: KeyStore) -> None:
    lines = [json.dumps({"custom_id": str(i), "method": "POST", "url": CHAT, "body": {"model": "far", "messages": HI}}) for i in range(3)]

    async def work(gate: Gateway, far: FakeUpstream) -> None:
        sent = await gate.http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("b.jsonl", "\n".join(lines).encode())})
        assert sent.status_code == 200, sent.text
        made = await gate.http.post("/v1/batches", json={"input_file_id": sent.json()["id"], "endpoint": CHAT, "completion_window": "24h"})
        assert made.status_code == 200, made.text
        batch: dict[str, Any] = {}

        async def done() -> bool:
            batch.update((await gate.http.get(f"/v1/batches/{made.json()['id']}")).json())
            return batch["status"] in ("completed", "failed")

        while not await done():
            await eventually(lambda: True)
        assert batch["request_counts"] == {"total": 3, "completed": 3, "failed": 0}, batch
        assert len(far.heard) == 3 and {heard.headers["x-priority"] for heard in far.heard} == {"batch"}
        requests, prompt, completion = used(gate, store)
        assert (prompt, completion) == (33, 9) and requests >= 3

    over(work, FakeUpstream(), folder=store.path.parent, headers=key(store, KeyLimits()))
