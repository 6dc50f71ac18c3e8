"""Streamed weights give the bits of held ones, whatever part of them is in memory, in whatever order they come, and after a disk has failed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

from shoal.config import KvType, Precision, RuntimeName
from shoal.errors import WeightsUnreadable
from shoal.executor import packed_layers
from shoal.executor.cost import model_cost
from shoal.executor.expert_slots import Policy
from shoal.executor.runtimes import factory
from shoal.executor.stage import StageExecutor
from shoal.executor.streamed_store import StreamedStore
from shoal.models.weights import GgufWeights, SafetensorsWeights, Weights
from shoal.placement.division import StageSizes, least, least_expected
from shoal.request import SamplingParams
from shoal.scheduler.plan import Chunk, Opened, StepPlan
from shoal.weights.eviction import LeastFrequent, LeastRecent
from shoal.weights.expected_use import ExpectedUse
from shoal.weights.unit import Unit
from tests.support import gguf_families, tiny, tiny_families
from tests.support.descriptors import beneath
from tests.support.shards import Line, Node
from tests.support.streamed import FAULTS, Disk, Fault, finder, made, packed, residencies

LAYERS = 6
PROMPTS = [tiny.TOKENS, tiny.TOKENS[7:40], tiny.TOKENS[:5], tiny.TOKENS[20:21]]
RESIDENCIES = ["least", "25 %", "50 %", "75 %", "100 %"]


def _gpt_oss(folder: Path) -> Weights:
    built = tiny_families.model("gpt-oss", num_hidden_layers=LAYERS, layer_types=["sliding_attention", "full_attention"] * (LAYERS // 2))
    return GgufWeights(gguf_families.write(built, folder / "gpt-oss.gguf", format="mxfp4"))


def _tiny(name: str, **changes: Any) -> Callable[[Path], Weights]:
    """One of transformers' families."""

    def make(folder: Path) -> Weights:
        changed = {"num_hidden_layers": LAYERS, **changes}
        return SafetensorsWeights(tiny.saved((tiny_families if name in tiny_families.SIZES else tiny).model(name, **changed), folder))

    return make


