"""A larger trained mixture, made of the catalogue's Qwen2.5-Coder: Qwen2-MoE with a shared expert, whose experts are slices of the MLPs. It is as
large as the dense model and answers as that does, split over three nodes and over two, and in a stream that loses one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.models.sources import pull
from tests.support import upcycled
from tests.support.chats import Messages, answer, disturbed
from tests.support.cluster import Cluster, cluster, until

pytestmark = [pytest.mark.real, pytest.mark.slow]

WAIT = 900.0  # seconds; a model of this size on a machine with other work
TOKENS = 64
CODE: Messages = [{"role": "user", "content": "Write FizzBuzz in Python. Only the code, no comments."}]
ENGLISH: Messages = [{"role": "user", "content": "Name the planets of the solar system."}]
"""In both answers every token is clearly the likeliest: activations are rounded, and a sum of slices rounds otherwise than the whole."""


@pytest.fixture(scope="module")
def dense() -> Path:
    return pull("qwen2.5-coder-1.5b")


@pytest.fixture(scope="module")
def wanted(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """What the dense model says of code and in English."""
    with cluster(tmp_path_factory.mktemp("dense")) as made:
        made.up("--nodes", "1", "--model", str(dense), "--context", "1024", "--discovery", "none")
        until(lambda: made.answers("/health/ready"), made.story, WAIT)
        return answer(made, CODE, TOKENS), answer(made, ENGLISH, TOKENS)


@pytest.fixture
def made(wanted: tuple[str, str], dense: Path, tmp_path: Path) -> Iterator[Cluster]:
    """Three nodes, once the dense model is gone."""
    with cluster(tmp_path) as made:
        model = upcycled.qwen2_moe(dense, sets=1)
        made.serve("--min-nodes", "3", "--spread", "--context", "1024", "--heartbeat", "5", "--model", str(model))
        for i in range(3):
            made.join("--name", f"n{i}", "--memory", "3GiB")
        until(lambda: made.answers("/health/ready"), made.story, WAIT)
        yield made


def test_it_answers_as_the_dense_model_and_a_stream_that_loses_a_node_goes_on(made: Cluster, wanted: tuple[str, str]) -> None:
    code, english = wanted
    assert "i % 3 == 0" in code
    assert "Jupiter" in english
    assert (answer(made, CODE, TOKENS), answer(made, ENGLISH, TOKENS)) == wanted
    layers = made.layers()
    middle = sorted(layers, key=lambda name: layers[name])[1]
    assert disturbed(made, middle, CODE, TOKENS) == code
    made.until_spread(2)
    assert (answer(made, CODE, TOKENS), answer(made, ENGLISH, TOKENS)) == wanted
    made.until_idle()
    assert "Traceback" not in made.story()
