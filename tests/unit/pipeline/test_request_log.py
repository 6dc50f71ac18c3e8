"""The file of requests under way: written, torn, locked, full, written anew."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from shoal.errors import ConfigError
from shoal.pipeline import log_file, records, request_log
from shoal.pipeline.request_log import RequestLog
from shoal.request import FinishReason, Request, RequestId, Score, TokenChunk


def asked(answer: str, count: int = 1) -> list[Request]:
    return [Request(RequestId(f"{answer}-{i}"), [1, 2, 3], 9) for i in range(count)]


def chunk(answer: str, token: int, i: int = 0, finish: FinishReason | None = None) -> TokenChunk:
    return TokenChunk(RequestId(f"{answer}-{i}"), 0, token, finish=finish)


def with_log(folder: Path, work: Callable[[RequestLog], Awaitable[Any]], identity: str = "m") -> RequestLog:
    """A head's life, ended in good order."""

    async def go() -> RequestLog:
        log = RequestLog(folder, identity)
        try:
            await work(log)
        finally:
            await log.close()
        return log

    return asyncio.run(go())


async def nothing(log: RequestLog) -> None:
    pass


async def two_answers(log: RequestLog) -> None:
    await log.accepted("a", b"note", asked("a", 2))
    await log.accepted("b", b"", asked("b"))
    log.sampled([chunk("a", 5), chunk("a", 6, 1), chunk("b", 7)])
    log.sampled([chunk("a", 8), chunk("stranger", 9)])


def said(log: RequestLog) -> dict[str, list[list[int | None]]]:
    return {kept.answer: [[c.token for c in one] for one in kept.said] for kept in log.kept}


def test_what_was_under_way_is_there_again(tmp_path: Path):
    with_log(tmp_path, two_answers)
    again = with_log(tmp_path, nothing)
    assert said(again) == {"a": [[5, 8], [6]], "b": [[7]]}
    assert (again.kept[0].note, again.kept[0].requests) == (b"note", asked("a", 2))


def test_a_choice_that_says_something_of_its_prompt_is_not_kept(tmp_path: Path):
    """It is drawn anew after what it says; the other choices go on."""
    scored, plain = Request(RequestId("a-0"), [1, 2], 9, n=2, prompt_logprobs=1), asked("b")[0]

    async def work(log: RequestLog) -> None:
        await log.accepted("a", b"", [scored])
        await log.accepted("b", b"", [plain])
        log.sampled([TokenChunk(scored.id, 0, None, scores=(Score(1, None), Score(2, -1.0))), chunk("b", 7)])
        log.sampled([TokenChunk(scored.id, choice, 5 + choice, finish=FinishReason.LENGTH) for choice in range(2)])

    async def more(log: RequestLog) -> None:
        log.sampled([TokenChunk(scored.id, choice, 8) for choice in range(2)])

    with_log(tmp_path, work)
    again = with_log(tmp_path, more)
    assert (said(again), again.kept[0].requests) == ({"a": [[6]], "b": [[7]]}, [scored])
    assert said(with_log(tmp_path, nothing)) == {"a": [[6, 8]], "b": [[7]]}


def test_it_goes_on_under_the_next_head_and_the_one_after(tmp_path: Path):
    async def more(log: RequestLog) -> None:
        await log.accepted("c", b"", asked("c"))
        log.sampled([chunk("a", 10), chunk("c", 11, finish=FinishReason.LENGTH)])
        log.gone("b")
        log.gone("nobody")

    with_log(tmp_path, two_answers)
    with_log(tmp_path, more)
    assert said(with_log(tmp_path, nothing)) == {"a": [[5, 8, 10], [6]], "c": [[11]]}


def test_an_answer_is_in_the_file_when_its_status_goes_out(tmp_path: Path):
    async def look(log: RequestLog) -> None:
        await log.accepted("a", b"", asked("a"))
        ledger, _ = records.read((tmp_path / "requests").read_bytes())
        assert list(ledger.answers) == ["a"]

    with_log(tmp_path, look)


def test_tokens_are_in_the_file_soon_without_anybody_asking(tmp_path: Path):
    async def look(log: RequestLog) -> None:
        await two_answers(log)
        await asyncio.sleep(20 * request_log._LINGER)
        ledger, _ = records.read((tmp_path / "requests").read_bytes())
        assert len(ledger.answers["a"].said[0]) == 2

    with_log(tmp_path, look)


@pytest.mark.parametrize("torn", [b"\x00", b"\xff" * 30])
def test_a_torn_end_is_cut_off_and_said(tmp_path: Path, torn: bytes):
    with_log(tmp_path, two_answers)
    with (tmp_path / "requests").open("ab") as file:
        file.write(torn)
    with capture_logs() as logs:
        again = with_log(tmp_path, nothing)
    assert [(entry["log_level"], entry["bytes"]) for entry in logs] == [("warning", len(torn))]
    assert list(said(again)) == ["a", "b"]
    assert records.read((tmp_path / "requests").read_bytes())[1] == (tmp_path / "requests").stat().st_size


def test_noise_is_no_reason_not_to_start(tmp_path: Path):
    (tmp_path / "requests").write_bytes(os.urandom(1000))
    assert with_log(tmp_path, nothing).kept == []


