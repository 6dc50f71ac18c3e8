"""`shoal batch`, against a server in this process whose answers a test decides."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from shoal.cli.batch import Server, _batch
from shoal.cli.options import node_settings
from shoal.config import EngineSettings
from shoal.errors import ClusterError, ConfigError
from shoal.gateway.endpoints.batches.retry_policy import RetryPolicy
from tests.support.batches import jsonl, line
from tests.support.cluster import free_port
from tests.support.http import CHAT, COMPLETIONS
from tests.support.server import serving

pytestmark = pytest.mark.slow

Answer = Callable[[str, int], Response]
"""What is answered to a custom_id, the how manieth time it is asked, from 1 on."""


def fine(id: str, _: int) -> Response:
    return JSONResponse({"said": id}, headers={"X-Request-Id": f"chatcmpl-{id}"})


def error(status: int, code: str = "", **headers: str) -> Response:
    return JSONResponse({"error": {"message": "no", "type": "x", "param": None, "code": code}}, status, headers)


class Asked:
    """Who asked what."""

    def __init__(self, answer: Answer) -> None:
        self.counts: Counter[str] = Counter()
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.at_once = self.most_at_once = 0
        self.app = FastAPI()

        @self.app.post("/v1/{path:path}")
        async def post(request: Request, path: str) -> Response:
            id = str((await request.json())["messages"][0]["content"])
            self.counts[id] += 1
            self.headers.append(dict(request.headers))
            self.paths.append(path)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            await asyncio.sleep(0.001)
            self.at_once -= 1
            return answer(id, self.counts[id])


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.gateway.endpoints.batches.retry_policy._FIRST", 0.001)
    monkeypatch.setattr("shoal.gateway.endpoints.batches.retry_policy._MOST", 0.005)


@contextmanager
def server(answer: Answer = fine) -> Iterator[tuple[Asked, Callable[..., None]]]:
    """What was asked, and the command that asks."""
    asked = Asked(answer)
    with serving(asked.app) as url:

        def batch(source: Path, target: Path, concurrency: int = 4, key: str = "") -> None:
            run(Server(url, key, 600), source, target, concurrency)

        yield asked, batch


def run(server: Server, source: Path, target: Path, concurrency: int = 4) -> None:
    asyncio.run(_batch(EngineSettings(), node_settings(), 1, server, source, target, concurrency))


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    source = tmp_path / "in.jsonl"
    source.write_bytes(jsonl(line(f"r{i}") for i in range(10)))
    return source, tmp_path / "out.jsonl"


def results(target: Path) -> dict[str | None, Any]:
    """By their custom_id: None where a line had none."""
    rows = [json.loads(row) for row in target.read_bytes().splitlines()]
    assert len({row["custom_id"] for row in rows}) == len(rows)
    return {row["custom_id"]: row for row in rows}


def test_every_request_has_its_result(files: tuple[Path, Path]) -> None:
    with server() as (asked, batch):
        batch(*files, key="secret")
    found = results(files[1])
    assert set(found) == {f"r{i}" for i in range(10)}
    for id, row in found.items():
        assert row["response"] == {"status_code": 200, "request_id": f"chatcmpl-{id}", "body": {"said": id}}
        assert row["error"] is None
    assert set(asked.counts.values()) == {1}
    assert {(h["x-priority"], h["authorization"]) for h in asked.headers} == {("batch", "Bearer secret")}


def test_each_line_goes_to_its_endpoint(tmp_path: Path) -> None:
    urls = [CHAT, COMPLETIONS, "/v1/embeddings", "/v1/responses"]
    (tmp_path / "in").write_bytes(jsonl({**line(url), "url": url} for url in urls))
    with server() as (asked, batch):
        batch(tmp_path / "in", tmp_path / "out", concurrency=1)
    assert [f"/v1/{path}" for path in asked.paths] == urls


def test_no_more_run_at_once_than_are_set(files: tuple[Path, Path]) -> None:
    with server() as (asked, batch):
        batch(*files, concurrency=3)
    assert asked.most_at_once == 3


def test_what_is_done_is_not_done_again(files: tuple[Path, Path]) -> None:
    with server() as (asked, batch):
        batch(*files)
        before = files[1].read_bytes()
        batch(*files)
        assert set(asked.counts.values()) == {1}
        files[0].write_bytes(files[0].read_bytes() + jsonl([line("more")]))
        batch(*files)
    assert files[1].read_bytes().startswith(before)
    assert set(asked.counts.values()) == {1}
    assert "more" in results(files[1])


@pytest.mark.parametrize("cut", [1, 5, 60])
def test_a_torn_last_line_is_done_again_and_nothing_else(files: tuple[Path, Path], cut: int) -> None:
    with server() as (_, batch):
        batch(*files)
    files[1].write_bytes(files[1].read_bytes()[:-cut])
    with server() as (asked, batch):
        batch(*files)
    assert sum(asked.counts.values()) == 1
    assert len(results(files[1])) == 10


def test_a_server_that_is_full_or_loading_is_asked_again(files: tuple[Path, Path]) -> None:
    def full(id: str, time: int) -> Response:
        return fine(id, time) if time > 7 else error(429) if time % 2 else error(503, "not_ready")

    with server(full) as (asked, batch):
        batch(*files)
    assert set(asked.counts.values()) == {8}
    assert {row["response"]["status_code"] for row in results(files[1]).values()} == {200}


def test_retry_after_is_honoured(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float | None] = []

    class Impatient(RetryPolicy):
        def pause(self, status: int, code: str | None, header: str | None, now: float, rng: Random) -> float | None:
            pauses.append(super().pause(status, code, header, now, rng))
            return None if pauses[-1] is None else 0.0

    monkeypatch.setattr("shoal.cli.batch.RetryPolicy", Impatient)
    with server(lambda id, time: fine(id, time) if time > 1 or id != "r3" else error(429, **{"Retry-After": "17"})) as (_, batch):
        batch(*files)
    assert [pause for pause in pauses if pause is not None] == [17.0]


def test_what_was_refused_is_a_result_and_the_status_says_so(files: tuple[Path, Path]) -> None:
    with server(lambda id, time: error(400, "bad") if id == "r3" else fine(id, time)) as (asked, batch):
        for _ in range(2):
            with pytest.raises(ClusterError, match="1 of 10"):
                batch(*files)
    assert asked.counts["r3"] == 1
    assert results(files[1])["r3"]["response"]["body"]["error"]["code"] == "bad"


def test_a_cluster_that_fails_at_a_request_is_asked_five_times(files: tuple[Path, Path]) -> None:
    poison = server(lambda id, time: error(503, "unavailable") if id == "r3" else fine(id, time))
    with poison as (asked, batch), pytest.raises(ClusterError, match="1 of 10"):
        batch(*files)
    assert asked.counts["r3"] == 5


@pytest.mark.parametrize("status", [401, 403])
def test_without_a_key_nothing_is_written(files: tuple[Path, Path], status: int) -> None:
    with server(lambda *_: error(status)) as (_, batch), pytest.raises(ConfigError, match="--api-key"):
        batch(*files)
    assert files[1].read_bytes() == b""


def test_a_server_that_is_gone_ends_the_run_and_loses_nothing(files: tuple[Path, Path]) -> None:
    with pytest.raises(ClusterError, match="does not answer"):
        run(Server(f"http://127.0.0.1:{free_port()}", "", 0.05), *files)
    with server() as (_, batch):
        batch(*files)
    assert len(results(files[1])) == 10


def test_invalid_lines_are_results_with_their_number(files: tuple[Path, Path]) -> None:
    good = files[0].read_bytes()
    files[0].write_bytes(b"nonsense\n" + good + jsonl([{**line("x"), "url": "/v1/nothing"}]))
    with server() as (asked, batch):
        for _ in range(2):
            with pytest.raises(ClusterError, match="2 of 12"):
                batch(*files)
        rows = results(files[1])
        assert (rows[None]["error"]["line"], rows["x"]["error"]["line"]) == (1, 12)
        assert (rows["x"]["error"]["code"], rows["x"]["error"]["param"]) == ("invalid_url", "url")
        assert set(asked.counts.values()) == {1}
        files[0].write_bytes(b"\n" + good)
        batch(*files)  # mended


def test_a_custom_id_that_comes_twice_is_refused_before_anything_runs(files: tuple[Path, Path]) -> None:
    files[0].write_bytes(files[0].read_bytes() + jsonl([line("r3")]))
    with server() as (asked, batch), pytest.raises(ConfigError, match=r"line 11.*r3.*line 4"):
        batch(*files)
    assert (asked.counts, files[1].exists()) == (Counter(), False)


def test_results_of_other_requests_are_left_alone(files: tuple[Path, Path], tmp_path: Path) -> None:
    with server() as (asked, batch):
        batch(*files)
        other = tmp_path / "other.jsonl"
        other.write_bytes(jsonl([line("other")]))
        before = files[1].read_bytes()
        with pytest.raises(ConfigError, match="other requests"):
            batch(other, files[1])
    assert files[1].read_bytes() == before
    assert asked.counts["other"] == 0


def test_the_input_is_not_the_output(files: tuple[Path, Path]) -> None:
    before = files[0].read_bytes()
    with pytest.raises(ConfigError, match="is the input"):
        run(Server("http://127.0.0.1:1", "", 0), files[0], files[0])
    assert files[0].read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_a_file_without_requests_is_a_mistake(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "in").write_bytes(content)
    with pytest.raises(ConfigError, match="no requests"):
        run(Server("http://127.0.0.1:1", "", 0), tmp_path / "in", tmp_path / "out")


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        run(Server("http://127.0.0.1:1", "", 0), tmp_path / "in", tmp_path / "out")


def test_an_output_that_cannot_be_written_is_said(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot write"):
        run(Server("http://127.0.0.1:1", "", 0), files[0], tmp_path / "no" / "out")


def test_it_says_how_far_it_is_and_what_came_of_it(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.cli.batch._EVERY", 0.0)
    with server() as (_, batch):
        batch(*files)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert [line for line in shown.err.splitlines() if " of " in line] == [f"{i} of 10" for i in range(1, 11)]
    assert "10 answered, 0 not; 10 asked now" in shown.err
