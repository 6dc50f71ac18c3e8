"""Which models are unloaded because nobody asks for them, or because others need their memory. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Resting(NamedTuple):
    """A loaded model. used: seconds, when it was asked for last, or loaded. busy: whether requests of it are unfinished. waiting: whether
    it does not serve yet."""

    name: str
    used: float
    busy: bool = False
    waiting: bool = False
    priority: int = 0


def rested(models: Iterable[Resting], idle: float, now: float) -> list[str]:
    """Those that nobody has asked for in the last `idle` seconds."""
    return [model.name for model in models if not model.busy and now - model.used >= idle]


def least_used(models: Iterable[Resting], wanting: str) -> str | None:
    """The one that should give its memory to another: of those of the lowest priority that have nothing to do, the one that was used before
    all others. None: there is no such one.

    wanting: the model that needs room. One of a higher priority does not have to go, nor one of the same that was asked for later.
    """
    models = list(models)
    for_whom = next((model for model in models if model.name == wanting), None)
    if for_whom is None:
        return None
    rank = for_whom.priority, for_whom.used
    found = [m for m in models if m is not for_whom and not m.busy and not m.waiting and (m.priority, m.used) <= rank]
    return min(found, key=lambda model: (model.priority, model.used, model.name)).name if found else None
