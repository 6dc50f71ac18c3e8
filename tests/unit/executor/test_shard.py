"""Keys and values of lost layers come back bit by bit, from a journal or from the tokens, however the layers are dealt out anew."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.config import KvType, Precision, RuntimeName
from shoal.errors import CorruptModel, LocalProtocolError, RemoteProtocolError
from shoal.executor.journal import JournalLimits
from shoal.executor.shard import Shard
from shoal.models.matrix import StoredMatrix
from shoal.models.weights import GgufWeights, SafetensorsWeights, Weights
from shoal.scheduler.plan import Chunk, StepPlan
from shoal.wire.frame import WireCodec
from tests.support import mixtures, tiny
from tests.support.descriptors import beneath
from tests.support.mixtures import Case, Maker
from tests.support.shards import Line, Node

LAYERS = mixtures.LAYERS
PROMPTS = [tiny.TOKENS, tiny.TOKENS[7:40], tiny.TOKENS[:5]]
TAIL = 4


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    built = tiny.model("qwen3", num_hidden_layers=LAYERS, head_dim=32)
    return SafetensorsWeights(tiny.saved(built, tmp_path_factory.mktemp("qwen3")))


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    return Maker(tmp_path_factory.mktemp)


@pytest.fixture(scope="module", params=[pytest.param(None, id="dense"), *mixtures.EVERY])
def case(request: pytest.FixtureRequest, weights: Weights, maker: Maker) -> Case:
    return Case(weights, Precision.FP32) if request.param is None else maker(*request.param)


def cut(*bounds: int) -> list[range]:
    return [range(a, b) for a, b in pairwise(bounds)]


def begun(case: Case, *bounds: int, **options: Any) -> Line:
    """Some sequences, their prompts and a few tokens computed."""
    line = Line(case.weights, **{"precision": case.precision, "threads": 2, **options})
    line.enter(cut(*bounds), [Node(line) for _ in bounds[1:]])
    for sequence, prompt in enumerate(PROMPTS):
        line.add(sequence, prompt)
    line.decode(3)
    return line


@pytest.fixture(scope="module")
def undisturbed(case: Case) -> dict[int, list[int]]:
    """By one node of one thread; those that something happens to have two."""
    line = begun(case, 0, LAYERS, threads=1)
    line.decode(TAIL)
    return line.tokens


@pytest.fixture
def goes_on(undisturbed: dict[int, list[int]]) -> Iterator[list[Line]]:
    """Lines that must end with the tokens of one that nothing happened to."""
    lines: list[Line] = []
    yield lines
    for line in lines:
        line.decode(TAIL)
        assert line.tokens == undisturbed


@pytest.mark.parametrize("chunk", [7, 40, 200])
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_fresh_node_takes_over_bit_by_bit(case: Case, goes_on: list[Line], lost: int, chunk: int) -> None:
    line = begun(case, 0, 2, 4, 6)
    before, nodes = line.kv(), list(line.nodes)
    nodes[lost], line.chunk = Node(line), chunk
    assert line.enter(line.layouts, nodes) == []
    assert line.kv() == before
    assert set(line.refilled) == {((2 * lost, 2 * lost + 2),)}
    goes_on.append(line)


@pytest.mark.parametrize("at", [2, 3, 4])
def test_the_neighbours_take_the_layers(case: Case, goes_on: list[Line], at: int) -> None:
    line = begun(case, 0, 2, 4, 6)
    before = line.kv()
    assert line.enter(cut(0, at, 6), [line.nodes[0], line.nodes[2]]) == []
    assert line.kv() == before
    assert set(line.refilled) == {((2, 4),)}
    goes_on.append(line)


@pytest.mark.parametrize(("first", "layouts"), [(True, cut(0, 4, 6)), (False, cut(0, 2, 6))])
def test_a_neighbour_takes_the_first_or_the_last_layers(case: Case, goes_on: list[Line], first: bool, layouts: list[range]) -> None:
    line = begun(case, 0, 2, 4, 6)
    before = line.kv()
    assert line.enter(layouts, line.nodes[1:] if first else line.nodes[:-1]) == []
    assert line.kv() == before
    goes_on.append(line)


def test_several_spans_are_filled_in_the_same_steps(case: Case, goes_on: list[Line]) -> None:
    line = begun(case, 0, 1, 2, 3, 4, 6)
    before, nodes = line.kv(), list(line.nodes)
    nodes[0], nodes[2], nodes[4] = Node(line), Node(line), Node(line)
    assert line.enter(line.layouts, nodes) == []
    assert line.kv() == before
    assert set(line.refilled) == {((0, 1), (2, 3), (4, 6))}
    goes_on.append(line)


def test_all_is_filled_from_the_tokens_where_nothing_is_left(case: Case, goes_on: list[Line]) -> None:
    line = begun(case, 0, 2, 4, 6)
    before = line.kv()
    assert line.enter(cut(0, 3, 6), [Node(line), Node(line)]) == []
    assert line.kv() == before
    goes_on.append(line)


@pytest.mark.parametrize("lost", [1, 2])
def test_without_a_journal_all_is_filled_from_the_tokens(case: Case, goes_on: list[Line], lost: int) -> None:
    line = begun(case, 0, 2, 4, 6, journal=0)
    before, nodes = line.kv(), list(line.nodes)
    nodes[lost] = Node(line)
    assert line.enter(line.layouts, nodes) == [0, 1, 2]
    assert line.kv() == before
    goes_on.append(line)


def test_sequences_that_the_journal_does_not_reach_are_filled_from_the_tokens(case: Case, goes_on: list[Line]) -> None:
    line = begun(case, 0, 2, 4, 6, journal=14 * 32 * 64 * 4)  # the first sequence lies in blocks 15, 14 and 13
    before, nodes = line.kv(), list(line.nodes)
    nodes[1] = Node(line)
    assert line.enter(line.layouts, nodes) == [0]
    assert line.kv() == before
    assert line.refilled.count(((0, 4),)) == 2
    goes_on.append(line)


@pytest.mark.parametrize("encoding", [WireCodec.BF16, WireCodec.INT8, WireCodec.INT4])
def test_encoded_activations_are_replayed_as_they_were_sent(case: Case, encoding: WireCodec) -> None:
    line, calm = (begun(case, 0, 2, 4, 6, encoding=encoding) for _ in range(2))
    before, nodes = line.kv(), list(line.nodes)
    nodes[1] = Node(line)
    assert line.enter(line.layouts, nodes) == []
    assert line.kv() == before
    for each in (line, calm):
        each.decode(TAIL)
    assert line.tokens == calm.tokens


def test_a_journal_that_was_filled_anew_serves_the_next_loss(case: Case, goes_on: list[Line]) -> None:
    line = begun(case, 0, 2, 4, 6)
    line.enter(line.layouts, [line.nodes[0], Node(line), line.nodes[2]])
    before = line.kv()
    assert line.enter(line.layouts, [*line.nodes[:2], Node(line)]) == []
    assert line.kv() == before
    assert set(line.refilled) == {((2, 4),), ((4, 6),)}
    goes_on.append(line)


def test_a_boundary_that_moved_is_not_replayed_from_what_it_was(case: Case, undisturbed: dict[int, list[int]]) -> None:
    line = begun(case, 0, 2, 4, 6)
    line.enter(cut(0, 3, 6), [line.nodes[0], line.nodes[2]])
    line.decode(1)  # the journal at layer 2 would miss these
    before = line.kv()
    assert line.enter(cut(0, 2, 6), [line.nodes[0], Node(line)]) == [0, 1, 2]
    assert line.kv() == before
    line.decode(TAIL - 1)
    assert line.tokens == undisturbed


def test_layers_that_were_given_away_come_back(case: Case, goes_on: list[Line]) -> None:
    line = begun(case, 0, 4, 6)
    first, second = line.nodes
    before, weighed = line.kv(), first.shard.nbytes
    line.enter(cut(0, 2, 6), [first, second])
    assert first.shard.nbytes < weighed
    assert sorted(first.kv()) == [0, 1]
    line.enter(cut(0, 4, 6), [first, second])
    assert first.shard.nbytes == weighed
    assert first.shard.layers == [range(4)]
    assert line.kv() == before
    goes_on.append(line)


def test_the_last_layers_head_goes_with_them(case: Case, goes_on: list[Line]) -> None:
    line = begun(case, 0, 3, 6)
    first, second = line.nodes
    alone = Shard(line.make)
    alone.load(range(3, 5), case.weights)
    line.enter(cut(0, 3, 5, 6), [first, second, Node(line)])
    assert second.shard.nbytes == alone.nbytes
    goes_on.append(line)


def test_layers_are_filled_up_to_the_middle_of_what_was_loaded_at_once(case: Case, goes_on: list[Line]) -> None:
    """A node's epoch is given up before it enters it, and the head counts on what would be left: part of one piece of weights."""
    line = begun(case, 0, 4, 6)
    before = line.kv()
    line.nodes[0].filled = range(2)
    assert line.enter(line.layouts, line.nodes) == [0, 1, 2]
    assert line.kv() == before
    line.nodes[1].filled = range(5, 6)
    line.enter(line.layouts, line.nodes)
    assert line.kv() == before
    goes_on.append(line)


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sets(st.integers(1, LAYERS - 1)),
    st.lists(st.tuples(st.sets(st.integers(1, LAYERS - 1)), st.integers(0, 63), st.integers(0, 1)), min_size=1, max_size=3),
    st.sampled_from([0, 14 * 32 * 64 * 4, 1 << 26]),
)
def test_however_the_layers_are_dealt_out(
    case: Case, undisturbed: dict[int, list[int]], first: set[int], story: list[tuple[set[int], int, int]], journal: int
) -> None:
    """Each epoch has other cuts; some of its nodes are those that were there before, in their order, others are fresh."""
    line = begun(case, 0, *sorted(first), LAYERS, journal=journal)
    left = TAIL
    for cuts, survive, steps in story:
        layouts, before = cut(0, *sorted(cuts), LAYERS), line.kv()
        old = [node for i, node in enumerate(line.nodes) if survive >> i & 1]
        nodes = [old.pop(0) if old and survive >> i & 1 else Node(line) for i in range(len(layouts))]
        line.enter(layouts, nodes)
        assert line.kv() == before
        steps = min(steps, left)
        line.decode(steps)
        left -= steps
    line.decode(left)
    assert line.tokens == undisturbed


