"""What files of packed weights were made of, and how: where that is the same, one node's files are of use to another."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

from shoal import __version__
from shoal.weights.packed_file import LAYOUT


def packing_of(files: Iterable[str], precision: str) -> str:
    """files: hashes of all of a model's files. Layouts are alike for all instruction sets."""
    return sha256("\n".join([*sorted(files), precision, str(LAYOUT), __version__]).encode()).hexdigest()[:32]
