"""What makes no batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.batches import Api, jsonl, line, run
from tests.support.engine import FakeEngine
from tests.support.http import CHAT, COMPLETIONS

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
