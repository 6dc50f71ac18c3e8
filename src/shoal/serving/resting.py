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


def rested(models: Iterable[Resting], idle: float, now: float) -> list[str]:
    """Those that nobody has asked for in the last `idle` seconds."""
    return [model.name for model in models if not model.busy and now - model.used >= idle]


def least_used(models: Iterable[Resting], wanting: str) -> str | None:
    """The one that should give its memory to another: that was used before all others, and has nothing to do. None: there is no such one.

    wanting: the model that needs room; one that was asked for later than it does not have to go.
    """
    models = list(models)
    since = next((model.used for model in models if model.name == wanting), None)
    found = [model for model in models if model.name != wanting and not model.busy and not model.waiting]
    if since is None or not found:
        return None
    first = min(found, key=lambda model: (model.used, model.name))
    return first.name if first.used <= since else None
