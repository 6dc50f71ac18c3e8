"""Ollama's store, read in place.

manifests/<registry>/<namespace>/<model>/<tag> is JSON that names layers by their SHA-256; blobs/sha256-<hash> are the layers.
The layer of the model is a GGUF file. Ollama's own template, system message and parameters are other layers, which shoal does
not read: it uses the file's own chat template, as for all models.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from shoal.environment import ollama_folders
from shoal.errors import CorruptModel, UnsupportedModel, UserError
from shoal.models.hashes import known_hash
from shoal.spelling import suggestion

_MODEL = "application/vnd.ollama.image.model"
_ADAPTER = "application/vnd.ollama.image.adapter"
_REGISTRY, _NAMESPACE, _LATEST = "registry.ollama.ai", "library", "latest"
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_NAME = re.compile(r"(?:[\w.-]+/){0,3}?[\w.-]+(?::[\w.-]+)?", re.ASCII)


class _Layer(msgspec.Struct):
    mediaType: str
    digest: str
    size: int


class _Manifest(msgspec.Struct):
    layers: list[_Layer]
    config: _Layer | None = None


class _Config(msgspec.Struct):
    file_type: str = ""
    model_type: str = ""


@dataclass(frozen=True)
class OllamaModel:
    name: str
    """As Ollama lists it, without ':latest'."""
    files: tuple[tuple[Path, int, str], ...]
    """Path, size and SHA-256 of its GGUF files; a model with more than one cannot be run."""
    quantization: str
    adapted: bool
    """Whether it has an adapter besides the model."""


def full_name(text: str) -> str | None:
    """A name in its shortest form; None if it is not a name."""
    if not _NAME.fullmatch(text) or ".." in text:
        return None
    parts = text.removesuffix(f":{_LATEST}").split("/")
    for known in (_REGISTRY, _NAMESPACE):
        if len(parts) > 1 and parts[0] == known:
            parts = parts[1:]
    return "/".join(parts)


def models() -> list[OllamaModel]:
    """All models in the stores of this machine, by name."""
    found: dict[str, OllamaModel] = {}
    for folder in ollama_folders():
        for path in _manifests(folder):
            if (model := _read(folder, path)) is not None:
                found.setdefault(model.name, model)
    return sorted(found.values(), key=lambda model: model.name)


def find(text: str) -> OllamaModel | None:
    """A model in the stores, by any form of its name, ignoring case."""
    wanted = full_name(text)
    return None if wanted is None else next((m for m in models() if m.name.lower() == wanted.lower()), None)


def located(name: str, root: Path) -> Path:
    """A model's GGUF file; its content must have the hash in its name. root: the cache that stores hashes.

    Raises UserError if the store has no such model, UnsupportedModel, CorruptModel, OSError.
    """
    if (model := find(name)) is None:
        known = [m.name for m in models()]
        raise UserError(f"Ollama's store has no {name}{suggestion(name, known)}; it has {', '.join(known) or 'nothing'}")
    if model.adapted or len(model.files) != 1:
        raise UnsupportedModel(f"{name}: {'an adapter' if model.adapted else 'a model in several layers'} of Ollama is not supported")
    path, _, sha256 = model.files[0]
    if known_hash(path, root) != sha256:
        raise CorruptModel(path, "the content is not what Ollama's name for it says", cut=True)
    return path


def blobs(sha256: str) -> Iterator[Path]:
    """Where the stores have a file with that hash, judged by its name."""
    for folder in ollama_folders():
        if (path := folder / "blobs" / f"sha256-{sha256}").is_file():
            yield path


def _manifests(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):  # it belongs to another user
        return sorted(path for path in (folder / "manifests").glob("*/*/*/*") if path.is_file())
    return []


def _read(folder: Path, path: Path) -> OllamaModel | None:
    """None for a manifest of something else, or one that cannot be read."""
    registry, namespace, model, tag = path.relative_to(folder / "manifests").parts
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=_Manifest)
        files = tuple(_file(folder, layer) for layer in manifest.layers if layer.mediaType == _MODEL)
        config = _config(folder, manifest)
    except (OSError, msgspec.DecodeError, ValueError):
        return None
    name = full_name(f"{registry}/{namespace}/{model}:{tag}")
    if name is None or not files or not all(file.is_file() for file, _, _ in files):
        return None
    return OllamaModel(name, files, config.file_type.upper(), any(layer.mediaType == _ADAPTER for layer in manifest.layers))


def _file(folder: Path, layer: _Layer) -> tuple[Path, int, str]:
    """Raises ValueError for a layer without a hash."""
    if (digest := _DIGEST.fullmatch(layer.digest)) is None:
        raise ValueError(layer.digest)
    return folder / "blobs" / f"sha256-{digest[1]}", layer.size, digest[1]


def _config(folder: Path, manifest: _Manifest) -> _Config:
    if manifest.config is None:
        return _Config()
    with contextlib.suppress(OSError, msgspec.DecodeError, ValueError):
        return msgspec.json.decode(_file(folder, manifest.config)[0].read_bytes(), type=_Config)
    return _Config()
