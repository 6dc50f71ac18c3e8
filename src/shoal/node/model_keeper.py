"""Which models a head serves, while it runs: loads and unloads them, for an operator or because a request came or did not come."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from time import time

import structlog

from shoal.address import is_loopback
from shoal.config import HeadSettings
from shoal.errors import CapacityError, ConfigError, NotReady, ShoalError, UnknownModel
from shoal.models.description import describe, listed
from shoal.models.inventory import inventory
from shoal.models.sections import section_of
from shoal.models.sources import public_name
from shoal.node.daemon_thread import in_daemon_thread
from shoal.node.head import Head
from shoal.node.model_engine import ModelEngine, ModelOffer, tokenizer_of
from shoal.observed.event import EventKind
from shoal.observed.models import RegisteredFile, RegisteredModel
from shoal.serving.aliases import added, removed
from shoal.serving.registry_store import RegistryStore
from shoal.serving.resting import Resting, least_used, rested
from shoal.sizes import human_bytes

log = structlog.get_logger()

_LOOK = 1.0  # seconds between checks for models that rest, or that find no room
_PATIENCE = 3.0  # seconds for which a model may find no room before another one goes


async def offered(reference: str, settings: HeadSettings) -> ModelOffer:
    """The model, fetched where it is not on this machine, and read. Raises ShoalError, OSError."""
    own = settings.of_model(section_of(settings.sections, reference))

    def work() -> ModelOffer:
        model = listed(describe(reference), not is_loopback(settings.host))
        offer = ModelOffer.of(model, reference, own)
        return dataclasses.replace(offer, tokenizer=tokenizer_of(model, offer.engine, settings))

    return await in_daemon_thread(work)


class ModelKeeper:
    def __init__(
        self,
        head: Head,
        settings: HeadSettings,
        store: RegistryStore,
        offered: Callable[[str, HeadSettings], Awaitable[ModelOffer]] = offered,
    ) -> None:
        """offered: reads a model. Raises CapacityError if the store cannot be read."""
        self._head, self._settings, self._store, self._offered = head, settings, store, offered
        self._known = store.models()
        self._references = {name: known.reference for name, known in self._known.items()}
        self._aliases = store.aliases()
        self._loading: dict[str, asyncio.Task[ModelEngine]] = {}
        """Until their pipelines are open: the model is fetched and read."""
        self.failed: dict[str, str] = {}
        """Why a model could not be loaded, by name."""
        self._short_since: dict[str, float] = {}
        self._resting: dict[str, str] = {}
        """References of models that gave up their last copy, and that a request loads again, by name."""
        self._waiting: dict[str, int] = {}
        """Requests that wait for a model, by its name."""
        self._watchers: list[Callable[[], None]] = []
        for engine in head.engines.values():
            self._record(engine)

    # What is known

    @property
    def aliases(self) -> Mapping[str, str]:
        return self._aliases

    @property
    def loading(self) -> list[str]:
        """Names of the models that are being fetched and read."""
        return [*self._loading]

    @property
    def known(self) -> Mapping[str, RegisteredModel]:
        """Models that were served at least once, by name."""
        return self._known

    @property
    def loads(self) -> bool:
        """Whether requests load models, be it only those that rest."""
        return self._settings.on_demand or (self._settings.scaling.on and not self._settings.scaling.replicas_min)

    @property
    def loadable(self) -> list[str]:
        """Names of the models that a request may load."""
        return [name for name in (self._references if self._settings.on_demand else self._resting) if name not in self._head.engines]

    @property
    def resting(self) -> list[str]:
        """Names of the models that gave up their last copy and are not loaded again."""
        return [name for name in self._resting if name not in self._head.engines]

    def waiting(self, name: str) -> int:
        """How many requests wait for a model to be loaded."""
        return self._waiting.get(name, 0)

    def state(self, name: str) -> str:
        """Of a model without an engine, for people."""
        if name in self._loading:
            return "it is being fetched and read"
        return self.failed.get(name, "it is not loaded; a request for it loads it")

    def watch(self, changed: Callable[[], None]) -> None:
        """changed: called when aliases or the models that may be loaded have changed."""
        self._watchers.append(changed)

    def _changed(self) -> None:
        for changed in self._watchers:
            changed()

    def look(self) -> None:
        """Learns which models are on this machine. Reads folders: takes milliseconds."""
        for model in inventory():
            self._references.setdefault(public_name(model.name), model.name)

    # Aliases

    def alias(self, alias: str, target: str) -> str:
        """Sets an alias, or removes it if the target is ''. Returns what was done. Raises ConfigError, CapacityError."""
        models = [*self._head.engines, *(name for name in self._references if name not in self._head.engines)]
        models += [name for name in self._head.upstreams.models if name not in models]
        aliases = added(self._aliases, alias, target, models) if target else removed(self._aliases, alias)
        self._store.set_aliases(aliases)
        self._aliases = aliases
        self._changed()
        return f"{alias} stands for {target}" if target else f"{alias} stands for nothing any more"

    # Loading

    def begin(self, reference: str, replicas: int = 0) -> str:
        """Starts to load a model. replicas: copies; 0: as many as the configuration file says of it, or as last time. One that is served gets
        other copies. Returns its name. Raises ShoalError for what cannot be one."""
        name = reference if reference in self._references else public_name(reference)
        if (engine := self._head.engines.get(name)) is not None:
            if not replicas or replicas == len(engine.copies.kept):
                raise ConfigError(f"{name} is served already")
            engine.scale(replicas)
            self._record(engine)
        elif name in self._aliases:
            raise ConfigError(f"'{name}' is an alias, which stands for '{self._aliases[name]}'; remove it first")
        elif name not in self._loading:
            self.failed.pop(name, None)
            task = asyncio.get_running_loop().create_task(self._load(name, self._references.get(reference, reference), replicas))
            self._loading[name] = task
            task.add_done_callback(lambda done: self._over(name, done))
        return name

    def _over(self, name: str, done: asyncio.Task[ModelEngine]) -> None:
        self._loading.pop(name, None)
        if done.cancelled() or (error := done.exception()) is None:
            return
        words = str(error) if isinstance(error, ShoalError | OSError) else f"unexpected: {error!r}"
        self.failed[name] = f"it could not be loaded: {words}"
        log.error(
            "a model could not be loaded", model=name, reason=words, exc_info=None if isinstance(error, ShoalError | OSError) else error
        )
        self._head.coordinator.recorder.events.add(EventKind.FAULT, f"{name} could not be loaded: {words}")

    async def _load(self, name: str, reference: str, replicas: int) -> ModelEngine:
        offer, known = await self._offered(reference, self._settings), self._known.get(name)
        said = section_of(self._settings.sections, reference)
        told = self._settings.scaling.on or (said is not None and "replicas" in said.values)
        count = replicas or (known.replicas if known is not None and not told else offer.replicas)
        served = self._head.serve(dataclasses.replace(offer, replicas=count))
        self._record(served)
        self._head.coordinator.recorder.events.add(EventKind.PLACED, f"{name} is being loaded")
        return served

    async def wanted(self, name: str) -> ModelEngine:
        """The engine of a model that a request asks for: loads it, and waits until it serves. Raises NotReady, UnknownModel."""
        if name not in self._head.engines:
            if name not in self.loadable:
                raise UnknownModel(name, [*self._head.engines])
            self.begin(self._references[name])
        else:
            self._head.engines[name].touch()
        patience = self._settings.load_wait
        self._waiting[name] = self._waiting.get(name, 0) + 1
        try:
            async with asyncio.timeout(patience):
                if (loading := self._loading.get(name)) is not None:
                    await asyncio.wait({loading})
                    if loading.cancelled():
                        raise NotReady("it was unloaded while it was waited for")
                    loading.result()
                while (engine := self._head.engines.get(name)) is not None and engine.state:  # noqa: ASYNC110 - of several pipelines
                    await asyncio.sleep(0.05)
        except TimeoutError:
            engine = self._head.engines.get(name)
            why = self.state(name) if engine is None else engine.state
            raise NotReady(f"{name} is not served after {patience:g} s: {why}; ask again later") from None
        except (ShoalError, OSError) as error:
            raise NotReady(f"{name} could not be loaded: {error}") from error
        finally:
            self._waiting[name] -= 1
        if engine is None:
            raise NotReady(f"{name} is not served: {self.failed.get(name, 'it was unloaded while it was waited for')}")
        engine.touch()
        return engine

    async def unload(self, name: str, reason: str) -> None:
        """Ends its requests with the reason. Raises UnknownModel."""
        if self._resting.pop(name, None) is not None and name not in {*self._head.engines, *self._loading}:
            self._changed()
            return
        await self._unload(name, reason)

    async def _unload(self, name: str, reason: str) -> None:
        if name not in self._head.engines and (loading := self._loading.get(name)) is not None:
            loading.cancel()
            return
        await self._head.unload(name, reason)
        self._short_since.pop(name, None)
        self._changed()

    def _record(self, engine: ModelEngine) -> None:
        """Writes what is known of a model."""
        offer, facts = engine.offer, engine.facts
        manifest = offer.model.manifest
        entry = RegisteredModel(
            name=engine.name,
            reference=offer.engine.model,
            family=facts.family,
            quantization=facts.quantization,
            context=engine.served.context,
            parameters=facts.parameters,
            bytes=facts.bytes,
            can=engine.can,
            files=[RegisteredFile(f.name, f.size, f.sha256) for f in (manifest.files if manifest is not None else ())],
            replicas=len(engine.copies.kept),
        )
        self._references[engine.name] = entry.reference
        try:
            self._known = {**self._known, engine.name: self._store.record(entry, time())}
        except CapacityError as error:
            log.warning("what is known of a model cannot be written", model=engine.name, reason=str(error))

    # Time

    async def run(self) -> None:
        """Until it is cancelled: unloads what rests, and what is used least where another model finds no room."""
        try:
            while True:
                await asyncio.sleep(_LOOK)
                try:
                    await self._tick()
                except Exception as error:  # models must come and go whatever happens to one of them
                    log.error("a look at the models failed unexpectedly; it is tried again", exc_info=error)
        finally:
            for loading in self._loading.values():
                loading.cancel()

    async def _tick(self) -> None:
        now = self._head.coordinator.now()
        resting = [
            Resting(name, engine.used, engine.busy or self._waiting.get(name, 0) > 0, bool(engine.state), engine.offer.priority)
            for name, engine in self._head.engines.items()
        ]
        if self._settings.idle:
            for name in rested(resting, self._settings.idle, now):
                await self._let_go(name, f"nobody asked for it for {self._settings.idle:g} s")
        if self._settings.on_demand:
            for name, engine in sorted(self._head.engines.items(), key=lambda item: -item[1].offer.priority):
                await self._make_room(name, engine, resting, now)

    async def _make_room(self, name: str, engine: ModelEngine, resting: list[Resting], now: float) -> None:
        """Where a model finds no room, one of no higher priority that nobody uses now gives it up: see least_used. One that would not fit in
        any case goes itself if a request wanted it."""
        if not engine.short:
            self._short_since.pop(name, None)
            return
        if now - self._short_since.setdefault(name, now) < _PATIENCE:
            return
        if why := engine.hopeless:
            if self._waiting.get(name, 0):
                self._short_since.pop(name)
                self.failed[name] = why
                await self._let_go(name, why)
        elif (other := least_used(resting, name)) is not None:
            self._short_since.pop(name, None)
            await self._let_go(other, f"{name} needs its memory")

    def bounded(self, replicas: int) -> tuple[int, str]:
        """Copies that an operator may have a model serve with, for so many that were asked for; and why, where that differs."""
        scaling = self._settings.scaling
        if not scaling.on or not replicas:
            return replicas, ""
        count = min(max(replicas, scaling.replicas_min, 1), scaling.replicas_max)
        bounds = f"--replicas-min is {scaling.replicas_min}, --replicas-max {scaling.replicas_max}"
        return count, f"{count} replicas, not {replicas}: {bounds}" if count != replicas else ""

    async def rest(self, name: str, why: str) -> None:
        """A model gives up its last copy; a request loads it again. Raises UnknownModel."""
        self._resting[name] = self._references[name]
        await self._let_go(name, why)

    def wake(self, name: str) -> None:
        """Loads a model that rests. Raises ShoalError."""
        self.begin(self._resting[name])

    async def _let_go(self, name: str, why: str) -> None:
        if name not in self._head.engines:
            return
        size = human_bytes(self._head.engines[name].served.cost.held_bytes)
        self._head.coordinator.recorder.events.add(EventKind.LEFT, f"{name} ({size}) is unloaded: {why}")
        log.info("a model is unloaded", model=name, reason=why)
        await self._unload(name, f"the model '{name}' was unloaded: {why}")
