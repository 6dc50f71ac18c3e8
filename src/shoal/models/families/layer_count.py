"""How many layers a file may say that it has."""

from __future__ import annotations

from shoal.errors import CorruptModel

_MOST = 4096  # more than any model has: a damaged file must not make this process allocate by its number


def layer_count(layers: int, where: object) -> int:
    """Raises CorruptModel."""
    if not 1 <= layers <= _MOST:
        raise CorruptModel(where, f"{layers} layers cannot be")
    return layers
