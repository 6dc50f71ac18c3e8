"""A layer that has no packed file, because the disk has no room for one: its units are packed from the model each time they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path

import msgspec

from shoal.weights.packed_file import Contents, PackedUnit, placed

_APART = 40  # bits: no unit is larger


class UnpackedLayer:
    """A source of units, see weights/direct_file.py. made: makes each unit's contents; each may be called by any thread, several at once.
    like: the name of another unit that is as large. Raises CorruptModel, UnsupportedModel, as reads do."""

    def __init__(self, path: Path, made: Mapping[str, Callable[[], Contents]], like: Mapping[str, str]) -> None:
        self._path, self._made = path, made
        self._names = list(made)
        self.units: dict[str, PackedUnit] = {}
        """By name. Of a unit that was read, as it was then."""
        for name, at in zip(self._names, count()):
            if name in like:
                self.units[name] = msgspec.structs.replace(self.units[like[name]], at=at << _APART)
            else:
                self.units[name] = placed(made[name](), at << _APART)[0]

    @property
    def path(self) -> Path:
        """That the packed file would have."""
        return self._path

    def read_into(self, offset: int, into: memoryview) -> int:
        name, begin = self._names[offset >> _APART], offset % (1 << _APART)
        unit, memory = placed(self._made[name](), offset - begin)
        self.units[name] = unit
        part = memory[begin : begin + into.nbytes]
        into[: len(part)] = part
        return len(part)
