"""The pure parts of batches: lines in, lines out, what a torn output holds, the states, when to ask again."""

from __future__ import annotations

import asyncio
import io
import json
import os
from collections.abc import Iterable
from email.utils import formatdate
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import ConfigError, Conflict
from shoal.gateway.endpoints.batches.line import LONGEST_LINE, BatchItem, Invalid, Line, lines_of, parsed
from shoal.gateway.endpoints.batches.output import Output
from shoal.gateway.endpoints.batches.result import Done, answered, read, refused, unanswered
from shoal.gateway.endpoints.batches.retry_policy import RetryPolicy, retry_after
from shoal.gateway.endpoints.batches.state import MOVES, Batch, BatchStatus, moved
from tests.support.batches import jsonl, line
from tests.support.http import CHAT, COMPLETIONS


def lines(raw: bytes, urls: Iterable[str] = (CHAT,)) -> list[Line]:
    return list(parsed(lines_of(io.BytesIO(raw)), tuple(urls)))


def asked(id: str, number: int = 1) -> BatchItem:
    return BatchItem(number, id, CHAT, b"{}")


def only(raw: bytes) -> Invalid:
    (found,) = lines(raw)
    assert isinstance(found, Invalid), found
    return found


# Lines


def test_lines_are_numbered_as_an_editor_does_and_blank_ones_are_none() -> None:
    found = lines(b"\n" + jsonl([line("a")]) + b"  \r\n" + jsonl([line("b")]))
    assert [(each.line, each.custom_id) for each in found] == [(2, "a"), (4, "b")]


def test_the_last_line_needs_no_end() -> None:
    assert [each.custom_id for each in lines(jsonl([line("a"), line("b")]).rstrip())] == ["a", "b"]


def test_a_body_reaches_the_endpoint_as_it_was() -> None:
    body = {"prompt": 'é😀"\n', "temperature": 0.1, "logit_bias": {"5": -1}, "stop": None}
    (found,) = lines(jsonl([line("a", COMPLETIONS, **body)]), (COMPLETIONS,))
    assert isinstance(found, BatchItem)
    assert json.loads(found.body) == body


def test_a_line_that_is_too_long_is_one_line() -> None:
    found = lines(jsonl([line("a", messages=["x" * LONGEST_LINE]), line("b")]))
    assert [(type(each), each.line) for each in found] == [(Invalid, 1), (BatchItem, 2)]
    assert isinstance(found[0], Invalid) and found[0].code == "line_too_long"


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"{", "invalid_json_line"),
        (b"\xff", "invalid_json_line"),
        (b"[" * 100_000, "invalid_json_line"),
        (b'"text"', "invalid_json_line"),
        (b'{"custom_id": ""}', "invalid_custom_id"),
        (b'{"custom_id": "\\ud800"}', "invalid_custom_id"),
        (json.dumps({"custom_id": "x" * 513}).encode(), "invalid_custom_id"),
        (json.dumps({**line("a"), "method": "post"}).encode(), "invalid_method"),
        (json.dumps({**line("a"), "url": 5}).encode(), "invalid_url"),
    ],
)
def test_what_is_no_request_is_said(raw: bytes, code: str) -> None:
    assert (only(raw).line, only(raw).code) == (1, code)


def test_a_custom_id_that_comes_again_names_both_lines() -> None:
    _, _, again = lines(jsonl([line("a"), line("b"), line("a")]))
    assert isinstance(again, Invalid)
    assert (again.line, again.code) == (3, "duplicate_custom_id")
    assert "line 1" in again.message


@given(st.binary(max_size=300))
def test_any_bytes_are_lines_that_are_requests_or_are_none(raw: bytes) -> None:
    found = lines(raw)
    assert [each.line for each in found] == [n for n, part in enumerate(raw.split(b"\n"), 1) if part.strip()]


# Results


def test_a_body_that_is_no_json_is_told_of() -> None:
    result = json.loads(answered(asked("a"), "1", 502, "req_1", b"<html>\xff"))
    assert (result["response"]["status_code"], result["response"]["body"]["error"]["message"]) == (502, "<html>\ufffd")


Result = tuple[str, Any]
RESULTS = st.lists(st.tuples(st.sampled_from(["ok", "refused", "expired", "line"]), st.text(max_size=5)), max_size=8)


def written(kinds: list[tuple[str, str]]) -> list[bytes]:
    out: list[bytes] = []
    for number, (kind, text) in enumerate(kinds):
        request = asked(f"{number}{text}".encode(errors="replace").decode(), number)
        match kind:
            case "ok":
                out.append(answered(request, "x", 200, "r", json.dumps({"text": text}).encode()))
            case "refused":
                out.append(answered(request, "x", 400, "r", b"{}"))
            case "expired":
                out.append(unanswered(request, "x", "batch_expired", text))
            case _:
                out.append(refused(Invalid(number, "invalid_url", text), "x"))
    return out


@given(RESULTS, st.data())
def test_of_an_output_that_was_torn_anywhere_every_whole_result_counts(kinds: list[tuple[str, str]], data: st.DataObject) -> None:
    rows = written(kinds)
    whole = b"".join(rows)
    cut = data.draw(st.integers(0, len(whole)))
    done = read(io.BytesIO(whole[:cut]), "out")
    kept = next(n for n in range(len(rows), -1, -1) if len(b"".join(rows[:n])) <= cut)
    assert done.end == len(b"".join(rows[:kept]))
    assert len(done.ids) + len(done.lines) == kept
    assert done.completed == sum(kind == "ok" for kind, _ in kinds[:kept])
    assert done.failed == sum(kind in ("refused", "expired") for kind, _ in kinds[:kept])
    for number, (kind, text) in enumerate(kinds):
        request = asked(f"{number}{text}".encode(errors="replace").decode())
        assert done.covers(Invalid(number, "", "") if kind == "line" else request) == (number < kept)