# What a shard refuses, and what it frees


def shard(line: Line) -> Shard:
    return Node(line).shard


def test_layers_that_are_not_loaded_cannot_be_entered(weights: Weights) -> None:
    one = shard(Line(weights))
    one.load(range(2), weights)
    with pytest.raises(LocalProtocolError, match="not loaded"):
        one.enter(range(3), range(0), 8)


@pytest.mark.parametrize("blocks", [8, 9])
def test_keys_and_values_that_are_not_here_cannot_be_kept(weights: Weights, blocks: int) -> None:
    one = shard(Line(weights))
    one.load(range(2), weights)
    if blocks == 9:
        one.enter(range(2), range(0), 8)
    with pytest.raises(LocalProtocolError, match="not here"):
        one.enter(range(2), range(2), blocks)


def test_only_what_is_missing_is_loaded(weights: Weights) -> None:
    one = shard(Line(weights))
    one.load(range(2, 3), weights)
    one.load(range(4, 5), weights)
    assert one.missing(range(6)) == [range(2), range(3, 4), range(5, 6)]
    assert one.missing(range(2, 3)) == one.missing(range(4, 5)) == []
    one.load(range(1, 6), weights)
    assert one.layers == [range(1, 6)]


class _Failing:
    """Weights of which one layer cannot be read."""

    def __init__(self, weights: Weights, layer: int) -> None:
        self._weights, self._wrong = weights, f"layers.{layer}.down"
        self.spec, self.format, self.vector, self.forget = weights.spec, weights.format, weights.vector, weights.forget
        self.check = weights.check

    def matrix(self, name: str) -> StoredMatrix:
        if name == self._wrong:
            raise CorruptModel("m", "damaged")
        return self._weights.matrix(name)


