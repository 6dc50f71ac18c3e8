"""Routes through the experts, made up with a given skew and repetition, and what a policy makes of them.

The distributions are those of a softmax router: a layer's experts have fixed popularities, and a token picks its experts without
replacement. With `LOCAL` one stream's LRU hit rates come close to those published for Qwen3-30B-A3B (6 % of the experts resident:
0.37, 19 %: 0.74, 38 %: 0.89, 63 %: 0.96); `FLAT` is a router without favourites.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from shoal.weights.eviction import Eviction
from shoal.weights.residency import Need, Tally, WeightResidency


@dataclass(frozen=True)
class Locality:
    skew: float
    """An expert's popularity is its rank to the power of minus this."""
    repeat: float
    """How likely an expert of a stream's token serves the next one, too, whatever its popularity."""


FLAT = Locality(0.0, 0.0)
LOCAL = Locality(1.4, 0.2)

Visit = tuple[int, list[int]]
"""A layer, and the experts that a step needs of it, ascending."""


def routes(
    locality: Locality, steps: int, layers: int, experts: int, chosen: int, streams: int, rng: np.random.Generator
) -> list[list[Visit]]:
    """The visits of each step, in which every stream has one token. All streams share the popularities."""
    ranks = np.stack([rng.permutation(experts) for _ in range(layers)]) + 1.0
    popularity = -locality.skew * np.log(ranks)[:, None, :]  # [layers, 1, experts]
    picked = np.empty((layers, streams, 0), np.int64)
    trace: list[list[Visit]] = []
    for _ in range(steps):
        scores = popularity + rng.gumbel(size=(layers, streams, experts))
        layer, stream, which = np.nonzero(rng.random(picked.shape) < locality.repeat)
        scores[layer, stream, picked[layer, stream, which]] = np.inf
        picked = np.argpartition(scores, experts - chosen, axis=2)[:, :, experts - chosen :]
        trace.append([(here, np.unique(picked[here]).tolist()) for here in range(layers)])
    return trace


def replay(trace: Sequence[Sequence[Visit]], experts: Sequence[int], slots: int, policy: Eviction, warm_up: int = 0) -> Tally:
    """What `policy` does over the steps of `trace` after the first `warm_up` of them, where reads take no time.

    experts: the units of each layer.
    """
    residency = WeightResidency(slots, experts, policy)
    before = Tally()
    for step, visits in enumerate(trace):
        if step == warm_up:
            before = Tally(**asdict(residency.tally))
        for layer, needed in visits:
            need = residency.need(layer, needed)
            _read(residency, need)
            while need.later:
                need = residency.next_wave(layer)
                _read(residency, need)
            residency.done(layer)
    return Tally(**{name: count - getattr(before, name) for name, count in asdict(residency.tally).items()})


def _read(residency: WeightResidency, need: Need) -> None:
    for load in need.loads:
        residency.arrived(load.unit)
