"""`run` and `chat`: talk to a model, on a running cluster or one started for the purpose."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import sys
from time import perf_counter
from typing import TYPE_CHECKING, Any

from shoal.cli.asking import ChatOptions, Told, tell
from shoal.cli.conversation import COMMANDS, ChatHistory, Command, command
from shoal.cli.loop import on_signal
from shoal.cli.loop import run as run_in_loop
from shoal.cli.paper import Sheet
from shoal.cli.relocation import move_in
from shoal.cli.show import Rows, err, line, split_rows
from shoal.cli.waiting import all_of_stdin, stop_signal, until
from shoal.config import EngineSettings, NodeSettings
from shoal.errors import ConfigError, ShoalError
from shoal.folders import state_dir

if TYPE_CHECKING:
    from shoal.node.head import Head


def run(engine: EngineSettings, node: NodeSettings, nodes: int, asking: ChatOptions, prompt: str) -> None:
    """prompt: '-' reads it from stdin."""
    run_in_loop(_run(engine, node, nodes, asking, prompt))


def chat(engine: EngineSettings, node: NodeSettings, nodes: int, asking: ChatOptions, system: str) -> None:
    run_in_loop(_chat(engine, node, nodes, asking, system))


def _summary(head: Head, told: Told, ready: float) -> None:
    """ready: seconds until the cluster was ready."""
    assert head.placement is not None
    timings: dict[str, Any] = head.engine.timings(rows=1)
    rows = split_rows(head.placement)
    for row, stage in zip(rows, timings.get("stages", []), strict=False):
        row["a token takes"] = f"{stage['compute'] * 1e3:.1f} ms"
    err.print()
    err.print(Rows(rows))
    hop = f", {timings['overhead_per_hop'] * 1e3:.1f} ms on each of {len(rows) + 1} hops between them" if timings else ""
    line(f"\nready in {ready:.1f} s; {told.figures}{hop}", "dim")


async def _run(engine: EngineSettings, node: NodeSettings, nodes: int, asking: ChatOptions, prompt: str) -> None:
    stop, told = stop_signal(), Told()
    if (text := await all_of_stdin(stop) if prompt == "-" else prompt) is None:
        raise KeyboardInterrupt
    if not text.strip():
        raise ConfigError("the prompt is empty; write one, or - to read it from stdin")
    messages = [{"role": "user", "content": text}]
    if asking.url:
        if not await until(stop, _tell(asking, messages, told)):
            raise KeyboardInterrupt
        if err.is_terminal:
            line(told.figures, "dim")
        return
    from shoal.cli.served import local_settings, served

    began = perf_counter()
    async with served(local_settings(engine), node, nodes, stop) as there:
        if there is None:
            raise KeyboardInterrupt
        ready = perf_counter() - began
        if not await until(stop, tell(dataclasses.replace(asking, url=there[0], key="", model=""), messages, Sheet(), told)):
            raise KeyboardInterrupt
        _summary(there[1], told, ready)


async def _tell(asking: ChatOptions, messages: list[dict[str, str]], told: Told) -> None:
    await tell(await asking.found(), messages, Sheet(), told)


async def _chat(engine: EngineSettings, node: NodeSettings, nodes: int, asking: ChatOptions, system: str) -> None:
    stop = stop_signal()
    text = None
    if not sys.stdin.isatty():
        if (text := await all_of_stdin(stop)) is None:
            raise KeyboardInterrupt
        if not text.strip():
            raise ConfigError("stdin is empty: there is nothing to ask")
    if asking.url:
        await _converse(asking, system, text, stop)
        return
    from shoal.cli.served import local_settings, served

    async with served(local_settings(engine), node, nodes, stop) as there:
        if there is None:
            raise KeyboardInterrupt
        await _converse(dataclasses.replace(asking, url=there[0], key="", model=""), system, text, stop)


async def _converse(asking: ChatOptions, system: str, text: str | None, stop: asyncio.Event) -> None:
    """text: the only message of a chat that is not interactive."""
    found: list[ChatOptions] = []

    async def find() -> None:
        found.append(await asking.found())

    if not await until(stop, find()):
        raise KeyboardInterrupt
    if text is None:
        await Chat(found[0], ChatHistory(system), stop).run()
        return
    if not await until(stop, tell(found[0], [*ChatHistory(system).messages, {"role": "user", "content": text}], Sheet(), Told())):
        raise KeyboardInterrupt


class Chat:
    """A conversation at the terminal."""

    def __init__(self, asking: ChatOptions, conversation: ChatHistory, stop: asyncio.Event) -> None:
        """stop: from `stop_signal`."""
        from shoal.cli.keyboard import Keyboard

        move_in()
        self._asking, self._conversation, self._stop = asking, conversation, stop
        self._keyboard = Keyboard(state_dir() / "chat" / "history.jsonl")
        self._leaving = False

    async def run(self) -> None:
        """Runs until the user leaves, or SIGTERM."""
        from shoal.cli.keyboard import keys_kept

        on_signal(signal.SIGTERM, self._leave)
        line(f"{self._asking.model or 'a model'} at {self._asking.url}; /help lists commands, Ctrl-D leaves", "dim")
        with keys_kept():
            while not self._leaving and (text := await self._typed()) is not None:
                try:
                    await self._turn(text.strip())
                except ShoalError as error:
                    line(str(error), "red")

    def _leave(self) -> None:
        self._leaving = True
        self._stop.set()

    async def _typed(self) -> str | None:
        """None if the user leaves."""
        self._stop.clear()
        typed: list[str] = []

        async def read() -> None:
            typed.append(await self._keyboard.read())

        try:
            return typed[0] if await until(self._stop, read()) else None
        except EOFError:
            return None

    async def _turn(self, text: str) -> None:
        """Raises ConfigError, ClusterError, InvalidRequest."""
        if not text:
            return
        if (told := command(text)) is None:
            self._conversation.ask(text)
            await self._answer()
        else:
            await self._obey(told)

    async def _answer(self) -> None:
        told = Told()
        try:
            ended = await until(self._stop, tell(self._asking, self._conversation.messages, Sheet(), told))
        finally:
            self._conversation.answered(told.text)
        most = f"--max-tokens {self._asking.max_tokens}" if self._asking.max_tokens else "the end of the context; /clear makes room"
        cut = " (stopped)" if not ended else f" (cut at {most})" if told.finish == "length" else ""
        line(f"{told.figures}{cut}\n", "dim")

    async def _anew(self) -> None:
        """Asks again for the last answer; the old one stays if no new one comes."""
        turns = self._conversation.turns
        before = [*turns]
        self._conversation.take_back()
        try:
            await self._answer()
        finally:
            turns[:] = turns if len(turns) == len(before) else before

    async def _obey(self, told: Command) -> None:
        conversation = self._conversation
        match told.name:
            case "help":
                for usage, what in COMMANDS.values():
                    line(f"{usage:14} {what}")
                line("Enter sends; Alt-Enter, or a backslash at a line's end, begins another line; Ctrl-C ends an answer")
            case "clear":
                conversation.clear()
                line("a new chat", "dim")
            case "system":
                if told.argument:
                    conversation.system = "" if told.argument == "-" else told.argument
                line(conversation.system or "there is no system message", "dim")
            case "regen":
                await self._anew()
            case "save":
                line(f"saved to {conversation.save(told.argument)}", "dim")
            case _:
                self._leaving = True
