"""A file of a model, whichever machine has it."""

from __future__ import annotations

import re
from dataclasses import dataclass

NAME = re.compile(r"\w[\w.+-]{0,200}", re.ASCII)
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ModelFile:
    name: str
    size: int
    sha256: str

    @property
    def sound(self) -> bool:
        """Whether there can be such a file. Its name and its hash then are single components of paths."""
        return bool(NAME.fullmatch(self.name) and _HASH.fullmatch(self.sha256)) and 0 < self.size < 1 << 50
