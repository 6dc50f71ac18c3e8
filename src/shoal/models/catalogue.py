"""The models that shoal knows by name: the packages that hold their parts, and the hashes that the parts must have."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Literal

import msgspec

from shoal.models.quantization import label


class CataloguePart(msgspec.Struct, frozen=True):
    registry: Literal["pypi", "npm"]
    package: str
    version: str
    sha256: str
    size: int
    member: str
    """Path of the part inside the package; parts are joined in order."""


class CatalogueEntry(msgspec.Struct, frozen=True):
    title: str
    file: str
    sha256: str
    size: int
    hub: tuple[str, ...]
    """Repositories of the hub that hold the same model: this file or another quantisation of it."""
    parts: tuple[CataloguePart, ...]


@cache
def catalogue() -> dict[str, CatalogueEntry]:
    return msgspec.json.decode(resources.files("shoal.models").joinpath("catalogue.json").read_bytes(), type=dict[str, CatalogueEntry])


def standing_in(repository: str, quantization: str | None) -> str | None:
    """The entry to use if a repository of the hub is unavailable. quantization: the requested one, if any."""
    for name, entry in catalogue().items():
        if repository.lower() in (hub.lower() for hub in entry.hub) and (not quantization or quantization.upper() == label(entry.file)):
            return name
    return None
