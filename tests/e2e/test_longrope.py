"""Nodes of one cluster rotate by one list of longrope's factors, the one of the context that is served: neither a node's place in the route nor
the length of a prompt chooses it."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shoal.models.weights import GgufWeights
from shoal.text.tokenizer import Tokenizer
from tests.support import gguf_families, tiny, tiny_families
from tests.support.cluster import Cluster, served

pytestmark = [pytest.mark.slow]

VOCABULARY, ORIGINAL, ANSWER = 288, 64, 8
"""ORIGINAL: tokens up to which the short factors hold."""


@pytest.fixture(scope="module")
def built() -> Any:
    return tiny_families.model("phi3 longrope", vocab_size=VOCABULARY, num_hidden_layers=4)


@pytest.fixture(scope="module")
def model(built: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf_families.write(built, tmp_path_factory.mktemp("phi3") / "phi3.gguf", tokenizer=gguf_families.vocabulary(VOCABULARY))


def expected(built: Any, prompt: list[int]) -> tuple[list[int], list[float]]:
    """What transformers says greedily, and the log-probabilities of all tokens but the first. It takes the factors by the tokens that it sees
    at once, so it sees all of them anew for each."""
    tokens = list(prompt)
    for _ in range(ANSWER):
        tokens.append(int(tiny.logits(built, tokens)[-1].argmax()))
    told = torch.log_softmax(torch.from_numpy(tiny.logits(built, tokens)), -1).numpy()
    return tokens[len(prompt) :], [float(told[at, token]) for at, token in enumerate(tokens[1:])]


def answered(made: Cluster, prompt: list[int]) -> tuple[str, list[float]]:
    """The same of a cluster, as its text."""
    got = made.complete(prompt, ANSWER, echo=True, logprobs=0, ignore_eos=True)
    assert got.status_code == 200, got.text
    (choice,) = got.json()["choices"]
    return choice["text"], choice["logprobs"]["token_logprobs"][1:]


@pytest.mark.parametrize(("context", "prompt"), [(ORIGINAL, tiny.TOKENS[: ORIGINAL - ANSWER]), (4 * ORIGINAL, tiny.TOKENS)])
def test_two_nodes_and_one_answer_as_transformers(context: int, prompt: list[int], built: Any, model: Path, tmp_path: Path) -> None:
    tokens, logprobs = expected(built, prompt)
    text = Tokenizer.open(model, GgufWeights(model).file.meta).decode(prompt + tokens)
    with served(tmp_path, 2, "--model", str(model), "--precision", "fp32", "--kv-type", "fp32", "--context", str(context)) as made:
        layers = sorted(made.layers().values())
        assert [end > first for first, end in layers] == [True, True]
        two = answered(made, prompt)
        assert two[0] == text
        np.testing.assert_allclose(two[1], logprobs, atol=1e-4)
        lost = made.living[0]
        lost.signal(signal.SIGKILL)
        lost.wait()
        made.until_spread(1)
        assert answered(made, prompt) == two


def test_a_short_prompt_too_has_the_factors_of_a_long_context(built: Any, model: Path, tmp_path: Path) -> None:
    """Its tokens may be followed by more than the short factors are for."""
    prompt = tiny.TOKENS[:20]
    _, short = expected(built, prompt)
    with served(tmp_path, 2, "--model", str(model), "--precision", "fp32", "--kv-type", "fp32", "--context", str(4 * ORIGINAL)) as made:
        two = answered(made, prompt)[1]
        long = answered(made, tiny.TOKENS)[1]
    assert two[: len(prompt) - 1] == pytest.approx(long[: len(prompt) - 1], abs=1e-6)
    assert np.abs(np.array(two) - short).max() > 1e-2
