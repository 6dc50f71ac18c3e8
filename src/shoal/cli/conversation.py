"""The state of a chat: what was said, and what the user's commands do to it. Nothing here asks or prints."""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from shoal.errors import ConfigError

COMMANDS = {
    "help": ("/help", "this list"),
    "clear": ("/clear", "begin anew; the system message stays"),
    "system": ("/system TEXT", "what the model is told first; alone: shows it, with - takes it away"),
    "regen": ("/regen", "the last answer anew"),
    "save": ("/save FILE", "the chat, as text, or as JSON where the name ends in .json"),
    "bye": ("/bye", "leave; so do Ctrl-D, and Ctrl-C at an empty prompt"),
}
_ALIASES = {"exit": "bye", "quit": "bye", "?": "help", "retry": "regen", "reset": "clear"}


@dataclass(frozen=True)
class Command:
    name: str
    argument: str


def command(text: str) -> Command | None:
    """'/save a.txt' → Command('save', 'a.txt'); None for a message: '//x' means '/x', and a path like /etc/hosts is not a command.

    Raises ConfigError for an unknown command.
    """
    match = re.match(r"/([a-zA-Z?]+)(?:\s+|$)", text)
    if match is None:
        return None
    name = _ALIASES.get(match[1].lower(), match[1].lower())
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"; did you mean /{close[0]}?" if close else ""
        raise ConfigError(f"there is no /{match[1]}{hint} /help lists what there is; to say it to the model, write //{match[1]}")
    return Command(name, text[match.end() :].strip())


@dataclass
class ChatHistory:
    system: str = ""
    turns: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    """Messages of the user and the assistant, alternating."""
    _saved: set[Path] = field(default_factory=set[Path])

    @property
    def messages(self) -> list[dict[str, str]]:
        return ([{"role": "system", "content": self.system}] if self.system else []) + self.turns

    def ask(self, text: str) -> None:
        self.turns.append({"role": "user", "content": text[1:] if text.startswith("//") else text})

    def answered(self, text: str) -> None:
        """Adds an answer; if it is empty, its question is removed too."""
        if text:
            self.turns.append({"role": "assistant", "content": text})
        else:
            self.turns.pop()

    def take_back(self) -> None:
        """Removes the last answer. Raises ConfigError."""
        if not self.turns:
            raise ConfigError("there is no answer yet")
        self.turns.pop()

    def clear(self) -> None:
        self.turns.clear()

    def save(self, name: str) -> Path:
        """Writes the chat to a file; never overwrites a file that is not this chat's. Raises ConfigError."""
        if not name:
            raise ConfigError("name a file: /save chat.txt, or chat.json")
        path = Path(name).expanduser()
        text = json.dumps({"messages": self.messages}, indent=2, ensure_ascii=False) if path.suffix == ".json" else self._text()
        try:
            with path.open("w" if path in self._saved else "x", encoding="utf-8") as file:
                file.write(text + "\n")
        except FileExistsError:
            raise ConfigError(f"{path} already exists; choose another name") from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
        self._saved.add(path)
        return path

    def _text(self) -> str:
        def said(message: dict[str, str]) -> str:
            content = message["content"].strip()
            return {"user": "> " + content.replace("\n", "\n> "), "system": f"[{content}]"}.get(message["role"], content)

        return "\n\n".join(said(message) for message in self.messages)
