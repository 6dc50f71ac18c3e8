"""Experts that are read ahead change no token: guesses that are right or wrong, slow, or that cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from shoal.errors import WeightsUnreadable
from shoal.executor.base import Floats
from shoal.executor.foresight import Foresight, Routers
from shoal.executor.packed_layers import CONSTANT, PackedLayers
from shoal.executor.packing import StoredTensors
from shoal.executor.streamed_store import StreamedStore
from shoal.weights.direct_file import Source
from shoal.weights.prefetch import Prefetch
from tests.contract.test_streaming import Alone, Makes, Model
from tests.support import tiny
from tests.support.streamed import FAULTS, Disk, packed, residencies

PROMPT = tiny.TOKENS[:30]
TOKENS = 24
MIXTURES = ["mixtral", "a shared expert", "biases and sinks", "latent attention", "one layer"]
RESIDENCIES = ["least", "25 %", "50 %", "75 %"]


Guesses = Callable[[Sequence[int], Routers], Foresight | None]


class Wrong(Foresight):
    """Guesses at random, whatever is held."""

    def __init__(self, experts: Sequence[int], routers: Routers) -> None:
        super().__init__(experts, None)
        self._counts, self._random = experts, np.random.default_rng(7)

    def worth_reading(self, layer: int, hidden: Floats, page: Sequence[int]) -> list[int]:
        return self._random.permutation(self._counts[self.following(layer)])[:3].tolist()


@pytest.fixture(scope="module")
def makes(tmp_path_factory: pytest.TempPathFactory) -> Makes:
    return Makes(tmp_path_factory.mktemp)


def begun(model: Model, residency: str, foresight: Guesses, disk: Disk | None = None, files: PackedLayers | None = None) -> Alone:
    files = files or packed(model.weights, model.precision, model.folder, disk)
    store = StreamedStore(files, model.layers, residencies(model.sizes)[residency], foresight=foresight)
    store.fill()
    return Alone(model, store)


def answer(alone: Alone) -> list[int]:
    tokens = alone.greedy(PROMPT, TOKENS)
    alone.store.close()
    return tokens


@pytest.fixture(params=MIXTURES)
def model(request: pytest.FixtureRequest, makes: Makes) -> Model:
    return makes(request.param)


def right(model: Model) -> list[int]:
    return answer(begun(model, "100 %", lambda experts, routers: None))


@pytest.mark.parametrize("delay", [0.0, 0.002])
@pytest.mark.parametrize("residency", RESIDENCIES)
def test_forced(model: Model, residency: str, delay: float) -> None:
    alone = begun(model, residency, partial(Foresight, prefetch=Prefetch(accuracy=0)), Disk(delay=delay, seed=1))
    assert answer(alone) == right(model)
    assert alone.store.foreseen.guesses
    if residency == "50 %" and len(model.layers) > 1:
        assert alone.store.tally.guessed


@pytest.mark.parametrize("delay", [0.0, 0.002])
@pytest.mark.parametrize("residency", RESIDENCIES)
def test_guesses_that_are_wrong(model: Model, residency: str, delay: float) -> None:
    """Also those that are still being read when their layer's turn comes."""
    alone = begun(model, residency, Wrong, Disk(delay=delay, seed=2))
    assert answer(alone) == right(model)


class UnreadableAhead(PackedLayers):
    """Every read ahead fails the first time, and the next one of the same expert does not."""

    def __init__(self, model: Model) -> None:
        super().__init__(model.folder, model.weights.spec, StoredTensors(model.weights, model.precision))
        self.ahead = False
        self.failed_once: set[tuple[int, int]] = set()

    def source(self, layer: int) -> Source:
        source = super().source(layer)
        return _FailsOnce(source, layer, self) if self.ahead else source


class _FailsOnce:
    def __init__(self, source: Source, layer: int, files: UnreadableAhead) -> None:
        self._source, self._layer, self._files = source, layer, files

    @property
    def path(self) -> Path:
        return self._source.path

    def read_into(self, offset: int, into: memoryview) -> int:
        key = (self._layer, offset)
        if offset != self._files.unit(self._layer, CONSTANT).at and key not in self._files.failed_once:
            self._files.failed_once.add(key)
            raise OSError("Input/output error")
        self._files.failed_once.discard(key)
        return self._source.read_into(offset, into)


def test_guesses_that_cannot_be_read(model: Model) -> None:
    """What is needed after all is read once more; no step fails."""
    files = UnreadableAhead(model)

    class Ahead(Foresight):
        def compare(self, layer: int, needed: Sequence[int], page: Sequence[int], rows: int) -> None:
            files.ahead = False
            super().compare(layer, needed, page, rows)

        def worth_reading(self, layer: int, hidden: Floats, page: Sequence[int]) -> list[int]:
            files.ahead = True
            return super().worth_reading(layer, hidden, page)

    alone = begun(model, "50 %", partial(Ahead, prefetch=Prefetch(accuracy=0)), files=files)
    assert answer(alone) == right(model)
    assert not alone.store.failed
    assert alone.store.tally.failures or len(model.layers) == 1


@pytest.mark.parametrize("name", MIXTURES[:2])
def test_a_disk_that_fails_now_and_then(makes: Makes, name: str) -> None:
    """Never a wrong token: a step is right or it fails."""
    model = makes(name)
    disk = Disk(delay=0.0005)
    alone = begun(model, "25 %", partial(Foresight, prefetch=Prefetch(accuracy=0)), disk)
    expected, failed = right(model), 0
    rng = np.random.default_rng(5)
    faults = list(FAULTS.values())
    for _ in range(20):
        at = disk.reads + int(rng.integers(20))
        disk.faults = {at + int(further): faults[rng.integers(len(faults))] for further in rng.integers(0, 9, 3)}
        try:
            assert alone.greedy(PROMPT, TOKENS) == expected
        except WeightsUnreadable:
            failed += 1
    assert failed
    disk.faults = {}
    assert answer(alone) == expected


def test_what_does_not_come_true_is_not_read(makes: Makes) -> None:
    """By the rule that runs, with random weights whose routes nothing tells."""
    model = makes("mixtral")
    never = begun(model, "25 %", lambda experts, routers: Foresight(experts, None, prefetch=Prefetch(accuracy=1.1)))
    assert answer(never) == right(model)
    assert never.store.foreseen.guesses and not never.store.tally.guessed
