"""The user's input in a chat: a prompt with editing, several lines and a history."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Generator, Iterable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application.current import get_app
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import History
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import create_output
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.shortcuts import CompleteStyle

from shoal.cli.conversation import COMMANDS
from shoal.cli.show import line
from shoal.errors import ConfigError
from shoal.security.private_file import write_private

try:
    import termios
except ImportError:  # Windows
    termios = None

_KEPT = 1000  # messages in the history
_READ = 4 << 20  # bytes of it to read


class PrivateHistory(History):
    """The history: one JSON string per line in a file that only this user may read. If there can be no file, it lasts as long
    as the chat."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path, self._broken = path, False

    def load_history_strings(self) -> Iterable[str]:
        """Newest first; truncates the file to what is kept."""
        try:
            with self._path.open("rb") as file:
                file.seek(max(file.seek(0, os.SEEK_END) - _READ, 0))
                lines = file.read().splitlines()
        except OSError:
            return []
        said = [text for text in map(_parsed, lines) if text is not None]
        if len(said) > 2 * _KEPT:
            said = said[-_KEPT:]
            try:
                write_private(self._path, b"".join(map(_written, said)))
            except ConfigError as error:
                self._say(str(error))
        return reversed(said)

    def store_string(self, string: str) -> None:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
            with os.fdopen(descriptor, "wb") as file:
                if hasattr(os, "fchmod"):
                    os.fchmod(file.fileno(), 0o600)
                file.write(_written(string))
        except OSError as error:
            self._say(f"{self._path}: {error.strerror or error}")

    def _say(self, why: str) -> None:
        if not self._broken:
            self._broken = True
            line(f"the history is not kept ({why})", "dim")


def _written(text: str) -> bytes:
    return json.dumps(text).encode() + b"\n"


def _parsed(raw: bytes) -> str | None:
    try:
        text = json.loads(raw)
    except ValueError:
        return None
    return text if isinstance(text, str) else None


class Keyboard:
    def __init__(self, history: Path) -> None:
        output = create_output(always_prefer_tty=True)  # stderr, if stdout goes to a file
        if isinstance(output, Vt100_Output):
            output.enable_cpr = False  # not every terminal reports its cursor position, and none needs to
        self._session: PromptSession[str] = PromptSession(
            "> ",
            multiline=True,
            prompt_continuation=". ",
            history=PrivateHistory(history),
            key_bindings=_bindings(),
            completer=WordCompleter([f"/{name}" for name in COMMANDS], sentence=True),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            enable_history_search=False,
            reserve_space_for_menu=0,
            output=output,
        )

    async def read(self) -> str:
        """A message. Raises EOFError after Ctrl-D or Ctrl-C at an empty prompt."""
        return await self._session.prompt_async(handle_sigint=False)


@contextlib.contextmanager
def keys_kept() -> Generator[None]:
    """Keys that are typed while no prompt is shown wait for the next one, Ctrl-D too, which a terminal would otherwise take as the end of a
    file that nobody reads."""
    if termios is None:
        yield
        return
    terminal = sys.stdin.fileno()
    before, changed = termios.tcgetattr(terminal), termios.tcgetattr(terminal)
    changed[-1][termios.VEOF] = bytes([os.fpathconf(terminal, "PC_VDISABLE")])
    termios.tcsetattr(terminal, termios.TCSANOW, changed)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, before)


def _bindings() -> KeyBindings:
    keys = KeyBindings()
    goes_on = Condition(lambda: get_app().current_buffer.document.current_line_before_cursor.endswith("\\"))
    empty = Condition(lambda: not get_app().current_buffer.text)

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("enter", filter=goes_on)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.delete_before_cursor()
        event.current_buffer.newline(copy_margin=False)

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @keys.add("c-c")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.reset()

    @keys.add("c-c", filter=empty)
    def _(event: KeyPressEvent) -> None:
        event.app.exit(exception=EOFError)

    return keys
