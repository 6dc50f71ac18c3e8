"""What a matrix becomes when it runs, the bytes that takes, and what it costs in tokens on trained weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shoal.config import KvType, Precision
from shoal.executor.packing import pack
from shoal.executor.precision import executed, executed_bytes, kept
from shoal.models.matrix import BLOCKS, FORMATS, StoredMatrix
from shoal.models.weights import GgufWeights
from shoal.text.tokenizer import Tokenizer
from tests.support import oracle
from tests.support.gguf_writer import blocks
from tests.support.prompts import QUESTIONS
from tests.support.stages import Stages

FP32, AUTO, Q8, Q4 = Precision.FP32, Precision.AUTO, Precision.Q8, Precision.Q4


@pytest.mark.parametrize(
    ("format", "precision", "head", "target"),
    [
        ("q4_1", FP32, False, "f32"),
        ("q4_0", AUTO, False, "q4"),
        ("q4_k", AUTO, True, "q4"),
        ("q5_k", AUTO, False, "q5"),
        ("q5_k", Q8, False, "q5"),
        ("q6_k", AUTO, False, "q6"),
        ("q6_k", Q8, False, "q8"),
        ("q2_k", AUTO, False, "q4"),
        ("nvfp4", AUTO, False, "q8"),
        ("mxfp4", AUTO, False, "q4"),
        ("iq2_xxs", AUTO, True, "q4"),
        ("iq2_xs", AUTO, False, "q4"),
        ("u4g128", AUTO, False, "q4"),
        ("s4g64", Q8, False, "q8"),
        ("bf16", AUTO, False, "q8"),
        ("bf16", Q8, False, "q8"),
        ("q4_1", Q8, False, "q8"),
        ("bf16", Q4, False, "q4"),
        ("bf16", Q4, True, "q8"),
        ("q6_k", Q4, True, "q8"),
        ("q4_1", Q4, True, "q4"),
    ],
)
def test_what_is_executed(format: str, precision: Precision, head: bool, target: str) -> None:
    assert executed(format, 256, precision, head) == target


def test_rows_that_are_no_whole_blocks_run_as_floats() -> None:
    assert {executed("bf16", 48, p) for p in Precision} == {"f32"}


def test_blocks_are_kept_where_the_target_is_theirs() -> None:
    assert kept("q4_1", "q4")
    assert kept("q5_k", "q5")
    assert kept("q6_k", "q6")
    assert not kept("q4_1", "q8")
    assert kept("u4g128", "q4")
    assert not kept("q6_k", "q8")
    assert not kept("bf16", "q8")


@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("format", FORMATS)
def test_bytes_are_those_of_the_kernels(format: str, precision: Precision) -> None:
    shape = (40, 512)
    raw = np.zeros((40, 2048), np.uint8) if format == "f32" else blocks(format, shape)
    packed = pack(StoredMatrix(format, raw, 512), precision)
    assert packed.nbytes == executed_bytes(format, *shape, precision)


@pytest.mark.parametrize("format", sorted(BLOCKS))
def test_auto_never_rounds_a_block_format_again(format: str) -> None:
    assert kept(format, executed(format, 256, AUTO))


# On trained weights.

LENGTH = 32


@pytest.fixture(scope="module")
def prompts(smollm2: Path, smollm2_weights: GgufWeights) -> list[list[int]]:
    tokenizer = Tokenizer.open(smollm2, smollm2_weights.file.meta)
    return [tokenizer.encode_chat([{"role": "user", "content": question}]) for question in QUESTIONS]


@pytest.fixture(scope="module")
def answers(smollm2_weights: GgufWeights, prompts: list[list[int]]) -> list[list[int]]:
    """What shoal goes on with in float32, greedily."""
    stages = Stages(smollm2_weights, precision=FP32, threads=2)
    return [stages.afresh().greedy(prompt, LENGTH) for prompt in prompts]


@pytest.mark.real
@pytest.mark.slow
def test_fp32_gives_the_tokens_of_transformers(smollm2_weights: GgufWeights, prompts: list[list[int]], answers: list[list[int]]) -> None:
    """Each token is transformers' likeliest after those before it: by induction, its greedy answer."""
    model = oracle.oracle(smollm2_weights)
    for prompt, answer in zip(prompts, answers, strict=True):
        logits = oracle.logits(model, [*prompt, *answer[:-1]])
        assert logits[len(prompt) - 1 :].argmax(-1).tolist() == answer


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize(("precision", "agreement"), [(Q8, 0.95), (AUTO, 0.95)])
def test_agreement_of_the_likeliest_token(
    precision: Precision,
    agreement: float,
    smollm2_weights: GgufWeights,
    prompts: list[list[int]],
    answers: list[list[int]],
) -> None:
    """Along the answers of float32, each token given those before it."""
    stages = Stages(smollm2_weights, precision=precision, kv_type=KvType.BF16 if precision is AUTO else KvType.FP32, threads=2)
    same: list[bool] = []
    for prompt, answer in zip(prompts, answers, strict=True):
        logits = stages.afresh().logits([*prompt, *answer[:-1]])
        same += (logits[len(prompt) - 1 :].argmax(-1) == np.array(answer)).tolist()
    assert np.mean(same) >= agreement
