"""The GGUF files that tests write of each family's tiny models: llama.cpp reads them and gives tokens the probabilities that transformers does."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import peers
from tests.support import gguf_families, llama_cpp, tiny, tiny_families

SIZE = 288
"""Tokens of the vocabularies."""
PROMPT = [(7 * i * i + 3 * i + 1) % 257 for i in range(75)]
"""Longer than every window."""
AFTER = (1, 19, 33, 75)
"""Where the prompt is cut: before, in and after the windows."""

GELU = ["gemma", "gemma2", "gemma3", "gemma3 beside images"]
EXACT = [name for name in tiny_families.SIZES if name not in ("gpt-oss", "deepseek v2 groups", *GELU, "phi3 longrope", "exaone4 windows")]
"""The others: llama.cpp rounds the corners of gpt-oss's yarn, which its configuration forbids; adds the two best scores of a group where
DeepSeek-V2 takes the best; looks GELU up in a table of halves; chooses longrope's factors by the length of the cache, not of the prompt; sees
EXAONE's windows in models of 64 layers alone."""
YARN = {**tiny_families.SIZES["gpt-oss"][1]["rope_parameters"], "truncate": True}
LONGROPE = {**tiny_families.SIZES["phi3 longrope"][1]["rope_parameters"], "original_max_position_embeddings": 256}
SHORT = {"original_max_position_embeddings": 256, "max_position_embeddings": 1024, "rope_parameters": LONGROPE}

pytestmark = [pytest.mark.slow, pytest.mark.real]


@pytest.fixture(autouse=True, scope="module")
def _llama_cpp() -> None:
    llama_cpp.required()


def compare(built: Any, file: Path, after: tuple[int, ...] = AFTER, atol: float = 2e-4, context: int = 512) -> None:
    """Six greedy tokens after each cut of the prompt, and what every token's probability was at each."""
    with llama_cpp.serving(file, context) as port:
        for cut in after:
            tokens, _, theirs = llama_cpp.greedy(port, PROMPT[:cut], 6, SIZE)
            logits = tiny.logits(built, PROMPT[:cut] + tokens[:-1])[cut - 1 :]
            ours = torch.log_softmax(torch.from_numpy(logits), -1).numpy()
            assert tokens == ours.argmax(-1).tolist()
            np.testing.assert_allclose(ours, theirs, atol=atol, rtol=0)


def written(name: str, tmp_path: Path, format: str = "f32", layout: str = "", **changes: Any) -> tuple[Any, Path]:
    built = tiny_families.model(name, vocab_size=SIZE, **changes)
    tokenizer = llama_cpp.vocabulary(SIZE)
    return built, gguf_families.write(built, tmp_path / "tiny.gguf", format=format, layout=layout, tokenizer=tokenizer)


@pytest.mark.parametrize("name", EXACT)
def test_as_transformers(name: str, tmp_path: Path) -> None:
    compare(*written(name, tmp_path))


@pytest.mark.parametrize("name", GELU)
def test_gelu_from_a_table_of_halves(name: str, tmp_path: Path) -> None:
    compare(*written(name, tmp_path), atol=0.05)


def test_yarn_with_rounded_corners(tmp_path: Path) -> None:
    compare(*written("gpt-oss", tmp_path, rope_parameters=YARN))


def test_factors_for_short_contexts(tmp_path: Path) -> None:
    compare(*written("phi3 longrope", tmp_path, **SHORT), context=256)


def test_factors_for_long_contexts(tmp_path: Path) -> None:
    compare(*written("phi3 longrope", tmp_path), after=(70, 75))


@pytest.mark.parametrize("name", ["deepseek v2", "deepseek v2 lite", "deepseek v3"])
def test_files_of_before_the_split_of_kv_b(name: str, tmp_path: Path) -> None:
    compare(*written(name, tmp_path, layout="kv_b"))


@pytest.mark.parametrize("name", ["deepseek v2", "deepseek v3"])
def test_gate_and_up_in_one_tensor(name: str, tmp_path: Path) -> None:
    """llama.cpp reads them of few architectures."""
    compare(*written(name, tmp_path, layout="fused experts"))


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("gpt-oss", "mxfp4"),
        ("mixtral", "q8_0"),
        ("qwen2 moe", "q4_0"),
        ("qwen3 moe", "q4_0"),
        ("deepseek v3", "q8_0"),
        ("granite moe shared", "q5_1"),
        ("dbrx", "q8_0"),
        ("phi3", "q8_0"),
        ("glm4 moe", "q4_1"),
    ],
)
def test_formats_as_llama_cpp_reads_them(name: str, format: str, tmp_path: Path) -> None:
    """Written as floats again by llama.cpp, whose products of quantised matrices round the activations."""
    changes: dict[str, Any] = {"rope_parameters": YARN} if name == "gpt-oss" else {}
    built, file = written(name, tmp_path, format, **changes)
    floats = tmp_path / "floats.gguf"
    subprocess.run([peers.llama_cpp() / "llama-quantize", "--allow-requantize", file, floats, "F32"], check=True, capture_output=True)
    compare(built, floats)