MODELS: dict[str, tuple[Callable[[Path], Weights], Precision]] = {
    "mixtral": (_tiny("mixtral"), Precision.Q4),
    "mixtral fp32": (_tiny("mixtral"), Precision.FP32),
    "a shared expert": (_tiny("qwen2 moe", mlp_only_layers=[2]), Precision.Q8),
    "biases and sinks": (_gpt_oss, Precision.AUTO),
    "latent attention": (_tiny("deepseek v3", qk_nope_head_dim=32), Precision.Q8),
    "a dense llama": (_tiny("llama", attention_bias=True, mlp_bias=True), Precision.Q4),
    "gemma": (_tiny("gemma2", layer_types=["sliding_attention", "full_attention"] * (LAYERS // 2)), Precision.Q8),
    "one layer": (_tiny("qwen3 moe", num_hidden_layers=1), Precision.Q4),
}


class Model(NamedTuple):
    weights: Weights
    precision: Precision
    folder: Path
    """Of the packed files, which are made."""
    sizes: StageSizes

    @property
    def layers(self) -> range:
        return range(len(self.weights.spec.layers))


class Makes:
    """Each model once."""

    def __init__(self, folder: Callable[[str], Path]) -> None:
        self._folder, self._made = folder, dict[str, Model]()

    def __call__(self, name: str) -> Model:
        if name not in self._made:
            make, precision = MODELS[name]
            weights, folder = make(self._folder("model")), self._folder("packed")
            self._made[name] = Model(weights, precision, folder, made(weights, precision, folder))
        return self._made[name]


@pytest.fixture(scope="module")
def makes(tmp_path_factory: pytest.TempPathFactory) -> Makes:
    return Makes(tmp_path_factory.mktemp)


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, makes: Makes) -> Model:
    return makes(request.param)


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """No thread reads on, and no packed file stays open."""
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before
    for folder in {value.folder for value in request.node.funcargs.values() if isinstance(value, Model)}:
        assert beneath(folder) == []


class Said(NamedTuple):
    tokens: dict[int, list[int]]
    logits: list[np.ndarray]
    kv: dict[int, bytes]


def said(model: Model, memory: int, disk: Disk | None = None) -> Said:
    """Prompts in chunks, steps of four rows, layers whose keys and values are computed again, steps of one row. memory: 0: all is held."""
    line = Line(model.weights, precision=model.precision, threads=2, packed=finder(model.folder, model.precision, disk))
    node = Node(line)
    line.enter([model.layers], [node], [memory])
    logits = line.record()
    for sequence, prompt in enumerate(PROMPTS):
        line.add(sequence, prompt)
    line.decode(4)
    spans = [(0, 1), (2, 4), (5, 6)] if len(model.layers) == LAYERS else [(0, 1)]
    line.refill(spans)
    alone = {0: line.tokens.pop(0)}
    kept, line.tokens = line.tokens, alone
    line.decode(3)
    out = Said({**line.tokens, **kept}, logits, line.kv())
    node.shard.close()
    return out


def same(a: Said, b: Said) -> None:
    assert a.tokens == b.tokens
    assert len(a.logits) == len(b.logits)
    assert all(np.array_equal(x, y) for x, y in zip(a.logits, b.logits, strict=True))
    assert a.kv == b.kv


@pytest.fixture(scope="module")
def held(model: Model) -> Said:
    return said(model, 0)


@pytest.mark.parametrize("residency", RESIDENCIES)
def test_bit_by_bit(model: Model, held: Said, residency: str) -> None:
    same(said(model, residencies(model.sizes)[residency]), held)


@pytest.mark.parametrize("residency", ["least", "50 %"])
def test_reads_that_are_slow_and_come_in_any_order(model: Model, held: Said, residency: str) -> None:
    same(said(model, residencies(model.sizes)[residency], Disk(delay=0.001, seed=3)), held)


def test_where_a_stage_is_placed_it_can_run(model: Model) -> None:
    """What placement takes to be enough is, though it knows of no vectors and no pages."""
    cost = model_cost(model.weights.spec, model.weights, model.precision, KvType.BF16, 512)
    for first, end in ((0, len(model.layers)), (0, 1), (len(model.layers) // 2, len(model.layers))):
        sizes = packed(model.weights, model.precision, model.folder).sizes(range(first, end))
        assert least(sizes) <= least_expected(StageSizes.of(cost, first, end))


@pytest.mark.parametrize("residency", ["least", "75 %"])
def test_without_room_on_the_disk(model: Model, held: Said, residency: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are packed whenever they are read."""
    monkeypatch.setattr(packed_layers.shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    same(said(model._replace(folder=tmp_path / "full"), residencies(model.sizes)[residency]), held)
    assert list((tmp_path / "full").iterdir()) == []


def test_what_is_held_is_not_read_again(makes: Makes) -> None:
    """With the least memory most of what a step needs is read; with enough, nothing is after the first steps."""
    model = makes("mixtral")
    reads: dict[str, int] = {}
    for residency, memory in residencies(model.sizes).items():
        disk = Disk()
        said(model, memory, disk)
        reads[residency] = disk.reads
    units = sum(model.sizes.experts.values()) + LAYERS + 1
    assert reads["100 %"] <= units < reads["75 %"] < reads["50 %"] < reads["25 %"] < reads["least"]


# Eviction


class AtRandom:
    """Evicts anything, from a seed."""

    def __init__(self, counts: Sequence[int]) -> None:
        self._offered: set[Unit] = set()
        self._random = np.random.default_rng(len(counts))

    def visit(self, layer: int, experts: Sequence[int]) -> None:
        pass

    def offer(self, layer: int, experts: Sequence[int]) -> None:
        self._offered.update(Unit(layer, expert) for expert in experts)

    def keep(self, layer: int, experts: Sequence[int]) -> None:
        self._offered.difference_update(Unit(layer, expert) for expert in experts)

    def victim(self) -> Unit | None:
        if not self._offered:
            return None
        chosen = sorted(self._offered)[self._random.integers(len(self._offered))]
        self._offered.remove(chosen)
        return chosen

    def worth(self, guess: Unit) -> bool:
        return True


POLICIES: dict[str, Policy] = {
    "expected use": ExpectedUse,
    "LRU": lambda counts: LeastRecent(),
    "LFU": lambda counts: LeastFrequent(64.0),
    "at random": AtRandom,
}


class Alone:
    """One sequence through a stage of all layers, whose store a test makes."""

    def __init__(self, model: Model, store: StreamedStore) -> None:
        runtime = factory(RuntimeName.NATIVE, model.precision, KvType.BF16, 2)(model.weights, 0)
        runtime.open(8)
        self.store, self._vocabulary = store, model.weights.spec.vocabulary
        self._stage = StageExecutor(model.weights.spec, model.layers, runtime, store, 8, {}, model.weights)
        self._steps = count()

    def __call__(self, tokens: list[int], at: int = 0) -> int:
        """The likeliest token after these, which begin at a position."""
        opened = [] if at else [Opened(1, SamplingParams(temperature=0), [], [])]
        closed = [] if at else [1]
        chunk = Chunk(1, at, tokens, [] if at else list(range(4)), True)
        return self._stage.run(StepPlan(next(self._steps), opened, closed, [], [], [chunk]), None).sampled[0].token

    def greedy(self, prompt: list[int], tokens: int = 6) -> list[int]:
        out = [self(prompt)]
        while len(out) < tokens:
            out.append(self(out[-1:], len(prompt) + len(out) - 1))
        return out


def store(model: Model, memory: int, disk: Disk | None = None, policy: Policy = ExpectedUse) -> StreamedStore:
    opened = StreamedStore(packed(model.weights, model.precision, model.folder, disk), model.layers, memory, policy)
    opened.fill()
    return opened


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ["mixtral", "a shared expert"])
def test_whatever_is_evicted(makes: Makes, name: str, policy: str) -> None:
    model = makes(name)
    answers: list[list[int]] = []
    for memory in list(residencies(model.sizes).values())[::2]:
        alone = Alone(model, store(model, memory, policy=POLICIES[policy]))
        answers.append(alone.greedy(tiny.TOKENS[:30], 12))
        alone.store.close()
    assert answers == answers[:1] * len(answers)


# Faults


FAULTY = ["mixtral", "a shared expert", "a dense llama"]


class Struck:
    """A model that answers, and a disk of which some reads will fail."""

    def __init__(self, model: Model, residency: str) -> None:
        self.disk = Disk()
        self.alone = Alone(model, store(model, residencies(model.sizes)[residency], self.disk))
        self.begun = self.disk.reads
        self.right = self.alone.greedy(PROMPTS[1])
        """The answer without a fault."""

    def fails(self, fault: Fault, *after: int) -> bool:
        """Whether an answer fails; otherwise it is right, because what was read ahead in vain is read again. The next one is right in any
        case. after: reads from now on that go wrong."""
        self.disk.faults = {self.disk.reads + number: fault for number in after}
        try:
            assert self.alone.greedy(PROMPTS[1]) == self.right
            failed = False
        except WeightsUnreadable:
            failed = True
        assert failed or not self.disk.faults
        self.disk.faults = {}
        assert self.alone.greedy(PROMPTS[1]) == self.right
        return failed


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", FAULTY)
def test_a_step_fails_and_the_next_one_is_right(makes: Makes, name: str, fault: str) -> None:
    struck = Struck(makes(name), "least")
    failed = [struck.fails(FAULTS[fault], after) for after in (0, 1, 2, 5, 13)]
    assert any(failed) == (name != "a dense llama")  # whose parts are all read ahead
    assert struck.fails(FAULTS[fault], *range(7, 15))
    struck.alone.store.close()


@pytest.mark.parametrize("name", FAULTY)
def test_a_disk_that_is_gone_for_a_while(makes: Makes, name: str) -> None:
    """Step after step fails at once; none hangs, and none answers."""
    struck = Struck(makes(name), "least")
    for _ in range(5):
        struck.disk.broken = True
        for _ in range(3):
            with pytest.raises(WeightsUnreadable, match="Input/output error"):
                struck.alone.greedy(PROMPTS[1])
        struck.disk.broken = False
        assert struck.alone.greedy(PROMPTS[1]) == struck.right
    assert struck.alone.store.failed
    struck.alone.store.close()


def test_a_disk_that_fails_now_and_then_and_is_slow(makes: Makes) -> None:
    """Never a wrong token: a step is right or it fails."""
    model = makes("mixtral")
    disk = Disk(delay=0.0005)
    alone = Alone(model, store(model, residencies(model.sizes)["25 %"], disk))
    right = alone.greedy(PROMPTS[1])
    rng = np.random.default_rng(5)
    faults = list(FAULTS.values())
    failed = 0
    for _ in range(30):
        at = disk.reads + int(rng.integers(20))
        disk.faults = {at + int(further): faults[rng.integers(len(faults))] for further in rng.integers(0, 9, 3)}
        try:
            assert alone.greedy(PROMPTS[1]) == right
        except WeightsUnreadable:
            failed += 1
    assert failed > 5
    disk.faults = {}
    assert alone.greedy(PROMPTS[1]) == right
    alone.store.close()


@pytest.mark.parametrize("name", FAULTY)
def test_a_fault_before_the_first_step(makes: Makes, name: str) -> None:
    model = makes(name)
    disk = Disk()
    disk.faults = {2: FAULTS["one bit"]}
    opened = StreamedStore(packed(model.weights, model.precision, model.folder, disk), model.layers, model.sizes.total + (1 << 20))
    with pytest.raises(WeightsUnreadable):
        opened.fill()
    opened.close()


def test_more_memory_than_there_is_leaves_nothing_open(makes: Makes) -> None:
    model = makes("mixtral")
    files = packed(model.weights, model.precision, model.folder)
    with pytest.raises(OSError, match="memory"):
        StreamedStore(files, model.layers, least(model.sizes), lambda counts: _without_memory())
    files.close()


def _without_memory() -> Any:
    raise OSError("Cannot allocate memory")
