"""Lists of batches, and whose batches and outputs are."""

from __future__ import annotations

from pathlib import Path
from time import time

import pytest

from shoal.gateway.auth.key import KeyLimits
from shoal.gateway.auth.key_store import KeyStore
from tests.support.app import app_of
from tests.support.batches import Api, jsonl, line, run
from tests.support.engine import FakeEngine, says
from tests.support.http import fetch


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
    assert fetch(app_of(FakeEngine(says("x"))), "GET", "/v1/batches").status_code == 404


def test_outputs_are_private(tmp_path: Path) -> None:
    async def go(api: Api) -> None:
        await api.ended(await api.begin([line("a")]))
        kept = [path for path in data.rglob("*") if path.is_file()]
        assert len(kept) >= 4
        assert {path.stat().st_mode & 0o777 for path in kept} == {0o600}
        assert {folder.stat().st_mode & 0o777 for folder in (data, data / "files")} == {0o700}

    data = tmp_path / "data"
    run(FakeEngine(), data, go)
