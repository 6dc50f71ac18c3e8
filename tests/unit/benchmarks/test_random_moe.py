"""Random Mixture-of-Experts files: whole, the same each time, and of sizes that a forward pass keeps in bounds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter, quants

from benchmarks import gguf_stream, random_moe
from benchmarks.random_moe import Shape
from tests.support import vocabularies

TINY = Shape("olmoe", layers=2, width=64, heads=4, kv_heads=4, head_dim=16, experts=4, chosen=2, neurons=32)


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    path = tmp_path / "vocabulary.gguf"
    writer = GGUFWriter(path, "llama")
    for key, value in vocabularies.byte_level().items():
        {str: writer.add_string, int: writer.add_uint32, list: writer.add_array}[type(value)](key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("format", ["q4_0", "q8_0"])
def test_blocks_are_of_the_size_that_keeps_activations(format: random_moe.Format, vocabulary: Path, tmp_path: Path) -> None:
    tensors = {t.name: t for t in GGUFReader(random_moe.write(TINY, vocabulary, format, tmp_path)).tensors}
    assert len(tensors) == 3 + 12 * TINY.layers
    for part, columns in {"gate": 64, "up": 64, "down": 32}.items():
        tensor = tensors[f"blk.1.ffn_{part}_exps.weight"]
        values = quants.dequantize(tensor.data, tensor.tensor_type)
        assert values.shape == (4, 96 - columns, columns)
        assert np.sqrt((values**2).mean() * columns) == pytest.approx(1, abs=0.1)
        assert not np.array_equal(values[0], values[1])


def test_the_same_parameters_name_the_same_file(vocabulary: Path, tmp_path: Path) -> None:
    first = random_moe.write(TINY, vocabulary, folder=tmp_path / "a")
    again = random_moe.write(TINY, vocabulary, folder=tmp_path / "b")
    other = random_moe.write(replace(TINY, skew=1.0), vocabulary, folder=tmp_path / "b")
    assert first.name == again.name != other.name
    assert first.read_bytes() == again.read_bytes()
    at = first.stat().st_mtime_ns
    assert random_moe.write(TINY, vocabulary, folder=tmp_path / "a").stat().st_mtime_ns == at


def test_a_file_that_was_not_finished_has_no_name(tmp_path: Path) -> None:
    short = gguf_stream.Tensor("short", (2, 32), random_moe._KIND.F32, lambda: [np.zeros((1, 32), np.float32)])
    with pytest.raises(ValueError, match="short has 128 bytes where 256 were announced"):
        gguf_stream.write(tmp_path / "model.gguf", "llama", {}, [short])
    assert not (tmp_path / "model.gguf").exists()
