"""What a successor takes over from the head that it follows: its models and how they run, and the rules of the cluster.

Addresses, ports, folders, and all that concerns the API are a head's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import msgspec

from shoal.config import EngineSettings, HeadSettings
from shoal.errors import RemoteProtocolError
from shoal.node.model_engine import ModelEngine
from shoal.settings import composed, settings_of, values_of

RULES = (
    "on_demand",
    "load_wait",
    "idle",
    "heartbeat",
    "spread",
    "spares",
    "min_nodes",
    "min_memory",
    "min_speed",
    "max_nodes",
    "pace",
    "step_timeout",
    "resume",
    "wait",
)
"""The settings of a head that its successor takes over."""


class InheritedModel(msgspec.Struct, frozen=True):
    engine: tuple[tuple[str, str | int | float | bool], ...]
    """EngineSettings: names and values."""
    replicas: int
    pinned: tuple[str, ...]
    priority: int = 0
    gathered: int = 1
    batch_delay: float = 0.0
    """See scheduler.limits.Batching."""

    @property
    def reference(self) -> str:
        return str(dict(self.engine).get("model", ""))

    def settings(self, own: EngineSettings) -> EngineSettings:
        """own: those of the successor, whose chat template it is. Raises ConfigError."""
        return composed(EngineSettings, {**_typed(EngineSettings, dict(self.engine)), "chat_template": own.chat_template})


def bequeathed(settings: HeadSettings, engines: Iterable[ModelEngine]) -> tuple[str, str]:
    """The rules and the models, in JSON."""
    values = values_of(settings)
    models = [
        InheritedModel(
            tuple(_plain(values_of(engine.offer.engine)).items()),
            len(engine.copies.kept),
            tuple(sorted(engine.pinned)),
            engine.offer.priority,
            engine.offer.batching.size,
            engine.offer.batching.delay,
        )
        for engine in engines
    ]
    return _encoded(_plain({name: values[name] for name in RULES})), _encoded(models)


def inherited(settings: HeadSettings, rules: str) -> HeadSettings:
    """The successor's settings, with the rules of the head before. Raises RemoteProtocolError, ConfigError."""
    given = _typed(HeadSettings, _decoded(rules, dict[str, Any]))
    return dataclasses.replace(settings, **{name: value for name, value in given.items() if name in RULES})


def inherited_models(models: str) -> list[InheritedModel]:
    """The default first. Raises RemoteProtocolError."""
    return _decoded(models, list[InheritedModel])


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: getattr(value, "value", value) for name, value in values.items()}


def _typed(role: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    """Values of this version's settings, with their types. Raises RemoteProtocolError."""
    try:
        return {s.name: msgspec.convert(values[s.name], s.kind) for s in settings_of(role) if s.name in values}
    except msgspec.ValidationError as error:
        raise RemoteProtocolError(f"the leading head's settings cannot be read: {error}") from error


def _encoded(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _decoded(text: str, kind: Any) -> Any:
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.MsgspecError as error:
        raise RemoteProtocolError(f"what the leading head serves cannot be read: {error}") from error
