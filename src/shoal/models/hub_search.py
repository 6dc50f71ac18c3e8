"""Searches the hub for models that shoal may run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from shoal.errors import FetchError
from shoal.models import hub
from shoal.models.families import ARCHITECTURES, BY_MODEL_TYPE
from shoal.models.quantization import runnable
from shoal.models.repository import Repository, RepositoryFile, variants, weights

_EXPAND = ["downloads", "likes", "gated", "gguf", "safetensors", "siblings", "config"]
_MORE = 3  # this many times more are requested than are shown, because not all can be run


@dataclass(frozen=True)
class Hit:
    """A repository that was found. parameters: 0 if the hub does not say; gated: its terms must be accepted first."""

    name: str
    downloads: int
    likes: int
    parameters: int
    quantizations: tuple[str, ...]
    """Those of its GGUF models that shoal runs."""
    safetensors: bool
    gated: bool


class _Sibling(msgspec.Struct):
    rfilename: str


class _Gguf(msgspec.Struct):
    total: int = 0
    architecture: str | None = None


class _Safetensors(msgspec.Struct):
    total: int = 0


class _Config(msgspec.Struct):
    model_type: str | None = None
    quantization_config: Any = None


class _Found(msgspec.Struct):
    """The hub's entry for a repository."""

    id: str
    downloads: int = 0
    likes: int = 0
    gated: bool | str = False
    gguf: _Gguf | None = None
    safetensors: _Safetensors | None = None
    config: _Config | None = None
    siblings: list[_Sibling] | None = None


def search(words: str, limit: int) -> list[Hit]:
    """Most downloaded first. Raises FetchError, Unreachable."""
    try:
        found = msgspec.json.decode(hub.find(words, _MORE * limit, _EXPAND), type=list[_Found])
    except msgspec.DecodeError as error:
        raise FetchError(f"the hub's answer to a search cannot be read ({error})") from None
    return [hit for each in found if (hit := _hit(each)) is not None][:limit]


def _hit(found: _Found) -> Hit | None:
    """None for one that shoal certainly does not run."""
    files = tuple(RepositoryFile(sibling.rfilename, 0) for sibling in found.siblings or [])
    gguf, config, stored = found.gguf or _Gguf(), found.config or _Config(), found.safetensors or _Safetensors()
    if gguf.architecture is not None:
        runs = gguf.architecture in ARCHITECTURES
    else:
        runs = config.model_type is None or config.model_type in BY_MODEL_TYPE
    titles = tuple(dict.fromkeys(v.title for v in variants(files) if runnable(v.label)))
    unquantised = bool(weights(Repository(found.id, "", files))) and config.quantization_config is None
    if not runs or not (titles or unquantised):
        return None
    return Hit(found.id, found.downloads, found.likes, gguf.total or stored.total, titles, unquantised, bool(found.gated))