def test_another_models_requests_are_dropped_and_that_is_said(tmp_path: Path):
    with_log(tmp_path, two_answers)
    with capture_logs() as logs:
        assert with_log(tmp_path, nothing, "other").kept == []
    assert logs[0]["requests"] == 2


def test_nobody_else_may_read_it(tmp_path: Path):
    folder = tmp_path / "deep" / "state"
    with_log(folder, two_answers)
    assert [(folder / name).stat().st_mode & 0o777 for name in ("requests", "lock")] == [0o600, 0o600]
    assert folder.stat().st_mode & 0o777 == 0o700


def test_two_heads_do_not_share_a_folder(tmp_path: Path):
    async def second(log: RequestLog) -> None:
        with pytest.raises(ConfigError, match="another head"):
            RequestLog(tmp_path, "m")

    with_log(tmp_path, second)
    with_log(tmp_path, nothing)


def test_a_folder_that_cannot_be_is_a_matter_of_settings(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--state"):
        with_log(tmp_path / "file", nothing)


def test_a_file_that_grew_is_written_anew_with_what_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(log_file, "_BOUND", 4000)

    async def much(log: RequestLog) -> None:
        await two_answers(log)
        for i in range(100):
            await log.accepted(f"x{i}", b"." * 100, asked(f"x{i}"))
            log.sampled([chunk("a", 100 + i), chunk(f"x{i}", 1)])
            log.gone(f"x{i}")
        await log._written()

    with_log(tmp_path, much)
    assert (tmp_path / "requests").stat().st_size < 8000
    again = with_log(tmp_path, nothing)
    assert said(again) == {"a": [[5, 8, *range(100, 200)], [6]], "b": [[7]]}


def test_a_full_disk_is_said_once_and_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async def fill(log: RequestLog) -> None:
        await log.accepted("a", b"", asked("a"))
        monkeypatch.setattr(log._file, "append", full)
        await asyncio.gather(*(log.accepted(f"b{i}", b"", asked(f"b{i}")) for i in range(3)))
        for i in range(50):
            log.sampled([chunk("a", i)])
            await asyncio.sleep(0)
        await log.accepted("c", b"", asked("c"))
        log.gone("c")

    def full(data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with capture_logs() as logs:
        with_log(tmp_path, fill)
    assert [(entry["log_level"], entry["reason"]) for entry in logs] == [("error", "No space left on device")]
    assert said(with_log(tmp_path, nothing)) == {"a": [[]]}


def test_a_disk_that_does_not_answer_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(request_log, "_MOST_PENDING", 1000)

    async def hang(log: RequestLog) -> None:
        await log.accepted("a", b"", asked("a"))
        with capture_logs() as logs:
            for i in range(200):
                log.sampled([chunk("a", i)])
        assert len(logs) == 1

    with_log(tmp_path, hang)


def test_a_failure_that_nobody_expected_leaves_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async def work(log: RequestLog) -> None:
        def fail(data: bytes) -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr(log._file, "append", fail)
        async with asyncio.timeout(5):
            await log.accepted("a", b"", asked("a"))
            await log.accepted("b", b"", asked("b"))
            await log.close()
        monkeypatch.setattr(log, "close", lambda: asyncio.sleep(0))

    with capture_logs() as logs:
        with_log(tmp_path, work)
    assert any("can no longer be kept" in line["event"] for line in logs)


def test_a_snapshot_and_what_is_put_after_it_are_the_file(tmp_path: Path):
    """Whenever it is asked for: nothing is in both, and nothing is missing."""

    async def work(log: RequestLog) -> None:
        copy = list[bytes]()
        taken = asyncio.get_running_loop().create_future()

        def take(data: bytes) -> None:
            copy.append(data)
            log._copied = copy.append
            taken.set_result(None)

        await log.accepted("a", b"", asked("a"))
        for i in range(50):
            log.sampled([chunk("a", i)])
            if i == 20:
                log.snapshot(take)
            if i % 7 == 0:
                await asyncio.sleep(0.003)
        await taken
        log.sampled([chunk("a", 50)])
        await log._written()
        assert b"".join(copy) == (tmp_path / "requests").read_bytes()

    with_log(tmp_path, work)


def test_whoever_waits_for_a_snapshot_is_told_when_the_log_is_closed(tmp_path: Path):
    taken = list[bytes]()

    async def work(log: RequestLog) -> None:
        log.snapshot(taken.append)

    with_log(tmp_path, work)
    assert taken == [b""]


def test_a_sealed_log_keeps_what_it_has(tmp_path: Path):
    async def work(log: RequestLog) -> None:
        await log.accepted("a", b"", asked("a"))
        log.sampled([chunk("a", 5)])
        log.seal()
        log.sampled([chunk("a", 6)])
        log.gone("a")

    with_log(tmp_path, work)
    assert said(with_log(tmp_path, nothing)) == {"a": [[5]]}


def test_a_log_that_cannot_be_written_has_an_empty_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async def work(log: RequestLog) -> None:
        def full(data: bytes) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(log._file, "append", full)
        taken = list[bytes]()
        log.snapshot(taken.append)
        await log.accepted("a", b"", asked("a"))
        log.snapshot(taken.append)
        assert taken == [b"", b""]

    with capture_logs():
        with_log(tmp_path, work)
