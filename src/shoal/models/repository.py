"""A model repository of the hub: its files, and those that make up a model that shoal runs. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import msgspec

from shoal.errors import UserError
from shoal.models.quantization import label, runnable
from shoal.spelling import suggestion

SAFETENSORS = "safetensors"
"""The tag that selects a repository's unquantised weights, if it has GGUF files as well."""
DESCRIPTION = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
"""What a node or the head reads of a repository with safetensors, besides the weights and their index."""
INDEX = "model.safetensors.index.json"
_TEMPLATE = re.compile(r"chat_template\.\w+|additional_chat_templates/.*|tokenizer\.model")
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)
_BESIDE = re.compile(r"mmproj|imatrix", re.IGNORECASE)  # GGUF files that are not models themselves
_PREFERRED = ("Q4_K_M", "Q8_0")  # in llama.cpp's order of choice
_LATEST = "latest"


class RepositoryFile(msgspec.Struct, frozen=True):
    path: str
    """In the repository, with slashes."""
    size: int
    sha256: str = ""
    """Of a large file; '' if the hub does not say."""
    git: str = ""
    """Git's hash, for a file that git itself stores."""


class Repository(msgspec.Struct, frozen=True):
    name: str
    """organisation/name"""
    commit: str
    files: tuple[RepositoryFile, ...]


@dataclass(frozen=True)
class Variant:
    """A GGUF model of a repository: one file, or the parts of a split one in order."""

    files: tuple[RepositoryFile, ...]
    count: int = 1
    """Number of parts that there should be."""

    @property
    def first(self) -> str:
        return self.files[0].path

    @property
    def label(self) -> str:
        return label(self.first)

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def whole(self) -> bool:
        return len(self.files) == self.count

    @property
    def title(self) -> str:
        """The tag that selects it: its quantisation, or its file if the name does not show the quantisation."""
        return self.label or self.first


def variants(files: Iterable[RepositoryFile]) -> list[Variant]:
    """The GGUF models among some files whose parts are all there, ordered by name."""
    found: dict[str, Variant] = {}
    for file in sorted(files, key=lambda file: file.path):
        if not file.path.lower().endswith(".gguf") or _BESIDE.search(file.path) or re.search("[:@]", file.path):
            continue
        part = _PART.fullmatch(file.path)
        key, count = (f"{part[1]}-of-{part[3]}", int(part[3])) if part else (file.path, 1)
        before = found.get(key, Variant((), count))
        found[key] = replace(before, files=(*before.files, file))
    return [variant for variant in found.values() if variant.whole]


def weights(repository: Repository) -> tuple[RepositoryFile, ...]:
    """The safetensors files of a model; none if the repository has no config.json. It may also contain others: another layout,
    adapters."""
    names = {file.path for file in repository.files}
    if "config.json" not in names:
        return ()
    single = {"model.safetensors"} & names if INDEX not in names else set[str]()
    return tuple(f for f in repository.files if (f.path in single if single else f.path.endswith(".safetensors") and "/" not in f.path))


def description(repository: Repository) -> tuple[RepositoryFile, ...]:
    """The files that describe a repository's safetensors: configuration, tokenizer, templates, index."""
    return tuple(f for f in repository.files if f.path in DESCRIPTION or f.path == INDEX or _TEMPLATE.fullmatch(f.path))


def choose(repository: Repository, tag: str | None) -> Variant | None:
    """The GGUF model that a tag names, or the default if there is no tag; None if that is the safetensors.

    tag: a quantisation, ignoring case; a file of the repository; 'safetensors'; None or 'latest': Q4_K_M, then Q8_0, as
    llama.cpp chooses, then safetensors, then the first that can be run. Raises UserError, which says what the repository has.
    """
    there, unquantised = variants(repository.files), weights(repository)
    if tag is not None and tag.lower() == SAFETENSORS and unquantised:
        return None
    if tag is None or tag.lower() == _LATEST:
        if not there and not unquantised:
            raise UserError(f"{repository.name} has no model that shoal runs: neither GGUF files nor config.json with safetensors")
        return _default(there, bool(unquantised))
    if (found := _tagged(there, tag)) is not None:
        return found
    raise UserError(f"{repository.name} has no {tag}{suggestion(tag, (v.title for v in there))}; {offered(repository)}")


def offered(repository: Repository) -> str:
    """The models of a repository, for people."""
    there = variants(repository.files)
    able = [v.title for v in there if runnable(v.label)]
    unable = [v.title for v in there if not runnable(v.label)]
    if weights(repository):
        able.append(SAFETENSORS)
    words = [f"it has {', '.join(able)}"] if able else ["it has nothing that shoal runs"]
    return "; ".join(words + [f"shoal does not run {', '.join(unable)}"] * bool(unable))


def _default(there: Sequence[Variant], unquantised: bool) -> Variant | None:
    able = [variant for variant in there if runnable(variant.label)] or there
    preferred = (_tagged(able, wanted) for wanted in _PREFERRED)
    return next((v for v in preferred if v is not None), None if unquantised else able[0])


def _tagged(there: Sequence[Variant], tag: str) -> Variant | None:
    """By the file, else by the label, else by a part of the name that ends where llama.cpp requires it to end."""
    if tag.lower().endswith(".gguf"):
        whole = [v for v in there for f in v.files if f.path == tag]
        return next(iter(whole or [v for v in there for f in v.files if f.path.rpartition("/")[2] == tag]), None)
    inside = re.compile(rf"(?<![A-Za-z0-9]){re.escape(tag)}(?=[.\-/])", re.IGNORECASE)
    by_label = [v for v in there if v.label.lower() == tag.lower()]
    return next(iter(by_label or [v for v in there if inside.search(v.first)]), None)


def folder_of(first: str) -> str:
    """The cache folder of a GGUF model, from its first file: one plain path component."""
    stem = _PART.fullmatch(first)
    return re.sub(r"[^A-Za-z0-9_.+-]", "_", stem[1] if stem else first.removesuffix(".gguf")).lstrip(".-") or "_"


def local_names(variant: Variant) -> dict[str, RepositoryFile]:
    """The names of its files in that folder."""
    if len(variant.files) == 1:
        return {"model.gguf": variant.files[0]}
    return {f"model-{n:05}-of-{variant.count:05}.gguf": file for n, file in enumerate(variant.files, 1)}
