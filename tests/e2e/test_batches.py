"""Batches with real processes and trained weights: killed in the middle, driven by OpenAI's own client."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.batches import jsonl, line
from tests.support.cluster import Cluster, Process, served, until
from tests.support.http import COMPLETIONS

pytestmark = [pytest.mark.real, pytest.mark.slow]


def requests(count: int, tokens: int) -> list[dict[str, Any]]:
    return [line(f"r{i}", COMPLETIONS, prompt=f"{i}, {i + 1},", max_tokens=tokens, temperature=0) for i in range(count)]


def texts(raw: bytes) -> dict[str, str]:
    rows = [json.loads(row) for row in raw.splitlines()]
    assert len({row["custom_id"] for row in rows}) == len(rows), "a custom_id came twice"
    return {row["custom_id"]: row["response"]["body"]["choices"][0]["text"] for row in rows}


def client(made: Cluster) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{made.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory, data: Path) -> list[str]:
    state = tmp_path_factory.mktemp("state")
    return ["--data", str(data), "--state", str(state), "--context", "512", "--batch-concurrency", "3"]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, flags: list[str]) -> Iterator[Cluster]:
    with served(tmp_path_factory.mktemp("batch"), 1, *flags) as made:
        yield made


def batch(made: Cluster, *arguments: str) -> Process:
    return made.start("batch", *arguments, "--url", made.url)


def test_a_command_that_is_killed_goes_on_where_it_was(one: Cluster, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(jsonl(requests(24, 24)))
    flags = (str(source), "-o", str(target), "--concurrency", "3")
    for kill in (1, 2):
        process = batch(one, *flags)
        until(lambda so_far=kill: target.exists() and target.read_bytes().count(b"\n") >= 4 * so_far, process.describe)
        process.signal(signal.SIGKILL if kill == 1 else signal.SIGINT)
        assert process.wait() == (-signal.SIGKILL if kill == 1 else 130), process.describe()
        one.until_idle()  # who has gone wants no answer any more
    kept = target.read_bytes()
    assert kept.count(b"\n") < 24
    process = batch(one, *flags)
    assert process.wait() == 0, process.describe()
    assert target.read_bytes().startswith(kept[: kept.rindex(b"\n") + 1])
    found = texts(target.read_bytes())
    assert set(found) == {f"r{i}" for i in range(24)}
    assert found["r7"] == one.texts("7, 8,", 24)[0]


def test_a_command_without_a_server_starts_one(tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(jsonl(requests(3, 4)))
    process = Process(tmp_path / "log", "batch", str(source), "-o", str(target), "--nodes", "1", "--threads", "1", "--context", "256")
    try:
        assert process.wait() == 0, process.describe()
        assert len(texts(target.read_bytes())) == 3
        assert "3 answered" in process.said
    finally:
        process.end()


# OpenAI's own client


def test_the_sdk_works_a_batch_through(one: Cluster, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(jsonl(requests(4, 4)))
    sdk = client(one)
    with source.open("rb") as content:
        file = sdk.files.create(file=content, purpose="batch")
    assert (file.object, file.filename, file.bytes) == ("file", "in.jsonl", source.stat().st_size)
    made = sdk.batches.create(input_file_id=file.id, endpoint=COMPLETIONS, completion_window="24h", metadata={"by": "me"})
    until(lambda: sdk.batches.retrieve(made.id).status == "completed", one.story)
    done = sdk.batches.retrieve(made.id)
    assert done.output_file_id is not None
    assert len(texts(sdk.files.content(done.output_file_id).read())) == 4
    assert (done.metadata, done.endpoint) == ({"by": "me"}, COMPLETIONS)
    assert {f.id for f in sdk.files.list()} >= {file.id, done.output_file_id}
    assert made.id in [b.id for b in sdk.batches.list(limit=1)]  # page by page
    with pytest.raises(openai.ConflictError):
        sdk.batches.cancel(made.id)
    assert sdk.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        sdk.files.retrieve(file.id)


def test_the_sdk_cancels_and_sees_what_is_wrong(one: Cluster) -> None:
    sdk = client(one)
    file = sdk.files.create(file=("in.jsonl", jsonl(requests(200, 200))), purpose="batch")
    made = sdk.batches.create(input_file_id=file.id, endpoint=COMPLETIONS, completion_window="24h")
    assert sdk.batches.cancel(made.id).status in ("cancelling", "cancelled")
    until(lambda: sdk.batches.retrieve(made.id).status == "cancelled", one.story)
    one.until_idle()
    bad = sdk.files.create(file=("in.jsonl", b"nonsense\n"), purpose="batch")
    made = sdk.batches.create(input_file_id=bad.id, endpoint=COMPLETIONS, completion_window="24h")
    until(lambda: sdk.batches.retrieve(made.id).status == "failed", one.story)
    errors = sdk.batches.retrieve(made.id).errors
    assert errors is not None and errors.data is not None
    assert (errors.data[0].line, errors.data[0].code) == (1, "invalid_json_line")


# Heads that end


def test_a_server_that_is_killed_or_ended_goes_on_with_its_batch(one: Cluster, flags: list[str], data: Path) -> None:
    """The last test of this cluster: one head is killed, the next ends in good order, the third gets done."""
    sdk = client(one)
    file = sdk.files.create(file=("in.jsonl", jsonl(requests(24, 24))), purpose="batch")
    older = set((data / "files").glob("*-output"))
    begun = sdk.batches.create(input_file_id=file.id, endpoint=COMPLETIONS, completion_window="24h")
    (output,) = until(lambda: set((data / "files").glob("*-output")) - older, one.story)

    def end(head: Process, number: signal.Signals, answered: int) -> int:
        """After so many answers. The exit status."""
        until(lambda: output.read_bytes().count(b"\n") >= answered, one.story)
        sdk.close()
        head.signal(number)
        status = head.wait()
        assert answered <= output.read_bytes().count(b"\n") < 24
        return status

    def serve_again() -> None:
        one.replace_head(one.serve(*flags))
        until(lambda: one.answers("/health/live"), one.story)

    end(one.head, signal.SIGKILL, 5)
    serve_again()
    assert end(one.head, signal.SIGTERM, 10) == 0, one.head.describe()
    assert "Traceback" not in one.head.said, one.head.said
    assert len(texts(output.read_bytes())) >= 10
    errors = output.with_name(output.name.replace("-output", "-errors"))
    assert errors.read_bytes() == b"", "the shutdown is no request's fault"
    serve_again()
    one.join("--name", "another")

    sdk = client(one)
    until(lambda: sdk.batches.retrieve(begun.id).status == "completed", one.story)
    done = sdk.batches.retrieve(begun.id)
    assert done.request_counts is not None and done.output_file_id is not None
    assert (done.request_counts.total, done.request_counts.completed, done.error_file_id) == (24, 24, None)
    found = texts(sdk.files.content(done.output_file_id).read())
    assert set(found) == {f"r{i}" for i in range(24)}
    assert found["r7"] == one.texts("7, 8,", 24)[0]
    one.until_idle()
