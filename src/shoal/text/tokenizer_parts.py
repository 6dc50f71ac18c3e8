"""The parts of a model's files from which its tokenizer is opened, for machines without the model.

Of a GGUF file that is its metadata, as a GGUF file without tensors; of a directory, its small JSON and Jinja files. Parts are told
apart by their hashes, so what was fetched once is fetched no more.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import shutil
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import NamedTuple

import msgspec

from shoal.errors import HashMismatch, RemoteProtocolError

PIECE = 1 << 20
"""Bytes of a part that are read at once."""
MAX_PART = 256 << 20
"""Most bytes of a part; the largest vocabularies take 30 MB."""
_GGUF, _CHOSEN, _EXTRA = "model.gguf", "chosen_template.jinja", "additional_chat_templates"
_IN_DIRECTORIES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json", "chat_template.jinja")
_NAME = re.compile(rf"(?:{_EXTRA}/)?[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_TENSOR_COUNT = slice(8, 16)
"""Of a GGUF file's bytes; see ggml/docs/gguf.md."""


class TokenizerFiles(NamedTuple):
    """What a model's tokenizer is opened from: a GGUF file or a directory. template: replaces the model's own."""

    model: Path
    template: Path | None = None


class TokenizerPart(msgspec.Struct, frozen=True, array_like=True):
    """name: of the file, in a folder for this tokenizer alone."""

    name: str
    size: int
    hash: str
    """SHA-256."""


@dataclass(frozen=True)
class TokenizerParts:
    """Where the parts are."""

    parts: dict[str, tuple[TokenizerPart, Path]]

    @classmethod
    def of(cls, files: TokenizerFiles, meta_bytes: Callable[[Path], int]) -> TokenizerParts:
        """Reads and hashes them, which takes up to seconds. meta_bytes: where the metadata of a GGUF file ends. Raises OSError, and what
        that raises."""
        model, template = files
        named = {_GGUF: model} if not model.is_dir() else {name: model / name for name in _IN_DIRECTORIES if (model / name).exists()}
        if model.is_dir():
            named |= {f"{_EXTRA}/{path.name}": path for path in sorted((model / _EXTRA).glob("*.jinja")) if _NAME.fullmatch(path.name)}
        if template is not None:
            named[_CHOSEN] = template
        sizes = {name: meta_bytes(path) if name == _GGUF else path.stat().st_size for name, path in named.items()}
        return cls({name: (_part(name, path, sizes[name]), path) for name, path in named.items()})

    @property
    def listed(self) -> list[TokenizerPart]:
        return [part for part, _ in self.parts.values()]

    def read(self, name: str, offset: int) -> bytes:
        """At most PIECE bytes. Raises OSError, RemoteProtocolError if there is no such part."""
        if name not in self.parts or offset < 0:
            raise RemoteProtocolError(f"the tokenizer has no part '{name[:80]}' with a byte {offset}")
        part, path = self.parts[name]
        return _read(path, name == _GGUF, offset, min(PIECE, max(part.size - offset, 0)))


def _part(name: str, path: Path, size: int) -> TokenizerPart:
    digest = hashlib.sha256()
    for offset in range(0, size, PIECE):
        digest.update(_read(path, name == _GGUF, offset, min(PIECE, size - offset)))
    return TokenizerPart(name, size, digest.hexdigest())


def _read(path: Path, gguf: bool, offset: int, count: int) -> bytes:
    """gguf: as a file that lists no tensors."""
    with path.open("rb") as file:
        file.seek(offset)
        data = bytearray(file.read(count))
    for at in range(*_TENSOR_COUNT.indices(offset + len(data))) if gguf else ():
        if at >= offset:
            data[at - offset] = 0
    return bytes(data)


Read = Callable[[str, int], Awaitable[bytes]]
"""Bytes of a part, by its name and an offset; as many as come at once."""


async def fetched(parts: Sequence[TokenizerPart], read: Read, folder: Path) -> TokenizerFiles:
    """The parts as files, fetched into a folder of their own under `folder` unless they are there already. Raises OSError,
    HashMismatch, RemoteProtocolError."""
    _check(parts)
    identity = hashlib.sha256(msgspec.msgpack.encode(sorted(parts, key=lambda part: part.name))).hexdigest()
    target = folder / identity[:32]
    if not await asyncio.to_thread(_complete, target, parts):
        partial = folder / f"{identity[:32]}.{token_hex(8)}.partial"
        try:
            for part in parts:
                await _fetch(part, read, partial / part.name)
            shutil.rmtree(target, ignore_errors=True)
            try:
                partial.rename(target)
            except OSError:
                if not _complete(target, parts):  # otherwise another process has fetched the same
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    names = {part.name for part in parts}
    return TokenizerFiles(target / _GGUF if _GGUF in names else target, target / _CHOSEN if _CHOSEN in names else None)


def _check(parts: Sequence[TokenizerPart]) -> None:
    """Raises RemoteProtocolError."""
    for part in parts:
        if not _NAME.fullmatch(part.name) or not 0 <= part.size <= MAX_PART:
            raise RemoteProtocolError(f"a tokenizer has no part '{part.name[:80]}' of {part.size} bytes")


def _complete(target: Path, parts: Sequence[TokenizerPart]) -> bool:
    """Whether all of them are there, as they were fetched."""
    return all((path := target / part.name).is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == part.hash for part in parts)


async def _fetch(part: TokenizerPart, read: Read, path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        while size < part.size:
            if not (piece := await read(part.name, size)):
                raise RemoteProtocolError(f"part {part.name} of a tokenizer ends after {size} of {part.size} bytes")
            size += len(piece)
            digest.update(piece)
            file.write(piece)
    if size != part.size or digest.hexdigest() != part.hash:
        raise HashMismatch(part.name, part.hash, digest.hexdigest())
