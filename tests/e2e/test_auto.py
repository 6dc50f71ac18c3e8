"""AutoDistributedModel: a cluster behind a Python object."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from shoal import AutoDistributedModel
from shoal.errors import ClusterError, ConfigError, InvalidRequest, NotEnoughMemory, ShoalError, UnknownModel
from tests.support.cluster import MODEL, gone

pytestmark = [pytest.mark.real, pytest.mark.slow]


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


@pytest.fixture(scope="module")
def model() -> Iterator[AutoDistributedModel]:
    with AutoDistributedModel.from_pretrained(MODEL, nodes=2, threads=1, context=512) as made:
        yield made
        processes = children()
    gone(processes)


def test_generate_is_the_stream_joined(model: AutoDistributedModel) -> None:
    whole = model.generate("Once upon a time", max_tokens=12)
    assert whole
    assert "".join(model.stream("Once upon a time", max_tokens=12)) == whole


def test_stop_string_ends_the_text(model: AutoDistributedModel) -> None:
    whole = model.generate("1, 2, 3,", max_tokens=16)
    stop = whole[4:7]
    assert model.generate("1, 2, 3,", max_tokens=16, stop=stop) == whole[: whole.index(stop)]


def test_chat_answers(model: AutoDistributedModel) -> None:
    assert model.chat([{"role": "user", "content": "Say hello."}], max_tokens=8)


def test_the_same_seed_draws_the_same(model: AutoDistributedModel) -> None:
    texts = {model.generate("A poem:", max_tokens=12, temperature=1.0, seed=5) for _ in range(2)}
    assert len(texts) == 1


def test_leaving_a_stream_frees_its_blocks(model: AutoDistributedModel) -> None:
    stream = model.stream("Once upon a time", max_tokens=400)
    assert next(stream)
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert model.generate("after it", max_tokens=2)
    assert model._cluster is not None
    metrics = asyncio.run(model._cluster.head.scrape())
    assert re.search(rb'shoal_kv_blocks_used\{model="[^"]+",replica="1"\} 0.0', metrics)
    assert re.search(rb'shoal_sequences_waiting_by_class\{model="[^"]+",priority="batch",replica="1"\} 0.0', metrics)


def test_two_streams_go_side_by_side(model: AutoDistributedModel) -> None:
    alone = model.generate("The sea is", max_tokens=8)
    pairs = zip(model.stream("The sea is", max_tokens=8), model.stream("The sea is", max_tokens=8), strict=True)
    assert "".join(a for a, b in pairs if a == b) == alone


@pytest.mark.parametrize("wrong", [{"max_tokens": 0}, {"temperature": -1.0}, {"max_tokens": 10_000}])
def test_wrong_values_are_refused_and_the_model_goes_on(model: AutoDistributedModel, wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidRequest):
        model.generate("x", **wrong)  # pyright: ignore[reportArgumentType]
    assert model.generate("x", max_tokens=1)


def test_an_empty_prompt_is_refused(model: AutoDistributedModel) -> None:
    with pytest.raises(InvalidRequest, match="empty"):
        model.generate("")


def test_unknown_sampling_is_refused(model: AutoDistributedModel) -> None:
    with pytest.raises(ConfigError, match="temprature"):
        model.generate("x", temprature=1)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"model": "no-such-model"}, UnknownModel),
        ({"model": MODEL, "nodes": 0}, ConfigError),
        ({"model": MODEL, "flavour": "x"}, ConfigError),
        ({"model": MODEL, "memory": "lots"}, ConfigError),
        ({"model": MODEL, "nodes": 1, "memory": "20MiB"}, (ClusterError, NotEnoughMemory)),
        ({"model": MODEL, "slots": 0}, ConfigError),
    ],
)
def test_what_cannot_start_says_why_and_leaves_nothing(arguments: dict[str, object], error: type[ShoalError]) -> None:
    before = set(children())
    with pytest.raises(error):
        AutoDistributedModel.from_pretrained(**arguments)  # pyright: ignore[reportArgumentType]
    gone([p for p in children() if p not in before])


SCRIPT = """
import psutil
from shoal import AutoDistributedModel
model = AutoDistributedModel.from_pretrained("{model}", nodes={nodes}, threads=1, context=256)
assert model.generate("Hello", max_tokens=2)
print("PIDS", *(p.pid for p in psutil.Process().children(recursive=True)), flush=True)
"""
CLOSED_TWICE = (
    SCRIPT
    + """
stream = model.stream("Hello", max_tokens=50)
next(stream)
model.close(); model.close()
stream.close()  # may be left after its model was closed
try:
    model.generate("x")
except Exception as error:
    print(type(error).__name__)
"""
)


@pytest.mark.parametrize(("script", "nodes", "last"), [(SCRIPT, 2, []), (CLOSED_TWICE, 1, ["ClusterError"])])
def test_no_process_outlives_the_interpreter_and_a_library_writes_nothing_to_stdout(script: str, nodes: int, last: list[str]) -> None:
    code = script.format(model=MODEL, nodes=nodes)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    first, *rest = done.stdout.splitlines()
    word, *pids = first.split()
    assert (word, len(pids), rest) == ("PIDS", nodes, last)
    gone([psutil.Process(int(pid)) for pid in pids if psutil.pid_exists(int(pid))])
    assert "Traceback" not in done.stderr
