"""A bank that has less memory than its experts need: the same bits, within its memory, while experts come and go and reads fail."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import numpy as np
import pytest

from shoal.config import Precision
from shoal.errors import ConfigError, NotEnoughMemory, RemoteProtocolError
from shoal.executor.expert_bank import ExpertBank, Table
from shoal.models.weights import Weights
from shoal.wire.routed import Routed
from tests.support.descriptors import beneath
from tests.support.expert_workers import bytes_of, every_expert
from tests.support.mixtures import Maker
from tests.support.routed_rows import routed_of
from tests.support.streamed import FAULTS, Disk, finder

PRECISION = Precision.Q8
LAYERS, EXPERTS = 6, 8


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return Maker(tmp_path_factory.mktemp)("mixtral", PRECISION).weights


@pytest.fixture(scope="module")
def whole(weights: Weights) -> ExpertBank:
    bank = ExpertBank(weights.spec, PRECISION, 1)
    bank.hold(every_expert(weights), weights)
    return bank


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Of packed files. No thread is left, and none of the files is open."""
    before = set(threading.enumerate())
    yield tmp_path / "packed"
    gc.collect()
    assert set(threading.enumerate()) <= before
    assert beneath(tmp_path / "packed") == []


def bank_of(weights: Weights, folder: Path, experts: Table, percent: int = 50, disk: Disk | None = None) -> ExpertBank:
    """percent: of what its experts need in memory."""
    bank = ExpertBank(weights.spec, PRECISION, 1, packed=finder(folder, PRECISION, disk))
    bank.hold(experts, weights, bytes_of(weights, PRECISION, experts) * percent // 100)
    return bank


def some(weights: Weights, *numbers: int) -> Table:
    """The same experts of each layer."""
    return {layer: frozenset(numbers) for layer in every_expert(weights)}


def rows(weights: Weights, rng: Random, layer: int, among: range = range(EXPERTS), count: int = 3) -> Routed:
    """Each runs two experts."""
    return routed_of([{expert: rng.uniform(0.1, 1) for expert in rng.sample(among, 2)} for _ in range(count)], layer, weights.spec.hidden)


# Bits and memory


@pytest.mark.parametrize("percent", [10, 25, 50, 90])
@pytest.mark.parametrize("count", [1, 3, 40])
def test_rows_get_the_bits_of_a_bank_that_has_all_in_memory(
    weights: Weights, folder: Path, whole: ExpertBank, percent: int, count: int
) -> None:
    bank, rng = bank_of(weights, folder, every_expert(weights), percent, Disk(delay=0.001)), Random(percent)
    assert 0 < bank.nbytes <= bytes_of(weights, PRECISION, every_expert(weights)) * percent // 100
    for step in range(20):
        routed = rows(weights, rng, step % LAYERS, count=count)
        assert np.array_equal(bank.run(routed), whole.run(routed))
    reads = bank.expert_reads
    assert reads.misses > 0 and reads.bytes_read > 0
    bank.close()
    assert bank.expert_reads == reads, "no count falls"


def test_what_fits_is_held_and_nothing_is_packed(weights: Weights, folder: Path) -> None:
    bank = bank_of(weights, folder, every_expert(weights), 100)
    assert bank.nbytes == bytes_of(weights, PRECISION, every_expert(weights))
    assert not folder.exists()
    assert not any(bank.expert_reads)


def test_rows_are_counted(weights: Weights, folder: Path) -> None:
    bank = bank_of(weights, folder, every_expert(weights))
    bank.run(routed_of([{0: 1.0, 3: 1.0}, {3: 1.0}], 2, weights.spec.hidden))
    assert bank.expert_rows[2].tolist() == [1, 0, 0, 2, 0, 0, 0, 0]
    with pytest.raises(RemoteProtocolError, match="cannot be run"):
        bank.run(routed_of([{0: 1.0}], 2, weights.spec.hidden + 32))
    assert bank.expert_rows[2].sum() == 3
    bank.close()


def test_too_little_memory_for_the_experts_of_one_row_is_refused(weights: Weights, folder: Path) -> None:
    bank = ExpertBank(weights.spec, PRECISION, 1, packed=finder(folder, PRECISION))
    with pytest.raises(NotEnoughMemory, match="must be in memory at once"):
        bank.hold(every_expert(weights), weights, 1000)
    assert bank.held == {}


def test_a_node_that_may_not_read_from_disk_says_what_it_lacks(weights: Weights) -> None:
    bank = ExpertBank(weights.spec, PRECISION, 1)
    with pytest.raises(NotEnoughMemory, match="may not read them from disk"):
        bank.hold(every_expert(weights), weights, bytes_of(weights, PRECISION, every_expert(weights)) - 1)
    assert bank.held == {}


# Experts come and go


def test_a_bank_that_held_all_reads_from_disk_when_it_is_given_more(weights: Weights, folder: Path, whole: ExpertBank) -> None:
    few, rng = some(weights, 0, 1, 2), Random(1)
    bank = bank_of(weights, folder, few, 100)
    memory = bank.nbytes
    routed = rows(weights, rng, 2, range(3))
    before = bank.run(routed)
    bank.hold(every_expert(weights), weights, memory)
    assert bank.held == every_expert(weights) and bank.nbytes <= memory
    assert not any(experts.nbytes for experts in bank._sets.values()), "what was held is freed"
    assert np.array_equal(bank.run(routed), before)
    for layer in range(LAYERS):
        routed = rows(weights, rng, layer)
        assert np.array_equal(bank.run(routed), whole.run(routed))
    bank.close()


def test_what_is_not_wanted_any_more_goes_first_where_both_do_not_fit(weights: Weights, folder: Path) -> None:
    bank = bank_of(weights, folder, some(weights, 0, 1, 2), 100)
    memory = bank.nbytes
    bank.hold(some(weights, 2, 3, 4), weights, memory)
    assert bank.held == some(weights, 2, 3, 4) and bank.nbytes == memory
    assert not folder.exists()


def test_what_is_shed_is_refused_and_may_come_again(weights: Weights, folder: Path, whole: ExpertBank) -> None:
    bank, rng = bank_of(weights, folder, every_expert(weights)), Random(2)
    bank.shed({1: [0, 1]})
    assert bank.held == {1: {0, 1}}
    with pytest.raises(RemoteProtocolError, match=r"layer 1 .*expert 2 is not here"):
        bank.run(routed_of([{1: 1.0, 2: 1.0}], 1, weights.spec.hidden))
    routed = rows(weights, rng, 1, range(2))
    assert np.array_equal(bank.run(routed), whole.run(routed))
    bank.hold(some(weights, 5, 6), weights)
    assert bank.held == {**some(weights, 5, 6), 1: {0, 1, 5, 6}}
    routed = rows(weights, rng, 3, range(5, 7))
    assert np.array_equal(bank.run(routed), whole.run(routed))
    bank.close()
    assert bank.held == {}
    with pytest.raises(RemoteProtocolError, match="experts of layer 3 are not here"):
        bank.run(routed)


def test_layers_that_come_later_are_read_too(weights: Weights, folder: Path, whole: ExpertBank) -> None:
    first = {layer: experts for layer, experts in every_expert(weights).items() if layer < 2}
    bank, rng = bank_of(weights, folder, first), Random(3)
    bank.run(rows(weights, rng, 0))
    reads = bank.expert_reads
    bank.hold(every_expert(weights), weights)
    assert bank.expert_reads == reads
    for layer in range(LAYERS):
        routed = rows(weights, rng, layer)
        assert np.array_equal(bank.run(routed), whole.run(routed))
    assert sorted(path.name for path in folder.iterdir()) == [f"layer-{layer:04d}.packed" for layer in range(LAYERS)]
    bank.close()


def test_what_was_read_stays_when_other_experts_come_and_go(weights: Weights, folder: Path) -> None:
    disk = Disk()
    bank = bank_of(weights, folder, every_expert(weights), disk=disk)
    routed = routed_of([{0: 1.0, 1: 1.0}], 0, weights.spec.hidden)
    bank.run(routed)
    reads = disk.reads
    bank.shed(some(weights, 0, 1))
    bank.hold(every_expert(weights), weights)
    bank.run(routed)
    assert disk.reads == reads
    bank.close()


def test_experts_of_which_all_fit_later_come_to_be_in_memory(weights: Weights, folder: Path) -> None:
    disk, rng = Disk(), Random(4)
    bank = bank_of(weights, folder, every_expert(weights), 60, disk)
    bank.shed(some(weights, 0, 1))
    for layer in range(LAYERS):
        bank.run(rows(weights, rng, layer, range(2)))
    reads = disk.reads
    for layer in range(LAYERS):
        bank.run(rows(weights, rng, layer, range(2)))
    assert disk.reads == reads
    bank.close()


@pytest.mark.slow
def test_experts_come_and_go_while_rows_run(weights: Weights, folder: Path, whole: ExpertBank) -> None:
    """One thread runs, one loads and sheds, and one looks. What both tables have is never refused."""
    bank, rng = bank_of(weights, folder, some(weights, 0, 1, 2, 3), 100), Random(5)
    memory = bank.nbytes

    def change() -> None:
        for _ in range(10):
            bank.hold(every_expert(weights), weights, memory)
            bank.shed(some(weights, 0, 1, 2, 3))
            bank.hold({0: frozenset([7])}, weights, memory)

    def look() -> None:
        last = bank.expert_reads
        while not changing.done():
            now = bank.expert_reads
            assert all(a >= b for a, b in zip(now, last, strict=True))
            assert bank.nbytes <= memory
            last = now

    with ThreadPoolExecutor(2) as pool:
        changing = pool.submit(change)
        looking = pool.submit(look)
        while not changing.done():
            routed = rows(weights, rng, rng.randrange(LAYERS), range(4))
            assert np.array_equal(bank.run(routed), whole.run(routed))
        changing.result()
        looking.result()
    bank.close()


# Disks


@pytest.mark.parametrize("fault", FAULTS)
def test_a_read_that_fails_is_said_and_harms_no_other_rows(weights: Weights, folder: Path, whole: ExpertBank, fault: str) -> None:
    disk = Disk()
    bank = bank_of(weights, folder, every_expert(weights), disk=disk)
    disk.faults[disk.reads] = FAULTS[fault]
    routed = routed_of([{0: 1.0, 1: 1.0}], 3, weights.spec.hidden)
    with pytest.raises(RemoteProtocolError, match=r"experts of layer 3 cannot be read: .*layer-0003\.packed: .*check the disk"):
        bank.run(routed)
    assert not bank.expert_rows[3].any()
    other = routed_of([{0: 1.0, 1: 1.0}], 2, weights.spec.hidden)
    assert np.array_equal(bank.run(other), whole.run(other))
    assert np.array_equal(bank.run(routed), whole.run(routed)), "it can be read by now"
    bank.close()


def test_a_damaged_file_is_made_again_with_the_next_order(weights: Weights, folder: Path, whole: ExpertBank) -> None:
    bank = bank_of(weights, folder, every_expert(weights))
    path = folder / "layer-0003.packed"
    data = bytearray(path.read_bytes())
    data[4096:-4096] = bytes(len(data) - 8192)
    path.write_bytes(data)
    routed = routed_of([{0: 1.0, 1: 1.0}], 3, weights.spec.hidden)
    for _ in range(2):
        with pytest.raises(RemoteProtocolError, match=r"layer-0003\.packed"):
            bank.run(routed)
    assert bank.lacks({})
    reads = bank.expert_reads
    bank.hold(every_expert(weights), weights)
    assert not bank.lacks(every_expert(weights)) and bank.expert_reads == reads
    assert np.array_equal(bank.run(routed), whole.run(routed))
    bank.close()


def test_files_of_an_earlier_start_are_used(weights: Weights, folder: Path, whole: ExpertBank) -> None:
    bank_of(weights, folder, every_expert(weights)).close()
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    bank = bank_of(weights, folder, every_expert(weights))
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    routed = rows(weights, Random(6), 5)
    assert np.array_equal(bank.run(routed), whole.run(routed))
    bank.close()


def test_experts_that_the_model_has_not_are_refused_before_anything_is_packed(weights: Weights, folder: Path) -> None:
    bank = ExpertBank(weights.spec, PRECISION, 1, packed=finder(folder, PRECISION))
    for wrong, why in (({LAYERS: frozenset([0])}, "has no experts"), ({1: frozenset([EXPERTS])}, "and no number 8")):
        with pytest.raises(ConfigError, match=why):
            bank.hold(wrong, weights, 1)
    assert not folder.exists() and bank.held == {}