def test_all_of_what_is_missing_is_loaded_or_nothing(weights: Weights) -> None:
    one = shard(Line(weights))
    one.load(range(2), weights)
    weighed = one.nbytes
    with pytest.raises(CorruptModel, match="damaged"):
        one.load(range(5), _Failing(weights, 3))
    assert (one.layers, one.nbytes) == ([range(2)], weighed)
    one.load(range(5), weights)
    assert one.layers == [range(5)]


def test_a_layer_among_those_that_run_is_loaded_and_freed_again(case: Case, goes_on: list[Line]) -> None:
    """What is loaded for the next epoch changes nothing of this one."""
    line = begun(case, 0, 2, 6)
    first, second = (node.shard for node in line.nodes)
    before = first.nbytes, second.nbytes
    first.load(range(2, 4), case.weights)
    line.decode(1)
    assert first.layers == [range(4)]
    first.enter(range(2), range(2), 16)
    assert (first.nbytes, second.nbytes) == before
    line.enter(line.layouts, line.nodes)
    line.tokens = {sequence: known[:-1] for sequence, known in line.tokens.items()}
    goes_on.append(line)


def test_entering_twice_begins_with_empty_tables(case: Case, goes_on: list[Line]) -> None:
    line = begun(case, 0, 6)
    before = line.kv()
    line.enter(line.layouts, line.nodes)
    line.enter(line.layouts, line.nodes)
    assert line.kv() == before
    assert line.refilled == []
    goes_on.append(line)


