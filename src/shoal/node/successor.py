"""What a standby has ready for the moment at which it leads: the models that the leading head serves, described and with their tokenizers."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Sequence

import structlog

from shoal.config import HeadSettings
from shoal.control import messages as control
from shoal.errors import ShoalError
from shoal.node.inheritance import InheritedModel, inherited, inherited_models
from shoal.node.model_engine import ModelOffer
from shoal.node.model_keeper import offered
from shoal.scheduler.limits import Batching

log = structlog.get_logger()

_AGAIN = 10.0  # seconds after which a model that could not be had is tried again


class Successor:
    def __init__(
        self,
        settings: HeadSettings,
        offers: Sequence[ModelOffer],
        offered: Callable[[str, HeadSettings], Awaitable[ModelOffer]] = offered,
    ) -> None:
        """settings, offers: this head's own, until the one that it follows says what it serves."""
        self.settings = settings
        self.authority = ""
        """PEM: see control.messages.Serves."""
        self._own, self._offered = settings, offered
        self._offers: dict[InheritedModel | None, list[ModelOffer]] = {None: [*offers]}
        self._wanted: list[InheritedModel | None] = [None]
        self._preparing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def offers(self) -> list[ModelOffer]:
        """The models that it could serve now, the default first."""
        return [offer for model in self._wanted for offer in self._offers.get(model, [])]

    @property
    def ready(self) -> bool:
        """Whether everything that there is to prepare was tried, and some of it can be served."""
        return all(model in self._offers for model in self._wanted) and (bool(self.offers) or not any(self._wanted))

    def learn(self, serves: control.Serves) -> None:
        """What the leading head serves. Raises RemoteProtocolError, ConfigError."""
        self.settings, self.authority = inherited(self._own, serves.settings), serves.authority
        self._wanted = [*inherited_models(serves.models)]
        if self._preparing is not None:
            self._preparing.cancel()
        self._preparing = task = asyncio.get_running_loop().create_task(self._prepare())
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("preparing to serve the leading head's models failed unexpectedly", exc_info=error)

    async def _prepare(self) -> None:
        while True:
            failed = False
            for model in self._wanted:
                if model is not None and not self._offers.get(model):
                    self._offers[model] = await self._prepared(model)
                    failed = failed or not self._offers[model]
            if not failed:
                return
            await asyncio.sleep(_AGAIN)

    async def _prepared(self, model: InheritedModel) -> list[ModelOffer]:
        """The model; nothing if it cannot be had."""
        try:
            engine = model.settings(self._own.engine)
            # How the leader runs it goes before what this head's own settings say of it.
            settings = dataclasses.replace(self.settings, engine=engine, replicas=0, sections=())
            offer = await self._offered(engine.model, settings)
        except (ShoalError, OSError) as error:
            log.error("a model of the leading head cannot be served here", model=model.reference, reason=str(error))
            return []
        batching = Batching(model.gathered, model.batch_delay)
        return [
            dataclasses.replace(offer, replicas=model.replicas, pinned=frozenset(model.pinned), priority=model.priority, batching=batching)
        ]

    async def close(self) -> None:
        """Prepares nothing more; what is prepared stays."""
        if self._preparing is not None:
            self._preparing.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
