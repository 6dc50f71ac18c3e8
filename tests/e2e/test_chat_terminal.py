"""`shoal chat` as people and scripts use it: over a pty and over pipes, with a server whose model says what it is told to."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi import Request as Asked
from fastapi.responses import HTMLResponse, StreamingResponse

from shoal.config import ApiSettings
from shoal.errors import NotReady
from shoal.gateway.auth.key_store import KeyStore
from shoal.request import FinishReason, Request
from tests.support.app import app_of
from tests.support.cluster import free_port, until
from tests.support.engine import FakeEngine, Item, spoken
from tests.support.server import serving
from tests.support.terminal import ALT_ENTER, CTRL_C, CTRL_D, ENTER, PROMPT, UP, Terminal, clean, piped, terminal

pytestmark = pytest.mark.slow


class Speaker(FakeEngine):
    """Says `text`, and then waits for ever where it `hangs`."""

    def __init__(self) -> None:
        super().__init__(self._says)
        self.text, self.hangs = "Good day.", False

    def _says(self, request: Request) -> list[Item]:
        self._hang = self.hangs
        said = spoken(request, self.text)
        return said[:-1] if self.hangs else said

    @property
    def heard(self) -> list[str]:
        """Each prompt, as its template shows it."""
        return [bytes(stream.request.prompt).decode() for stream in self.streams]


@pytest.fixture
def engine() -> Speaker:
    return Speaker()


@pytest.fixture
def url(engine: Speaker) -> Iterator[str]:
    with serving(app_of(engine)) as made:
        yield made


@pytest.fixture
def chat(url: str, tmp_path: Path) -> Iterator[Terminal]:
    with terminal("chat", "--url", url, SHOAL_CACHE=str(tmp_path)) as made:
        made.until_shown(PROMPT)
        yield made


def said(chat: Terminal, text: str, answer: str) -> None:
    """One turn."""
    chat.type(text + ENTER)
    chat.until_shown(answer)
    chat.until_shown(PROMPT)


def test_an_answer_comes_before_the_chat_ends_and_the_next_turn_knows_it(chat: Terminal, engine: Speaker) -> None:
    chat.type("Hi" + ENTER)
    chat.until_shown("Good day.")
    chat.until_shown("10 tokens")  # nine bytes and the end
    chat.until_shown(PROMPT)
    said(chat, "Again", "Good day.")
    assert engine.heard == ["user: Hi\n", "user: Hi\nassistant: Good day.\nuser: Again\n"]
    chat.type(CTRL_D)
    assert chat.wait() == 0


def test_the_model_and_the_way_out_are_named(url: str, tmp_path: Path) -> None:
    with terminal("chat", "--url", url, SHOAL_CACHE=str(tmp_path)) as made:
        made.until_shown(f"fake at {url}")
        made.until_shown("/help")
        made.until_shown(PROMPT)


def test_ctrl_c_ends_the_answer_at_the_server_too_and_keeps_the_chat(chat: Terminal, engine: Speaker) -> None:
    engine.hangs = True
    chat.type("Hi" + ENTER)
    chat.until_shown("Good day.")
    assert not engine.streams[0].closed
    chat.type(CTRL_C)
    chat.until_shown("(stopped)")
    until(lambda: engine.streams[0].closed)
    engine.hangs = False
    chat.until_shown(PROMPT)
    said(chat, "And", "Good day.")
    assert engine.heard[1] == "user: Hi\nassistant: Good day.\nuser: And\n"
    assert chat.popen.poll() is None


@pytest.mark.parametrize("key", [CTRL_C, CTRL_D, "/bye" + ENTER, "/exit" + ENTER])
def test_ways_out_of_an_empty_prompt(chat: Terminal, key: str) -> None:
    chat.type(key)
    assert chat.wait() == 0


def test_ctrl_c_takes_a_line_back_that_was_begun(chat: Terminal, engine: Speaker) -> None:
    chat.type("nonsense")
    chat.until_shown("nonsense")
    chat.type(CTRL_C)
    said(chat, "Hi", "Good day.")
    assert engine.heard == ["user: Hi\n"]


@pytest.mark.parametrize("keys", ["one\\" + ENTER + "two", "one" + ALT_ENTER + "two", "\x1b[200~one\ntwo\x1b[201~"])
def test_a_message_of_several_lines(chat: Terminal, engine: Speaker, keys: str) -> None:
    said(chat, keys, "Good day.")
    assert engine.heard == ["user: one\ntwo\n"]


def test_a_line_is_edited(chat: Terminal, engine: Speaker) -> None:
    said(chat, "Hi tree" + "\x7f" * 4 + "there" + "\x1b[H" + "Oh: ", "Good day.")
    assert engine.heard == ["user: Oh: Hi there\n"]


def test_the_history_lasts_and_is_private(url: str, engine: Speaker, tmp_path: Path) -> None:
    def recall(chat: Terminal) -> bool:
        """The history is read while the prompt is there already."""
        chat.type(UP)
        time.sleep(0.1)
        return "first ü" in chat.screen

    for again in (False, True):
        with terminal("chat", "--url", url, SHOAL_CACHE=str(tmp_path)) as chat:
            chat.until_shown(PROMPT)
            if again:
                until(lambda: recall(chat), lambda: chat.screen)
            else:
                chat.type("first ü")
            chat.type(ENTER)
            chat.until_shown("Good day.")
            chat.until_shown(PROMPT)
            chat.type(CTRL_D)
            chat.wait()
    assert engine.heard == ["user: first ü\n"] * 2
    (path,) = (tmp_path / "chat").iterdir()
    assert [stat.S_IMODE(p.stat().st_mode) for p in (path, path.parent)] == [0o600, 0o700]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_where_no_history_can_be_kept_the_chat_goes_on(url: str, tmp_path: Path) -> None:
    (tmp_path / "chat").write_text("a file")
    with terminal("chat", "--url", url, SHOAL_CACHE=str(tmp_path)) as chat:
        chat.until_shown(PROMPT)
        chat.type("Hi" + ENTER)
        chat.until_shown("the history is not kept")
        chat.until_shown("Good day.")


def test_commands(chat: Terminal, engine: Speaker, tmp_path: Path) -> None:
    said(chat, "/help", "/regen")
    said(chat, "/system Be brief.", "Be brief.")
    said(chat, "Hi", "Good day.")
    engine.text = "Farewell."
    said(chat, "/regen", "Farewell.")
    assert engine.heard == ["system: Be brief.\nuser: Hi\n"] * 2
    text, data = tmp_path / "chat.txt", tmp_path / "chat.json"
    said(chat, f"/save {text}", "saved to")
    said(chat, f"/save {data}", "saved to")
    assert text.read_text() == "[Be brief.]\n\n> Hi\n\nFarewell.\n"
    assert [m["content"] for m in json.loads(data.read_text())["messages"]] == ["Be brief.", "Hi", "Farewell."]
    said(chat, "/clear", "a new chat")
    said(chat, "/regen", "there is no answer yet")
    said(chat, "/system -", "there is no system message")
    said(chat, "/etc/hosts //x", "Farewell.")
    said(chat, "//help", "Farewell.")
    assert engine.heard[2:] == ["user: /etc/hosts //x\n", "user: /etc/hosts //x\nassistant: Farewell.\nuser: /help\n"]
    said(chat, "/sytem x", "did you mean /system?")


def test_a_file_that_is_there_is_not_written_over(chat: Terminal, tmp_path: Path) -> None:
    there = tmp_path / "notes.txt"
    there.write_text("mine")
    said(chat, "Hi", "Good day.")
    said(chat, f"/save {there}", "already exists")
    said(chat, "/save", "name a file")
    said(chat, f"/save {tmp_path}/no/such/folder.txt", "No such file")
    assert there.read_text() == "mine"


def test_an_error_is_a_line_and_the_chat_goes_on(chat: Terminal, engine: Speaker) -> None:
    engine.refusal = NotReady("waiting for 2 nodes")
    said(chat, "Hi", "waiting for 2 nodes")
    engine.refusal = None
    said(chat, "Hello", "Good day.")
    assert engine.heard == ["user: Hello\n"]  # what had no answer was not said


def test_an_answer_that_breaks_off_says_why(chat: Terminal, engine: Speaker) -> None:
    def broken(request: Request) -> list[Item]:
        return [*spoken(request, "Half")[:-1], NotReady("a node was lost")]

    engine._script = broken
    said(chat, "Hi", "a node was lost")
    assert chat.popen.poll() is None


def test_an_answer_that_was_cut_says_so(url: str, tmp_path: Path) -> None:
    with terminal("chat", "--url", url, "--max-tokens", "4", SHOAL_CACHE=str(tmp_path)) as chat:
        chat.until_shown(PROMPT)
        chat.type("Hi" + ENTER)
        chat.until_shown("cut at --max-tokens 4")


def test_words_are_not_broken_at_the_edge(url: str, engine: Speaker, tmp_path: Path) -> None:
    engine.text = "The quick brown fox jumps over the lazy dog, and goes home."
    with terminal("chat", "--url", url, columns=24, SHOAL_CACHE=str(tmp_path)) as chat:
        chat.until_shown(PROMPT)
        chat.type("Hi" + ENTER)
        chat.until_shown("tokens")
        lines = _rendered(chat.raw)
        at = lines.index("The quick brown fox")
        assert lines[at : at + 3] == ["The quick brown fox", "jumps over the lazy", "dog, and goes home."]


def _rendered(raw: str) -> list[str]:
    """Lines as a terminal shows them that knows the orders of `paper.Wrapped`: back, and erase to the end."""
    lines, column, i = [""], 0, 0
    while i < len(raw):
        if raw[i] == "\x1b" and (order := _order(raw[i:])) is not None:
            size, count, kind = order
            column = max(column - count, 0) if kind == "D" else column
            lines[-1] = lines[-1][:column] if kind == "K" else lines[-1]
            i += size
        elif raw[i] in "\r\n":
            lines += [""] if raw[i] == "\n" else []
            column, i = 0, i + 1
        else:
            lines[-1] = lines[-1][:column] + raw[i]
            column, i = column + 1, i + 1
    return [line.rstrip() for line in lines]


def _order(text: str) -> tuple[int, int, str] | None:
    match = re.match(r"\x1b\[\??([0-9;]*)([A-Za-z])", text)
    return (match.end(), int(match[1] or 1) if match[1].isdigit() or not match[1] else 0, match[2]) if match else (1, 0, "")


def test_a_model_gives_the_terminal_no_orders(chat: Terminal, engine: Speaker) -> None:
    engine.text = "a\x1b]0;owned\x07b\x1b[2Jc\x9bd\re"
    said(chat, "Hi", "a]0;ownedb[2Jc")
    assert "\x1b]0;owned" not in chat.raw and "\x1b[2J" not in chat.raw


# Thinking


def test_what_is_thought_is_dim_and_no_part_of_the_answer(tmp_path: Path) -> None:
    with thinking() as (url, bodies), terminal("chat", "--url", url, SHOAL_CACHE=str(tmp_path)) as chat:
        chat.until_shown(PROMPT)
        said(chat, "Hi", "Hello.")
        assert "\x1b[2mLet me see.\x1b[0m" in chat.raw
        said(chat, "And", "Hello.")
    assert [m["content"] for m in bodies[1]["messages"]] == ["Hi", "Hello.", "And"]


def test_what_is_thought_is_not_in_a_pipe() -> None:
    with thinking() as (url, _):
        assert piped("Hi", "chat", "--url", url).stdout == "Hello.\n"


def thinking() -> contextlib.AbstractContextManager[tuple[str, list[Any]]]:
    """Its model thinks first."""
    return of_another_make([{"role": "assistant"}, {"reasoning_content": "Let me see."}, {"content": "Hello."}])


@contextlib.contextmanager
def of_another_make(deltas: list[dict[str, str]], goes_on: threading.Event | None = None) -> Iterator[tuple[str, list[Any]]]:
    """A server that answers every question with these, the last of them after the event; its address, and what it is asked."""
    app, bodies = FastAPI(), list[Any]()

    @app.get("/v1/models")
    async def models() -> Any:
        return {"data": [{"id": "thinker"}]}

    def lines() -> Iterator[str]:
        yield ": wait\n\n"
        choices: list[dict[str, Any]] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
        for choice in [*choices, {"index": 0, "delta": {}, "finish_reason": "stop"}]:
            if goes_on is not None and choice["delta"] is deltas[-1]:
                goes_on.wait()
            yield f"data: {json.dumps({'choices': [choice]})}\n\n"
        yield "data: [DONE]\n\n"

    @app.post("/v1/chat/completions")
    async def answer(asked: Asked) -> StreamingResponse:
        bodies.append(await asked.json())
        return StreamingResponse(lines(), media_type="text/event-stream")

    with serving(app) as url:
        yield url, bodies


# Keys during an answer


@pytest.fixture
def goes_on() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_ctrl_d_during_an_answer_leaves_after_it(goes_on: threading.Event, tmp_path: Path) -> None:
    answers = of_another_make([{"content": "Good "}, {"content": "day."}], goes_on)
    with answers as (url, _), terminal("chat", "--url", url, SHOAL_CACHE=str(tmp_path)) as chat:
        chat.until_shown(PROMPT)
        chat.type("Hi" + ENTER)
        chat.until_shown("Good")
        chat.type(CTRL_D)
        goes_on.set()
        chat.until_shown("day.")
        assert chat.wait() == 0


def test_a_question_typed_during_an_answer_is_asked_after_it_and_ctrl_d_behind_it_leaves(goes_on: threading.Event, tmp_path: Path) -> None:
    answers = of_another_make([{"content": "Good "}, {"content": "day."}], goes_on)
    with answers as (url, bodies), terminal("chat", "--url", url, SHOAL_CACHE=str(tmp_path)) as chat:
        chat.until_shown(PROMPT)
        chat.type("Hi" + ENTER)
        chat.until_shown("Good")
        chat.type("And" + ENTER + CTRL_D)
        goes_on.set()
        assert chat.wait() == 0
    assert [body["messages"][-1]["content"] for body in bodies] == ["Hi", "And"]


def test_the_terminal_is_left_as_it_was_found(url: str, tmp_path: Path) -> None:
    fresh = os.openpty()
    with terminal("chat", "--url", url, SHOAL_CACHE=str(tmp_path)) as chat:
        chat.until_shown(PROMPT)
        said(chat, "Hi", "Good day.")
        assert chat.settings() != termios.tcgetattr(fresh[0])
        chat.type(CTRL_D)
        assert chat.wait() == 0
        assert chat.settings() == termios.tcgetattr(fresh[0])
    for end in fresh:
        os.close(end)


# Pipes


@pytest.mark.parametrize("command", [["chat"], ["run", "-"]])
def test_all_of_a_pipe_is_one_message_and_the_answer_all_that_comes_out(url: str, engine: Speaker, command: list[str]) -> None:
    engine.text = "A line that is longer than eighty columns is not broken where nobody looks at it, and ends with a break."
    done = piped("one\ntwo\n", *command, "--url", url)
    assert (done.returncode, done.stdout, done.stderr) == (0, engine.text + "\n", "")
    assert engine.heard == ["user: one\ntwo\n\n"]


def test_a_pipe_has_a_system_message_too(url: str, engine: Speaker) -> None:
    piped("one", "chat", "--url", url, "--system", "Be brief.")
    assert engine.heard == ["system: Be brief.\nuser: one\n"]


@pytest.mark.parametrize(("text", "words"), [("", "stdin is empty"), (b"\xff\xfe", "UTF-8")])
def test_a_pipe_without_text(url: str, text: str | bytes, words: str) -> None:
    done = piped(text, "chat", "--url", url)
    assert (done.returncode, words in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize("command", [["chat"], ["run", "-"]])
def test_ctrl_c_while_a_pipe_says_nothing(url: str, command: list[str]) -> None:
    words = [sys.executable, "-m", "shoal", *command, "--url", url]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=clean()) as process:
        until(lambda: signal.SIGINT in caught(process.pid))
        process.send_signal(signal.SIGINT)
        assert (process.wait(60), process.stderr and process.stderr.read()) == (130, b"")


def caught(pid: int) -> set[int]:
    """Signals for which the event loop of a process has handlers: Python's own for SIGINT is there from the start, SIGTERM's is not."""
    (mask,) = (int(line.split()[1], 16) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return {signal.SIGINT} if mask & 1 << (signal.SIGTERM - 1) else set()


def test_the_answer_goes_to_a_file_and_the_prompt_to_the_terminal(url: str, tmp_path: Path) -> None:
    target = tmp_path / "answers"
    with terminal("chat", "--url", url, stdout=target, SHOAL_CACHE=str(tmp_path)) as chat:
        chat.until_shown(PROMPT)
        chat.type("Hi" + ENTER)
        chat.until_shown("tokens")
        chat.until_shown(PROMPT)
        chat.type(CTRL_D)
        chat.wait()
    assert target.read_text() == "Good day.\n"


# Whom to ask


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_an_address_is_taken_as_it_is_printed_or_pasted(url: str, suffix: str) -> None:
    assert piped("Hi", "chat", "--url", url + suffix).stdout == "Good day.\n"
    assert piped("Hi", "run", "Hi", "--url", url.removeprefix("http://") + suffix).stdout == "Good day.\n"


def test_variables_of_others_are_heard(url: str, engine: Speaker, tmp_path: Path) -> None:
    assert piped("Hi", "chat", OPENAI_BASE_URL=f"{url}/v1", OPENAI_API_KEY="sk-any").stdout == "Good day.\n"
    assert piped("Hi", "run", OPENAI_BASE_URL=f"{url}/v1").stdout == "Good day.\n"
    assert piped("Hi", "chat", SHOAL_URL=url, OPENAI_BASE_URL="http://127.0.0.1:1/v1").stdout == "Good day.\n"
    lines = tmp_path / "in.jsonl"
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    lines.write_text(json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}) + "\n")
    done = piped("", "batch", str(lines), "-o", str(tmp_path / "out.jsonl"), OPENAI_BASE_URL=f"{url}/v1")
    assert (done.returncode, "Good day." in (tmp_path / "out.jsonl").read_text()) == (0, True), done.stderr


@pytest.mark.parametrize("variable", ["SHOAL_API_KEY", "OPENAI_API_KEY"])
def test_a_key_is_needed_and_is_sent(variable: str, engine: Speaker, tmp_path: Path) -> None:
    settings = ApiSettings(data=str(tmp_path / "api"))
    _, token = KeyStore(settings.data_folder).create("me", 0.0)
    with serving(app_of(engine, settings)) as url:
        for wrong in ({}, {variable: "sk-wrong"}):
            done = piped("Hi", "chat", "--url", url, **wrong)
            assert (done.returncode, "--api-key" in done.stderr, done.stderr.count("\n")) == (2, True, 1), done.stderr
        assert piped("Hi", "chat", "--url", url, **{variable: token}).stdout == "Good day.\n"
        done = piped("Hi", "chat", "--url", url, "--api-key", "schlüssel mit blank")
        assert (done.returncode, "--api-key" in done.stderr) == (2, True)


def test_another_model_than_the_servers(url: str) -> None:
    done = piped("Hi", "chat", "--url", url, "--model", "gpt-4")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "gpt-4" in done.stderr and "fake" in done.stderr


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://[::bad", "not an address"])
def test_what_is_no_address(url: str) -> None:
    done = piped("Hi", "chat", "--url", url)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr


def test_nobody_at_the_address() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    with terminal("chat", "--url", f"{address}/v1") as chat:
        chat.until_shown(f"error: {address} does not answer")
        assert chat.wait() == 1


def test_what_answers_is_no_such_api() -> None:
    app = FastAPI()
    app.add_api_route("/{path:path}", lambda path: HTMLResponse("<html>"), methods=["GET", "POST"])
    with serving(app) as url:
        done = piped("Hi", "run", "Hi", "--url", url)
    assert (done.returncode, "not an OpenAI-compatible API" in done.stderr, done.stderr.count("\n")) == (1, True, 1)


# Other commands at a terminal


def test_run_at_a_terminal_says_what_it_took_and_ends_with_ctrl_c(url: str, engine: Speaker) -> None:
    with terminal("run", "Hi", "--url", url) as shown:
        shown.until_shown("Good day.")
        shown.until_shown("tokens")
        assert shown.wait() == 0
    engine.hangs = True
    with terminal("run", "Hi", "--url", url) as shown:
        shown.until_shown("Good day.")
        shown.type(CTRL_C)
        assert shown.wait() == 130
    until(lambda: engine.streams[1].closed)


def test_a_finish_for_each_reason_is_no_error(url: str, engine: Speaker) -> None:
    engine._script = lambda request: spoken(request, "x", finish=FinishReason.STOP)
    assert piped("Hi", "run", "Hi", "--url", url).returncode == 0


def test_the_history_takes_nothing_that_others_put_in_its_place(url: str, tmp_path: Path) -> None:
    (tmp_path / "chat").mkdir()
    (tmp_path / "victim").write_text("mine")
    os.symlink(tmp_path / "victim", tmp_path / "chat" / "history.jsonl")
    with terminal("chat", "--url", url, SHOAL_CACHE=str(tmp_path)) as chat:
        chat.until_shown(PROMPT)
        chat.type("Hi" + ENTER)
        chat.until_shown("Good day.")
    assert (tmp_path / "victim").read_text() == "mine"
