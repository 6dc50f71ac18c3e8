"""A file of a model, whichever machine has it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelFile:
    name: str
    size: int
    sha256: str
