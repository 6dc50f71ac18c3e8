"""Keys and values of 8 bits, and values of 4: what is stored, to the byte, and what attention makes of it, on every instruction set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from shoal.config import KvType
from shoal.executor.kv_pool import ROUNDED, token_bytes
from shoal.native import BLOCK_TOKENS
from tests.support import kv_reference
from tests.support.kernel_parts import compiled, module, normal, on_every_isa
from tests.support.kernel_reference import attended

pytestmark = [compiled, pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")]
on_every_type = pytest.mark.parametrize("kv_type", sorted(ROUNDED))
Floats = NDArray[np.float32]
EXTREMES = [0.0, -0.0, 1e-45, 1e-38, 1e-30, -1e-30, 2e-30, 1.0, -1.0, 1e30, 3.4028235e38, -3.4028235e38, np.inf, -np.inf, np.nan]


def attend(
    qkv: Floats, isa: str, kv_type: KvType, *, q_heads: int = 2, kv_heads: int = 1, key: int = 32, value: int = 32, threads: int = 1,
    pieces: tuple[int, ...] = (), pool: NDArray[np.uint8] | None = None, **form: Any,
) -> tuple[Floats, NDArray[np.uint8]]:  # fmt: skip
    """One sequence from its first token. qkv: [rows, heads]; pieces: where it is cut into steps. The results, and the blocks."""
    rows = len(qkv)
    blocks = -(-rows // BLOCK_TOKENS)
    if pool is None:
        pool = np.zeros((blocks, BLOCK_TOKENS * token_bytes((key, value) * kv_heads, kv_type)), np.uint8)
    shape = {"q_heads": q_heads, "kv_heads": kv_heads, "key_dim": key, "value_dim": value}
    block = module.GroupedQuery(module.Around(), None, None, None, None, **shape, **{"scale": 0.25, **form})
    stage, out = module.Stage(16, threads, isa), np.empty((rows, q_heads * value), np.float32)
    table = np.arange(blocks, dtype=np.int32)[None]
    for first, end in zip((0, *pieces), (*pieces, rows), strict=True):
        starts, positions, part = np.array([0, end - first], np.int32), np.array([first], np.int32), np.empty_like(out[first:end])
        stage.attend(block, np.ascontiguousarray(qkv[first:end]), starts, positions, table, [], pool, kv_type, part)
        out[first:end] = part
    return out, pool


def parts(qkv: Floats, q_heads: int, kv_heads: int, key: int, value: int) -> tuple[Floats, Floats, Floats]:
    """[rows, heads, width] of queries, keys, values."""
    q, k, v = np.split(qkv, [q_heads * key, (q_heads + kv_heads) * key], axis=1)
    return q.reshape(len(q), -1, key), k.reshape(len(k), -1, key), v.reshape(len(v), -1, value)


def wanted(qkv: Floats, kv_type: KvType, q_heads: int, kv_heads: int, key: int, value: int, window: int = 0) -> NDArray[np.float64]:
    q, k, v = parts(qkv, q_heads, kv_heads, key, value)
    each = [kv_reference.rounded_query(q[:, h]).astype(np.float64) for h in range(q_heads)]
    keys = [kv_reference.kept(k[:, h], KvType.Q8).astype(np.float64) for h in range(kv_heads)]
    values = [kv_reference.kept(v[:, h], kv_type).astype(np.float64) for h in range(kv_heads)]
    out = attended(np.stack(each, 1), np.stack(keys, 1), np.stack(values, 1), 0.25, window=window)
    return np.asarray(out).reshape(len(q), -1)


@st.composite
def tokens(draw: st.DrawFn, numbers: st.SearchStrategy[float]) -> tuple[Floats, int, int]:
    """Rows of two queries, a key and a value, and the widths."""
    rows = draw(st.integers(1, BLOCK_TOKENS))
    key, value = draw(st.sampled_from([16, 32, 48, 64, 80])), draw(st.sampled_from([16, 32, 48, 128]))
    qkv = normal(rows, 3 * key + value, seed=draw(st.integers(0, 99))) * np.float32(draw(st.sampled_from([1e-20, 1e-3, 1.0, 300.0])))
    for _ in range(draw(st.integers(0, 6))):
        qkv[draw(st.integers(0, rows - 1)), draw(st.integers(2 * key, 3 * key + value - 1))] = draw(numbers)
    return qkv, key, value


@on_every_isa
@on_every_type
@given(tokens(st.sampled_from(EXTREMES)))
def test_what_is_stored_is_this_to_the_byte(isa: str, kv_type: KvType, given: tuple[Floats, int, int]) -> None:
    qkv, key, value = given
    _, pool = attend(qkv, isa, kv_type, key=key, value=value)
    _, k, v = parts(qkv, 2, 1, key, value)
    assert np.array_equal(pool[0], kv_reference.block([k[:, 0]], [v[:, 0]], kv_type))


@on_every_isa
@on_every_type
@given(tokens(st.floats(-1000, 1000, width=32)))
def test_attention_is_that_of_the_rounded_numbers(isa: str, kv_type: KvType, given: tuple[Floats, int, int]) -> None:
    """Outliers among them. Weights are rounded to 16 bits of the largest, so that the error is one of the largest value."""
    qkv, key, value = given
    out, _ = attend(qkv, isa, kv_type, key=key, value=value)
    right = wanted(qkv, kv_type, 2, 1, key, value)
    scores = np.abs(qkv[:, : 2 * key]).max() * np.abs(qkv[:, 2 * key : 3 * key]).max() * key / 4  # what floats of scores are off by
    assert np.abs(out - right).max() <= np.abs(qkv[:, 3 * key :]).max() * (1e-4 + 1e-6 * scores)


@on_every_isa
@on_every_type
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("heads", [(2, 2), (9, 3), (14, 1)])
def test_long_contexts_in_pieces(isa: str, kv_type: KvType, threads: int, heads: tuple[int, int]) -> None:
    q_heads, kv_heads = heads
    qkv = normal(1100, q_heads * 32 + kv_heads * 80)
    form: dict[str, Any] = {"q_heads": q_heads, "kv_heads": kv_heads, "key": 32, "value": 48, "threads": threads}
    whole, pool = attend(qkv, isa, kv_type, **form)
    assert np.abs(whole - wanted(qkv, kv_type, q_heads, kv_heads, 32, 48)).max() < 2e-4
    cut, other_pool = attend(qkv, isa, kv_type, pieces=(1, 33, 600, 1098, 1099), **form)
    assert np.array_equal(whole, cut) and np.array_equal(pool, other_pool)


@on_every_isa
@on_every_type
def test_a_window_a_cap_and_a_sink(isa: str, kv_type: KvType) -> None:
    """Near the same with exact keys and values."""
    qkv = normal(90, 4 * 32)
    form: dict[str, Any] = {"window": 20, "cap": 2.0, "sinks": np.array([0.5, -1], np.float32)}
    exact, _ = attend(qkv, isa, KvType.FP32, **form)
    out, _ = attend(qkv, isa, kv_type, **form)
    assert 0 < np.abs(out - exact).max() < (0.03 if kv_type is KvType.Q8 else 0.5)


@on_every_isa
@on_every_type
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("at", "groups"), [(70, slice(0, 64)), (100, slice(0, 32)), (140, slice(32, 64))], ids=["key", "value", "another value"]
)
def test_what_is_not_finite_is_seen_by_later_rows_alone(isa: str, kv_type: KvType, wrong: float, at: int, groups: slice) -> None:
    """A number of a key spoils a row's result, one of a value the 32 numbers of its group; earlier rows keep their bits."""
    qkv = normal(40, 32 * 3 + 64, seed=1)
    sound, _ = attend(qkv, isa, kv_type, value=64)
    qkv[20, at] = wrong
    out, _ = attend(qkv, isa, kv_type, value=64)
    assert np.array_equal(out[:20], sound[:20])
    assert np.isnan(out[20:].reshape(20, 2, 64)[..., groups]).all()


@on_every_isa
@on_every_type
def test_what_a_block_held_before_does_not_matter(isa: str, kv_type: KvType) -> None:
    qkv = normal(40, 4 * 32)
    fresh, clean = attend(qkv, isa, kv_type)
    spoiled = np.full_like(clean, 0xFF)  # scales that are NaN
    assert np.array_equal(attend(qkv, isa, kv_type, pool=spoiled)[0], fresh)


@on_every_isa
@on_every_type
def test_zeros_stay_zeros(isa: str, kv_type: KvType) -> None:
    out, _ = attend(np.zeros((40, 4 * 32), np.float32), isa, kv_type)
    assert not out.any()
