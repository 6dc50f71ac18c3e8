from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.single_node import token_bytes
from tests.support import tiny
from tests.support.gguf_writer import write_model


@pytest.mark.parametrize(("format", "more"), [("q8_0", 1.0), ("q6_k", 1.0), ("q5_0", 1.0), ("q4_k", 5 / 4.5), ("q3_k", 4.5625 / 3.4375)])
def test_what_a_token_reads_beside_what_the_file_has(format: str, more: float, tmp_path: Path) -> None:
    built = tiny.model("llama", hidden_size=256, intermediate_size=512, num_hidden_layers=2, head_dim=64, vocab_size=512)
    executed, stored = token_bytes(write_model(tmp_path / "m.gguf", built, "llama", format))
    assert executed / stored == pytest.approx(more, rel=0.02)  # panels end on cache lines