@pytest.mark.parametrize("row", [b"text\n", b"{}\n", b"[]\n", b'{"custom_id": "a", "response": null, "error": null}\n', b"\0\0\n"])
def test_what_is_no_output_is_left_alone(row: bytes) -> None:
    with pytest.raises(ConfigError, match="line 2"):
        read([written([("ok", "")])[0], row], "out")


# The file


def test_a_torn_output_goes_on_behind_its_last_whole_line(tmp_path: Path) -> None:

    rows = written([("ok", ""), ("ok", ""), ("ok", "")])
    path = tmp_path / "out.jsonl"
    path.write_bytes(rows[0] + rows[1][:-1])
    output = Output(path)
    assert output.done == Done({"0"}, set(), 1, 0, len(rows[0]))

    async def write() -> None:
        await asyncio.gather(*(output.append(row) for row in rows[1:]))

    asyncio.run(write())
    assert sorted(path.read_bytes().splitlines()) == sorted(b"".join(rows).splitlines())
    assert output.done.ids == {"0", "1", "2"}
    output.close()


def test_two_do_not_write_one_output(tmp_path: Path) -> None:
    output = Output(tmp_path / "out")
    with pytest.raises(ConfigError, match="another process"):
        Output(tmp_path / "out")
    output.close()
    Output(tmp_path / "out").close()


def test_after_a_disk_failed_an_output_takes_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    first, second = written([("ok", ""), ("ok", "")])
    output = Output(tmp_path / "out")
    real = os.write

    def full(file: int, data: bytes) -> int:
        if len(data) < 20:
            raise OSError(28, "No space left on device")
        return real(file, data[: len(data) - 10])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        asyncio.run(output.append(first))
    monkeypatch.undo()
    with pytest.raises(OSError, match="No space"):
        asyncio.run(output.append(second))
    output.abandon()
    again = Output(tmp_path / "out")
    assert again.done.end == 0
    asyncio.run(again.append(first))
    again.close()
    assert (tmp_path / "out").read_bytes() == first


# States


BATCH = Batch(id="batch_1", owner="", model="m", endpoint=CHAT, input_file_id="file-1", created_at=5, expires_at=9)


@given(st.lists(st.sampled_from(BatchStatus)))
def test_a_batch_moves_along_its_picture_or_not_at_all(wanted: list[BatchStatus]) -> None:
    batch, way = BATCH, [BatchStatus.VALIDATING]
    for at, status in enumerate(wanted, 10):
        if status in MOVES[batch.status]:
            batch = moved(batch, status, at)
            way.append(status)
            assert batch.wire()[f"{status}_at"] == at
        else:
            with pytest.raises(Conflict):
                moved(batch, status, at)
    assert len(set(way)) == len(way), "a status comes once"
    assert batch.wire()["status"] == way[-1]
    assert set(batch.reached) == set(way[1:])
    assert batch.open == (way[-1] not in ("completed", "failed", "expired", "cancelled"))


def test_every_status_leads_to_an_end() -> None:
    ends = {status for status, after in MOVES.items() if not after}
    for _ in BatchStatus:
        ends |= {status for status, after in MOVES.items() if after & ends}
    assert ends == set(BatchStatus)


# RetryPolicy


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, 0), ("", 0), ("7", 7), ("soon", 0), ("-3", 0), ("99999999", 600), (formatdate(1030, usegmt=True), 30), (formatdate(5), 0)],
)
def test_what_a_server_asks_for_in_seconds_or_as_a_date(header: str | None, seconds: float) -> None:
    assert retry_after(header, 1000) == seconds


def test_a_full_queue_is_waited_for_without_end_and_ever_longer() -> None:
    patience, rng = RetryPolicy(), Random(0)
    pauses = [patience.pause(429, "queue_full", None, 0, rng) or 0 for _ in range(50)]
    assert 0.25 <= pauses[0] <= 0.5
    assert all(15 <= pause <= 30 for pause in pauses[10:])


def test_no_pause_is_shorter_than_the_server_asks() -> None:
    assert RetryPolicy().pause(503, "not_ready", "45", 0, Random(0)) == 45


def test_a_failure_that_repeats_is_the_answer() -> None:
    patience, rng = RetryPolicy(), Random(0)
    assert [patience.pause(503, "unavailable", None, 0, rng) is None for _ in range(5)] == [False] * 4 + [True]


@pytest.mark.parametrize("status", [200, 400, 404, 413, 500])
def test_what_will_not_change_is_the_answer(status: int) -> None:
    assert RetryPolicy().pause(status, None, "1", 0, Random(0)) is None


def test_a_byte_order_mark_before_the_first_line_is_none_of_it() -> None:
    raw = b'{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {}}'
    first, second = parsed([b"\xef\xbb\xbf" + raw, b"\xef\xbb\xbf" + raw], ("/v1/completions",))
    assert isinstance(first, BatchItem) and first.custom_id == "a"
    assert isinstance(second, Invalid) and second.code == "invalid_json_line"
