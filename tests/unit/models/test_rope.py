"""Rotary frequencies against transformers' own, for every kind of scaling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from shoal.models.families.read import spec_from_config
from shoal.models.rope import frequencies
from shoal.models.spec import Rope
from tests.support import tiny


def theirs(parameters: dict[str, Any], head_dim: int) -> tuple[np.ndarray, float]:
    config = LlamaConfig(**{**tiny.SIZES, "head_dim": head_dim, "rope_parameters": parameters})
    inverse, scale = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, "cpu")
    return inverse.numpy(), scale


def ours(parameters: dict[str, Any], head_dim: int) -> tuple[np.ndarray, float]:
    spec = spec_from_config({**tiny.SIZES, "model_type": "llama", "head_dim": head_dim, "rope_parameters": parameters}, "m")
    ((rope, width),) = spec.rotations
    assert width == head_dim
    return frequencies(rope, width)


thetas = st.sampled_from([100.0, 5000.0, 10000.0, 1e6])
factors = st.floats(1, 64)
contexts = st.sampled_from([64, 2048, 8192, 32768])
SCALINGS = st.one_of(
    st.fixed_dictionaries({"rope_type": st.just("linear"), "rope_theta": thetas, "factor": factors}),
    st.fixed_dictionaries(
        {
            "rope_type": st.just("llama3"),
            "rope_theta": thetas,
            "factor": factors,
            "low_freq_factor": st.floats(0.5, 2),
            "high_freq_factor": st.floats(3, 8),
            "original_max_position_embeddings": contexts,
        }
    ),
    st.fixed_dictionaries(
        {
            "rope_type": st.just("yarn"),
            "rope_theta": thetas,
            "factor": factors,
            "original_max_position_embeddings": contexts,
        },
        optional={
            "beta_fast": st.floats(16, 64),
            "beta_slow": st.floats(0.5, 4),
            "attention_factor": st.floats(0.5, 2),
            "truncate": st.booleans(),
        },
    ),
)


@settings(max_examples=150)
@given(SCALINGS, st.sampled_from([16, 64, 80, 128]))
def test_as_transformers(parameters: dict[str, Any], head_dim: int) -> None:
    inverse, scale = ours(parameters, head_dim)
    wanted, wanted_scale = theirs(parameters, head_dim)
    np.testing.assert_allclose(inverse, wanted, rtol=2e-5)
    assert scale == pytest.approx(wanted_scale)


def test_plain() -> None:
    inverse, scale = frequencies(Rope(theta=10000.0), 4)
    np.testing.assert_allclose(inverse, [1.0, 0.01])
    assert scale == 1.0
    assert inverse.dtype == np.float32


def test_factors_divide() -> None:
    inverse, _ = frequencies(Rope(theta=10000.0, kind="factors", factors=(2.0, 4.0)), 4)
    np.testing.assert_allclose(inverse, [0.5, 0.0025])


def test_a_file_with_factors_says_what_llama3_says() -> None:
    """convert_hf_to_gguf.py stores llama3's scaling as divisors."""
    plain, _ = frequencies(Rope(theta=5e5), 64)
    scaled, _ = frequencies(Rope(theta=5e5, kind="llama3", factor=32.0, original_context=8192), 64)
    again, _ = frequencies(Rope(theta=5e5, kind="factors", factors=tuple((plain / scaled).tolist())), 64)
    np.testing.assert_allclose(again, scaled, rtol=1e-6)