def test_what_is_not_kept_is_empty(case: Case) -> None:
    line = begun(case, 0, 6)
    one = line.nodes[0].shard
    one.enter(range(6), range(2, 4), 16)
    kept = line.nodes[0].kv()
    assert [any(kept.get(layer, b"")) for layer in range(6)] == [False, False, True, True, False, False]


def test_a_node_at_rest_holds_weights_and_nothing_else(case: Case) -> None:
    line = begun(case, 0, 3, 6)
    one = line.nodes[0].shard
    weighed = one.nbytes
    one.rest()
    assert (one.nbytes, one.layers, one.journal_bytes, line.nodes[0].kv()) == (weighed, [range(3)], 0, {})
    one.shed([range(3, 6)])
    assert (one.nbytes, one.layers) == (0, [])


def test_a_journals_file_ends_with_its_boundary(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    line = begun(case, 0, 3, 6)
    one = Shard(line.make, JournalLimits(0, 1 << 26))
    one.load(range(3), case.weights)
    for upto in (3, 2, 1):
        stage = one.enter(range(upto), range(0), 16)
        stage.run(StepPlan(0, [], [], [], [], [Chunk(0, 0, [1, 2], [0], False)]), None)
        assert len(beneath(tmp_path)) == 1
    one.close()
    assert beneath(tmp_path) == []


def test_a_refill_from_tokens_needs_the_first_layer(weights: Weights) -> None:
    one = shard(Line(weights))
    one.load(range(2, 4), weights)
    stage = one.enter(range(2, 4), range(0), 16)
    with pytest.raises(RemoteProtocolError, match="without activations"):
        stage.run(StepPlan(0, [], [], [], [], [Chunk(0, 0, [1], [0], False)], [(0, 4)]), None)


@pytest.mark.slow
@pytest.mark.parametrize("at", [2, 4])
def test_segments_are_dealt_out_anew_as_blocks_are(weights: Weights, at: int) -> None:
    def played(runtime: RuntimeName, moved: bool) -> dict[int, list[int]]:
        line = begun(Case(weights, Precision.FP32), 0, 3, 6, runtime=runtime, kv_type=KvType.FP32, threads=1)
        if moved:
            before = line.kv()
            assert line.enter(cut(0, at, 6), line.nodes) == ([] if at > 3 else [0, 1, 2])
            after = line.kv()
            close = [
                np.allclose(np.frombuffer(after[i], np.float32), np.frombuffer(before[i], np.float32), rtol=1e-3, atol=1e-4) for i in before
            ]
            assert close == [True] * 6
        line.decode(TAIL)
        return line.tokens

    assert played(RuntimeName.ONNXRUNTIME, True) == played(RuntimeName.ONNXRUNTIME, False)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize(("lost", "kv_type"), [(0, KvType.BF16), (1, KvType.BF16), (2, KvType.BF16), (1, KvType.Q8), (2, KvType.Q4)])
def test_a_trained_model_goes_on_bit_by_bit(smollm2: Path, lost: int, kv_type: KvType) -> None:
    weights = GgufWeights(smollm2)
    line = Line(weights, precision=Precision.AUTO, blocks=24, kv_type=kv_type)
    line.enter(cut(0, 10, 20, 30), [Node(line) for _ in range(3)])
    for sequence in range(3):
        line.add(sequence, [(i * 37 + sequence) % 4000 + 5 for i in range(90)])
    line.decode(4)
    before, nodes = line.kv(), list(line.nodes)
    line.decode(6)
    wanted = {sequence: known[:] for sequence, known in line.tokens.items()}
    line.tokens = {sequence: known[:-6] for sequence, known in line.tokens.items()}  # the results of these steps were lost
    nodes[lost] = Node(line)
    line.chunk = 64
    assert line.enter(line.layouts, nodes) == []
    after = line.kv()
    assert [layer for layer in line.layouts[lost] if after[layer] != before[layer]] == []
    line.decode(6)
    assert line.tokens == wanted
