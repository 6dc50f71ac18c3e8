"""Searches the hub for models that shoal may run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shoal.errors import FetchError
from shoal.models import hub
from shoal.models.quantization import runnable
from shoal.models.repository import Repository, RepositoryFile, variants, weights
from shoal.models.spec import FAMILIES

_EXPAND = ["downloads", "likes", "gated", "gguf", "safetensors", "siblings", "config"]
_MORE = 3  # so many times more are asked for than are shown, as not all can be run


@dataclass(frozen=True)
class Hit:
    """A repository that was found. parameters: 0 where the hub does not say; gated: its terms have to be accepted first."""

    name: str
    downloads: int
    likes: int
    parameters: int
    quantizations: tuple[str, ...]
    """Of its GGUF models, those that shoal runs."""
    safetensors: bool
    gated: bool


def search(words: str, limit: int) -> list[Hit]:
    """Those that people fetched most often come first. Raises FetchError, Unreachable."""
    try:
        with hub.translated(words):
            found: list[Any] = list(hub.api().list_models(search=words, sort="downloads", limit=_MORE * limit, expand=_EXPAND))
    except FetchError as error:
        raise type(error)(f"the hub cannot be searched: {error}") from None
    hits = [hit for info in found if (hit := _hit(info)) is not None]
    return hits[:limit]


def _hit(info: Any) -> Hit | None:
    """None for one that shoal surely does not run."""
    siblings: list[Any] = info.siblings or []
    files = tuple(RepositoryFile(sibling.rfilename, 0) for sibling in siblings)
    repository = Repository(info.id, "", files)
    gguf: dict[str, Any] = info.gguf or {}
    config: dict[str, Any] = info.config or {}
    family = gguf.get("architecture") or config.get("model_type")
    titles = tuple(dict.fromkeys(v.title for v in variants(files) if runnable(v.label)))
    unquantised = bool(weights(repository)) and config.get("quantization_config") is None
    if (family is not None and family not in FAMILIES) or not (titles or unquantised):
        return None
    total = gguf.get("total") or (info.safetensors.total if info.safetensors is not None else 0)
    return Hit(info.id, info.downloads or 0, info.likes or 0, int(total or 0), titles, unquantised, bool(info.gated))
