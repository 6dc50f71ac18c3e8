"""Ten streams of a trained mixture at once, whose experts are on workers: each says what it says alone, whatever happens to the workers."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shoal.config import KvType, Precision
from shoal.models.weights import GgufWeights
from shoal.text.tokenizer import Tokenizer
from tests.support import upcycled
from tests.support.chats import Messages, pieces
from tests.support.cluster import Cluster, cluster, until
from tests.support.stages import Stages

pytestmark = [pytest.mark.real, pytest.mark.slow]

TOKENS = 32
WHO = ("a sailor", "a baker", "two whales", "the moon", "a clock", "an old king", "a train", "the rain", "a cat", "three stones")
STREAMS: list[Messages] = [[{"role": "user", "content": f"Write a story about {who}."}] for who in WHO]


@pytest.fixture(scope="module")
def model(smollm2: Path) -> Path:
    return upcycled.mixtral(smollm2, "perturbed")


@pytest.fixture(scope="module")
def wanted(model: Path) -> list[str]:
    """What one process answers that holds everything."""
    weights = GgufWeights(model)
    tokenizer = Tokenizer.open(model, weights.file.meta)
    stages = Stages(weights, precision=Precision.AUTO, kv_type=KvType.BF16, threads=2)
    return [tokenizer.decode(stages.afresh().greedy(tokenizer.encode_chat(messages), TOKENS)) for messages in STREAMS]


def said(made: Cluster, disturb: Callable[[], None]) -> list[str]:
    """By all streams, which run at once; what disturbs them comes when most have begun."""
    begun = threading.Semaphore(0)

    def hear(messages: Messages) -> str:
        heard = ""
        for at, piece in enumerate(pieces(made, messages, TOKENS)):
            heard += piece
            if at == 3:
                begun.release()
        return heard

    with ThreadPoolExecutor(len(STREAMS)) as pool:
        hearing = [pool.submit(hear, messages) for messages in STREAMS]
        for _ in range(len(STREAMS) * 2 // 3):
            assert begun.acquire(timeout=300), made.story()
        disturb()
        return [future.result() for future in hearing]


def worker(made: Cluster, name: str) -> None:
    made.join("--name", name, "--role", "experts", "--memory", "3GiB")


@pytest.mark.parametrize(
    ("workers", "what"), [(2, signal.SIGKILL), (1, signal.SIGKILL), (2, signal.SIGSTOP), (1, signal.SIGTERM), (1, None)],
    ids=["killed beside a replica", "killed", "frozen", "leaving", "another one comes"],
)  # fmt: skip
def test_ten_streams_say_what_they_say_alone(
    tmp_path: Path, model: Path, wanted: list[str], workers: int, what: signal.Signals | None
) -> None:
    with cluster(tmp_path) as made:
        made.serve("--min-nodes", str(1 + workers), "--context", "512", "--model", str(model))
        made.join("--name", "stage", "--memory", "600MiB")
        for i in range(workers):
            worker(made, f"worker-{i}")
        made.until_ready()
        victim = made.nodes[-1]

        def disturb() -> None:
            if what is None:
                worker(made, "worker-new")
            else:
                victim.signal(what)

        try:
            assert said(made, disturb) == wanted
        finally:
            if what is signal.SIGSTOP:
                victim.signal(signal.SIGCONT)
        if what is None:
            until(lambda: "holding" in made.nodes[-1].said, made.story)
        else:
            until(lambda: victim.popen.poll() is not None or what is signal.SIGSTOP, made.story)
        made.until_ready()
        assert said(made, lambda: None) == wanted
        assert "Traceback" not in made.story()
