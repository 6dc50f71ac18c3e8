"""The models of a head as the gateway sees them."""

from __future__ import annotations

from shoal.gateway.engines import ServedEngines
from shoal.node.head import Head


def engines_of(head: Head) -> ServedEngines:
    """They come and go as the head's do."""
    engines = ServedEngines([*head.engines.values()], head)

    def follow() -> None:
        for engine in [engine for engine in engines.all if head.engines.get(engine.name) is not engine]:
            engines.remove(engine.name)
        for engine in [engine for name, engine in head.engines.items() if name not in engines.names]:
            engines.add(engine)

    head.watch(follow)
    return engines
