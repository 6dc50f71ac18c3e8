"""The trained Mixture-of-Experts models that tests make of SmolLM2: they answer as it does, in llama.cpp and in transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from shoal.models.weights import GgufWeights
from shoal.text.tokenizer import Tokenizer
from tests.support import llama_cpp, oracle, tiny, upcycled

PROMPT = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"

pytestmark = [pytest.mark.slow, pytest.mark.real]


def answer(file: Path, tokens: int = 40) -> tuple[list[int], str]:
    llama_cpp.required()
    with llama_cpp.serving(file, 512) as port:
        ids, text, _ = llama_cpp.greedy(port, PROMPT, tokens)
        return ids, text


@pytest.fixture(scope="module")
def dense(smollm2: Path) -> list[int]:
    return answer(smollm2)[0]


def test_equal_experts_answer_as_the_dense_model(smollm2: Path, dense: list[int]) -> None:
    assert answer(upcycled.mixtral(smollm2))[0] == dense


def test_slices_answer_as_the_dense_model(smollm2: Path, dense: list[int]) -> None:
    """To the first token of two that are about as likely: llama.cpp rounds activations."""
    assert answer(upcycled.mixtral(smollm2, "slices"))[0][:12] == dense[:12]


@pytest.mark.parametrize("sets", [1, 2])
def test_slices_and_a_shared_expert_answer_as_the_dense_model(sets: int, smollm2: Path, dense: list[int]) -> None:
    assert answer(upcycled.qwen2_moe(smollm2, sets))[0][:12] == dense[:12]


def test_experts_that_differ_answer_otherwise_and_in_english(smollm2: Path, dense: list[int]) -> None:
    tokens, text = answer(upcycled.mixtral(smollm2, "perturbed"))
    assert tokens != dense
    assert text.startswith("The capital of France is Paris")


@pytest.mark.parametrize("kind", ["mixtral", "qwen2 moe"])
def test_checkpoints_have_the_logits_of_the_dense_model(kind: str, smollm2: Path, smollm2_weights: GgufWeights, tmp_path: Path) -> None:
    file = upcycled.mixtral(smollm2, "slices", folder=tmp_path) if kind == "mixtral" else upcycled.qwen2_moe(smollm2, 1, folder=tmp_path)
    folder = upcycled.checkpoint(file, "float32")
    tokens = Tokenizer.open(folder).encode(PROMPT)
    assert tokens == Tokenizer.open(smollm2, smollm2_weights.file.meta).encode(PROMPT)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    theirs = oracle.logits(oracle.oracle(smollm2_weights), tokens)
    np.testing.assert_allclose(tiny.logits(model, tokens), theirs, atol=2e-4, rtol=0)
