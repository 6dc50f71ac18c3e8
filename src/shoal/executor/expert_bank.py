"""Experts of many layers that a node holds and runs for stages on other machines."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from shoal.config import Precision
from shoal.errors import ConfigError, RemoteProtocolError
from shoal.executor.native_blocks import BlockMaker
from shoal.executor.packing import StoredTensors
from shoal.executor.store import RowCounts
from shoal.models.spec import Experts, ModelSpec
from shoal.models.weights import Weights
from shoal.native import kernels, missing
from shoal.wire.routed import Routed, Sums

if TYPE_CHECKING:
    from shoal.native import ExpertSet


_COUNTED_AT = 256
"""Questions whose rows are counted together."""


class ExpertBank:
    """One thread runs rows; another may load and shed meanwhile. Raises ConfigError without kernels."""

    def __init__(self, spec: ModelSpec, precision: Precision, threads: int, isa: str = "") -> None:
        if (module := kernels()) is None:
            raise ConfigError(f"this node cannot hold experts: {missing()}")
        self._module, self._spec, self._precision, self._threads = module, spec, precision, threads
        try:
            self._stage = module.Stage(spec.hidden, threads, isa)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self._sets: dict[int, ExpertSet] = {}
        self._held: dict[int, frozenset[int]] = {}
        self._counts: dict[int, RowCounts] = {}
        self._ran = deque[Routed]()
        """Not counted yet."""
        self._changing = Lock()
        """Held while rows run, and while experts come or go."""

    @property
    def name(self) -> str:
        """The runtime, and its instruction set."""
        return f"native/{self._stage.isa}"

    @property
    def held(self) -> Mapping[int, frozenset[int]]:
        """By layer."""
        return self._held

    @property
    def nbytes(self) -> int:
        return sum(experts.nbytes for experts in list(self._sets.values()))

    @property
    def expert_rows(self) -> dict[int, RowCounts]:
        """By layer: [experts] rows that each has computed here, whether it still is here or not."""
        with self._changing:
            self._count()
            return {layer: counts.copy() for layer, counts in self._counts.items()}

    def load(self, layer: int, experts: Iterable[int], weights: Weights) -> None:
        """Those that are missing. Raises ModelError, ConfigError."""
        kind = self._kind(layer)
        maker = BlockMaker(self._module, self._spec, StoredTensors(weights, self._precision, self._threads), layer)
        for expert in sorted(set(experts) - self._held.get(layer, frozenset())):
            if not 0 <= expert < kind.count:
                raise ConfigError(f"layer {layer} has {kind.count} experts, and no number {expert}")
            made = maker.expert(expert)
            with self._changing:
                if layer not in self._sets:
                    self._sets[layer] = self._module.ExpertSet(
                        [None] * kind.count, width=kind.width, hidden=self._spec.hidden, activation=kind.activation
                    )
                    self._counts.setdefault(layer, np.zeros(kind.count, np.uint64))
                self._sets[layer].place(expert, made)
                self._held = {**self._held, layer: self._held.get(layer, frozenset()) | {expert}}
        weights.forget()

    def shed(self, wanted: Mapping[int, Iterable[int]]) -> None:
        """Frees all others."""
        for layer, held in list(self._held.items()):
            kept = held.intersection(wanted.get(layer, ()))
            with self._changing:
                for expert in held - kept:
                    self._sets[layer].place(expert, None)
                self._held = {**self._held, layer: kept} if kept else {of: some for of, some in self._held.items() if of != layer}
                if not kept:
                    del self._sets[layer]

    def run(self, routed: Routed) -> Sums:
        """[rows, hidden]: of each row the sum of its experts. Raises RemoteProtocolError for rows that cannot be run here."""
        said = routed.header
        with self._changing:
            if (experts := self._sets.get(said.layer)) is None:
                raise RemoteProtocolError(f"experts of layer {said.layer} are not here")
            if said.entries > said.rows * self._kind(said.layer).routing.chosen:
                raise RemoteProtocolError("a row for experts names more of them than a row has")
            try:
                body = np.frombuffer(routed.body, np.uint8)
                sums = self._stage.partial(experts, body, said.rows, said.experts, said.entries, said.rounded)
            except ValueError as error:
                lacking = sorted(set(routed.experts.tolist()) - self._held[said.layer])
                why = f"expert {lacking[0]} is not here" if lacking else str(error)
                raise RemoteProtocolError(f"rows for experts of layer {said.layer} that cannot be run: {why}") from error
            self._ran.append(routed)
            if len(self._ran) >= _COUNTED_AT:
                self._count()
        return sums

    def _count(self) -> None:
        """Not with every question, which has no time for it."""
        while self._ran:
            routed = self._ran.popleft()
            self._counts[routed.layer][routed.experts] += np.diff(routed.offsets).astype(np.uint64)

    def _kind(self, layer: int) -> Experts:
        kind = self._spec.layers[layer].feed_forward if 0 <= layer < len(self._spec.layers) else None
        if not isinstance(kind, Experts):
            raise ConfigError(f"layer {layer} of the model has no experts")
        return kind
