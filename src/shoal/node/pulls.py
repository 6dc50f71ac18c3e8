"""Models that are fetched to the head's machine because an operator asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from time import time

import structlog

from shoal.errors import ShoalError
from shoal.models.catalogue import catalogue
from shoal.models.inventory import inventory
from shoal.models.sources import find, pull
from shoal.observed.cluster import ActionResult
from shoal.observed.models import ModelHere, ModelsView, PullView

log = structlog.get_logger()

_AT_ONCE = 2


@dataclass
class _Pull:
    began: float
    done: int = 0
    total: int = 0
    ended: float = 0.0
    failed: str = ""


class Pulls:
    """Thread-safe in what it reads: a pull runs in a thread of its own, and writes its figures alone."""

    def __init__(self, told: Callable[[str], None]) -> None:
        """told: receives a line when a model was fetched, or could not be; called in the pull's thread."""
        self._told = told
        self._pulls: dict[str, _Pull] = {}

    def begin(self, model: str) -> ActionResult:
        if (known := self._pulls.get(model)) is not None and not known.ended:
            return ActionResult(False, f"{model} is being fetched already")
        if sum(not one.ended for one in self._pulls.values()) >= _AT_ONCE:
            return ActionResult(False, f"{_AT_ONCE} models are being fetched; try again when one of them is here")
        try:
            here = find(model)
        except ShoalError as error:
            return ActionResult(False, str(error))
        if here is not None:
            return ActionResult(False, f"{model} is here already")
        self._pulls[model] = one = _Pull(time())
        threading.Thread(target=self._fetch, args=(model, one), daemon=True).start()
        return ActionResult(True, f"{model} is being fetched")

    def _fetch(self, model: str, one: _Pull) -> None:
        def progress(done: int, total: int) -> None:
            one.done, one.total = done, total

        try:
            pull(model, progress)
        except (ShoalError, OSError) as error:
            one.failed = str(error)
        except Exception as error:
            one.failed = f"unexpected: {error!r}"
            log.error("a model could not be fetched", exc_info=error)
        one.ended = time()
        self._told(f"{model} could not be fetched: {one.failed}" if one.failed else f"{model} was fetched")

    def view(self, served: Collection[str], memory: int) -> ModelsView:
        """Reads folders: call it in a thread. served: names of the models that answer. memory: of all nodes, bytes."""
        here = inventory()
        names = {model.name for model in here}
        models = [ModelHere(m.name, m.name, m.bytes, True, _fits(m.bytes, memory), m.name in served, m.owner) for m in here]
        models += [
            ModelHere(name, name, entry.size, False, _fits(entry.size, memory), False, entry.title)
            for name, entry in catalogue().items()
            if name not in names
        ]
        pulls = [PullView(name, one.began, one.done, one.total, one.ended, one.failed) for name, one in self._pulls.items()]
        return ModelsView(models, pulls, memory)


def _fits(size: int, memory: int) -> bool | None:
    return size <= memory if memory else None
