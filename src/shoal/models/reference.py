"""The names that a user may give a model, and what each means.

In this order: a name with a prefix (`hf:`, `hf.co/`, `ollama:`, `lmstudio:`) means what the prefix says; then a name of the
catalogue; then an existing file or folder, or a text that can only be a path; then `org/name`, a repository of the hub; then a
model of Ollama's store.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from shoal.config import user_path
from shoal.errors import ConfigError, UnknownModel, UserError
from shoal.models import ollama
from shoal.models.catalogue import catalogue
from shoal.models.gguf_files import first_part, parts_of

Kind = Literal["path", "catalogue", "hub", "ollama", "lmstudio"]

_REPOSITORY = r"[\w.-]+/[\w.-]+?"
_HUB = re.compile(rf"({_REPOSITORY})(?::([^:@]+))?(?:@([\w./-]+))?", re.ASCII)
_WEB = re.compile(r"(?:https?://)?(?:www\.)?(?:hf\.co|huggingface\.co)/(.*)", re.IGNORECASE | re.DOTALL)
_PAGE = re.compile(rf"({_REPOSITORY})/(?:tree|blob|resolve)/([\w.-]+)(?:/([^?#]+\.gguf))?/?(?:[?#].*)?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LMSTUDIO = re.compile(r"([\w.-]+/[\w.-]+)(?:[/:]([^:@]+))?", re.ASCII)


@dataclass(frozen=True)
class Reference:
    """name: a path, a name of the catalogue, org/name of the hub, Ollama's name:tag, or LM Studio's publisher/repository."""

    kind: Kind
    name: str
    revision: str | None = None
    """Of a repository: branch, tag or commit."""
    tag: str | None = None
    """Which model of a repository: a quantisation or a file."""

    @classmethod
    def parse(cls, text: str) -> Reference:
        """The first possible meaning of a text. Raises UnknownModel, UserError."""
        if (prefixed := _prefixed(text)) is not None:
            return prefixed
        for meant in _meanings(text):
            return meant
        raise UnknownModel(text, [*sorted(catalogue()), *(model.name for model in ollama.models())])

    @property
    def pinned(self) -> bool:
        """Whether it names a commit of the hub."""
        return self.kind == "hub" and _COMMIT.fullmatch(self.revision or "") is not None

    @property
    def gguf(self) -> str | None:
        """The file of a repository that it names."""
        return self.tag if self.tag is not None and self.tag.lower().endswith(".gguf") else None

    def __str__(self) -> str:
        """In the form that `parse` reads."""
        if self.kind in ("path", "catalogue"):
            return self.name
        prefix = {"hub": "hf:", "ollama": "ollama:", "lmstudio": "lmstudio:"}[self.kind]
        return prefix + self.name + (f":{self.tag}" if self.tag else "") + (f"@{self.revision}" if self.revision else "")

    @property
    def title(self) -> str:
        """For people, and for the API."""
        if self.kind == "path":
            return re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", user_path(self.name).name)
        return self.name + (f":{self.tag}" if self.tag else "")


def ambiguity(text: str) -> str:
    """Other possible meanings of a text, for people; '' if it has only one."""
    if _prefixed(text) is not None or len(found := [*_meanings(text)]) < 2:
        return ""
    return f"'{text}' is taken as {_said(found[0])}; {' and '.join(f'{_said(f)} is written {f}' for f in found[1:])}"


def _said(reference: Reference) -> str:
    return {
        "path": "the file or folder of that name",
        "catalogue": "the model of the catalogue",
        "hub": "the hub's repository",
        "ollama": "the model in Ollama's store",
        "lmstudio": "the model of LM Studio",
    }[reference.kind]


def _prefixed(text: str) -> Reference | None:
    """Raises UserError for an invalid rest."""
    if text.startswith("hf:"):
        return hub_reference(text, text.removeprefix("hf:"))
    if (web := _WEB.fullmatch(text)) is not None:
        if (page := _PAGE.fullmatch(web[1])) is not None and _plain(page[3] or "model"):
            return Reference("hub", page[1], None if page[2] == "main" else page[2], page[3])
        return hub_reference(text, web[1].rstrip("/"))
    if text.startswith("ollama:"):
        if (name := ollama.full_name(text.removeprefix("ollama:"))) is None:
            raise UserError(f"'{text}' is not a model of Ollama; write ollama:name or ollama:name:tag")
        return Reference("ollama", name)
    if text.startswith("lmstudio:"):
        if (match := _LMSTUDIO.fullmatch(text.removeprefix("lmstudio:"))) is None or not _plain(match[0]):
            raise UserError(
                f"'{text}' is not a model of LM Studio; write lmstudio:publisher/repository or lmstudio:publisher/repository/file"
            )
        return Reference("lmstudio", match[1], None, match[2])
    return None


def hub_reference(text: str, rest: str) -> Reference:
    """text: what the user wrote; rest: the part after the prefix. Raises UserError."""
    match = _HUB.fullmatch(rest)
    if match is None or not all(_plain(part) for part in (match[2], match[3]) if part is not None):
        raise UserError(f"'{text}' is not a hub reference; write hf:org/name, hf:org/name:Q4_K_M or hf:org/name@revision")
    return Reference("hub", match[1], match[3], match[2])


def _plain(path: str) -> bool:
    """Whether a path only leads downwards."""
    return all(part not in ("", ".", "..") for part in path.split("/")) and path.isprintable() and "\\" not in path


def _meanings(text: str) -> Iterator[Reference]:
    """All possible meanings of a text without a prefix, likeliest first."""
    if text in catalogue():
        yield Reference("catalogue", text)
    hub = _HUB.fullmatch(text)
    is_path = text.startswith(("/", "./", "../", "~")) or text.endswith(("/", "\\"))
    is_path = is_path or (text.lower().endswith(".gguf") and ":" not in text) or (hub is None and "/" in text)
    if is_path or _is_there(text):
        yield _path(text)
    if is_path:
        return
    if hub is not None and all(_plain(part) for part in (hub[2], hub[3]) if part is not None):
        yield Reference("hub", hub[1], hub[3], hub[2])
    if (model := ollama.find(text)) is not None:
        yield Reference("ollama", model.name)


def _is_there(text: str) -> bool:
    try:
        return user_path(text).exists()
    except (OSError, ValueError, ConfigError):
        return False


def _path(text: str) -> Reference:
    """Raises UserError for a text that no path can be."""
    try:
        path = first_part(user_path(text))
        # A part is recognised by its name, so a link to it is not resolved.
        return Reference("path", str(path.resolve() if len(parts_of(path)) == 1 else path.parent.resolve() / path.name))
    except (OSError, ValueError, RuntimeError) as error:  # a null byte; links in a circle
        raise UserError(f"{text!r} is not a path: {str(error).lower()}") from None
