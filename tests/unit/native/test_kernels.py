"""The kernels against NumPy, on every instruction set of this machine; and no row depends on what it is batched with."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from numpy.typing import NDArray

from shoal.config import KvType
from shoal.native import BLOCK_TOKENS, reference
from tests.support.kernel_parts import ISAS, Floats, compiled, error, module, normal, on_every_isa, packed, times

pytestmark = compiled
EXACT = {"q4_0": "q4", "q4_1": "q4", "q5_0": "q8", "q5_1": "q8", "q8_0": "q8"}
SUPER = {"q4_k": (144, "q4"), "q5_k": (176, "q5")}


# Matrices, through the head: logits are the head times the normalised row


def right(weights: Floats, x: Floats) -> Floats:
    return reference.rms_norm(x, np.ones(x.shape[1], np.float32), 1e-6) @ weights.T


def stored(format: str, n: int, k: int) -> tuple[NDArray[np.uint8], Floats]:
    """Rows of a GGUF format, and what gguf makes of them."""
    kind = GGMLQuantizationType[format.upper()]
    if format in SUPER:
        rows = super_blocks(format, n, k)
    else:
        rows = np.ascontiguousarray(quants.quantize(normal(n, k), kind)).view(np.uint8).reshape(n, -1)
    return rows, np.asarray(quants.dequantize(rows, kind), np.float32).reshape(n, k)


def super_blocks(format: str, n: int, k: int) -> NDArray[np.uint8]:
    """gguf cannot write K-quants: random bits between two sane scales."""
    size = SUPER[format][0]
    blocks = np.random.default_rng(1).integers(0, 256, (n * k // 256, size), np.uint8)
    scales = np.random.default_rng(2).uniform(0.001, 0.01, (len(blocks), 2)).astype(np.float16)
    blocks[:, :4] = scales.view(np.uint8)
    return blocks.reshape(n, -1)


@on_every_isa
@pytest.mark.parametrize("n", [1, 15, 16, 50])
def test_floats_are_multiplied_exactly(isa: str, n: int):
    w, x = normal(n, 48), normal(5, 48, seed=1)
    matrix = module.pack("f32", "f32", w.view(np.uint8), 48)
    assert error(times(matrix, x, isa), right(w, x)) < 1e-6


@on_every_isa
@pytest.mark.parametrize("format", [*EXACT, *SUPER])
def test_block_formats_run_as_gguf_reads_them(isa: str, format: str):
    rows, w = stored(format, 40, 512)
    matrix = module.pack(format, EXACT.get(format) or SUPER[format][1], rows, 512)
    x = normal(3, 512, seed=1)
    assert error(times(matrix, x, isa), right(w, x)) < 0.012


@on_every_isa
@pytest.mark.parametrize(("target", "most"), [("q8", 0.012), ("q4", 0.12)])
def test_floats_are_rounded_to_blocks(isa: str, target: str, most: float):
    w, x = normal(40, 256), normal(3, 256, seed=1)
    matrix = module.pack("f32", target, w.view(np.uint8), 256)
    assert 0 < error(times(matrix, x, isa), right(w, x)) < most


@pytest.mark.parametrize("format", [*EXACT, *SUPER])
def test_all_sets_agree_on_integers(format: str):
    rows, _ = stored(format, 24, 256)
    matrix = module.pack(format, EXACT.get(format) or SUPER[format][1], rows, 256)
    first, *others = (times(matrix, normal(2, 256), isa) for isa in ISAS)
    assert all(np.allclose(first, other, rtol=1e-4, atol=1e-3) for other in others)


@pytest.mark.parametrize("format", ["q4_1", "q8_0"])
def test_rows_are_packed_in_the_order_asked_for(format: str):
    rows, _ = stored(format, 20, 64)
    order = np.random.default_rng(0).permutation(20)
    plain = module.pack(format, EXACT[format], rows[order].copy(), 64)
    mapped = module.pack(format, EXACT[format], rows, 64, order)
    x = normal(2, 64)
    assert np.array_equal(times(plain, x), times(mapped, x))


@on_every_isa
@pytest.mark.parametrize("target", ["f32", "q8", "q4"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_of_a_product_does_not_depend_on_its_batch(isa: str, target: str, threads: int):
    matrix, x = packed(normal(33, 96), target), normal(19, 96, seed=1)
    whole = times(matrix, x, isa, threads)
    for first, end in ((0, 1), (3, 5), (7, 11), (2, 19)):
        assert np.array_equal(times(matrix, x[first:end].copy(), isa, threads), whole[first:end])


@pytest.mark.parametrize(
    ("format", "target", "k", "width"),
    [
        ("q4_0", "q4", 64, 35),
        ("q4_0", "q4", 64, 37),
        ("q4_0", "q6", 64, 36),
        ("f32", "q4", 40, 160),
        ("f32", "f32", 40, 159),
        ("bf16", "f32", 0, 0),
        ("q9_9", "q4", 64, 36),
        ("q4_k", "q4", 128, 72),
        ("iq2_xxs", "q4", 512, 66),
        ("iq2_xxs", "f32", -256, 66),
        ("f32", "f32", 2**62 + 32, 128),
        ("nvfp4", "q8", 96, 54),
        ("u4g64", "q4", 96, 50),
        ("u4g64", "q4", 64, 34),
        ("u4g0", "q4", 64, 35),
        ("u4g48", "q4", 96, 54),
        ("u4g", "q4", 64, 35),
        ("s4g99999999999", "q4", 64, 34),
    ],
)
def test_what_cannot_be_packed_is_refused(format: str, target: str, k: int, width: int):
    with pytest.raises(ValueError, match=r"rows|pack|multiple"):
        module.pack(format, target, np.zeros((4, width), np.uint8), k)


def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(ValueError, match="sse9"):
        module.isa("sse9")


# Attention


class Case:
    """Some sequences that already have a past, in scattered blocks."""

    def __init__(
        self,
        pasts: list[int],
        rows: list[int],
        *,
        q_heads: int = 4,
        kv_heads: int = 2,
        head_dim: int = 16,
        kv_type: KvType = KvType.FP32,
        window: int = 0,
    ) -> None:
        rng = np.random.default_rng(len(pasts))
        self.q_heads, self.kv_heads, self.head_dim, self.kv_type, self.window = q_heads, kv_heads, head_dim, kv_type, window
        self.starts = np.cumsum([0, *rows]).astype(np.int32)
        self.positions = np.array(pasts, np.int32)
        need = [-(-(p + r) // BLOCK_TOKENS) for p, r in zip(pasts, rows, strict=True)]
        ids = rng.permutation(sum(need) + 2).astype(np.int32)
        self.tables = np.full((len(pasts), max(need)), -7, np.int32)
        for s, end in enumerate(np.cumsum(need)):
            self.tables[s, : need[s]] = ids[end - need[s] : end]
        total = int(self.starts[-1])
        self.qkv = rng.standard_normal((total, (q_heads + 2 * kv_heads) * head_dim)).astype(np.float32)
        angles = rng.uniform(0, 6, (total, head_dim // 2))
        self.cos, self.sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        past = rng.standard_normal((len(ids), kv_heads * 2 * BLOCK_TOKENS * head_dim)).astype(np.float32)
        self.pool = (reference.to_bf16(past) if kv_type is KvType.BF16 else past).view(np.uint8)

    def reference(self, norms: tuple[Floats, Floats] | None = None) -> tuple[Floats, NDArray[np.uint8]]:
        pool = self.pool.copy()
        q_norm, k_norm = norms or (None, None)
        tables = np.maximum(self.tables, 0)
        out = reference.attend(
            self.qkv, self.starts, self.positions, tables, self.cos, self.sin, pool, self.kv_type, self.window, q_norm, k_norm,
            kv_heads=self.kv_heads, head_dim=self.head_dim, eps=1e-6, scale=0.25,
        )  # fmt: skip
        return out, pool

    def native(self, isa: str = "", threads: int = 1, norms: tuple[Floats, Floats] | None = None) -> tuple[Floats, NDArray[np.uint8]]:
        pool = self.pool.copy()
        q_norm, k_norm = (None if norm is None else module.Norm(norm, 1e-6) for norm in norms or (None, None))
        block = module.GroupedQuery(
            module.Around(), None, None, None, None, q_norm=q_norm, k_norm=k_norm, q_heads=self.q_heads,
            kv_heads=self.kv_heads, key_dim=self.head_dim, value_dim=self.head_dim, scale=0.25, window=self.window, rotation=0,
            rotated=self.head_dim,
        )  # fmt: skip
        out = np.empty((len(self.qkv), self.q_heads * self.head_dim), np.float32)
        rotations = [(self.cos, self.sin)]
        module.Stage(16, threads, isa).attend(block, self.qkv, self.starts, self.positions, self.tables, rotations, pool, self.kv_type, out)
        return out, pool

    def alone(self, s: int) -> Case:
        """The same with one sequence."""
        out = object.__new__(Case)
        out.__dict__.update(self.__dict__)
        first, end = int(self.starts[s]), int(self.starts[s + 1])
        out.starts, out.positions, out.tables = np.array([0, end - first], np.int32), self.positions[s : s + 1], self.tables[s : s + 1]
        out.qkv, out.cos, out.sin = self.qkv[first:end], self.cos[first:end], self.sin[first:end]
        return out


def assert_close(case: Case, isa: str, threads: int = 1, norms: tuple[Floats, Floats] | None = None) -> None:
    (got, pool), (wanted, wanted_pool) = case.native(isa, threads, norms), case.reference(norms)
    assert np.allclose(got, wanted, rtol=1e-4, atol=2e-2 if case.kv_type is KvType.BF16 and norms else 2e-5)
    cells = np.uint16 if case.kv_type is KvType.BF16 else np.float32
    a, b = pool.view(cells), wanted_pool.view(cells)
    assert np.abs(a.astype(np.float64) - b).max() <= (1 if case.kv_type is KvType.BF16 else 1e-5)


@on_every_isa
@pytest.mark.parametrize("kv_type", [KvType.FP32, KvType.BF16])
@pytest.mark.parametrize("heads", [(2, 2), (4, 2), (9, 3), (8, 1)])
def test_decode_and_prefill_in_one_step(isa: str, kv_type: KvType, heads: tuple[int, int]):
    assert_close(Case([0, 31, 32, 70, 5], [1, 1, 1, 40, 33], q_heads=heads[0], kv_heads=heads[1], kv_type=kv_type), isa)


@on_every_isa
@pytest.mark.parametrize("head_dim", [16, 48, 64, 128, 256])
def test_every_width_of_a_head(isa: str, head_dim: int):
    assert_close(Case([40, 3], [1, 9], head_dim=head_dim), isa)


@on_every_isa
@pytest.mark.parametrize("window", [1, 7, 32, 100, 1000])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_window_hides_what_is_further_back(isa: str, window: int, threads: int):
    assert_close(Case([600, 0, 90], [1, 50, 3], window=window), isa, threads)


@on_every_isa
@pytest.mark.parametrize("threads", [1, 2])
def test_long_contexts_are_attended_to_in_pieces(isa: str, threads: int):
    assert_close(Case([511, 512, 1300, 500], [1, 1, 1, 30]), isa, threads)


@on_every_isa
def test_queries_and_keys_may_be_normalised(isa: str):
    norms = normal(16, seed=3), normal(16, seed=4)
    assert_close(Case([10, 0], [1, 12]), isa, 1, norms)


@on_every_isa
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kv_type", [KvType.FP32, KvType.BF16])
def test_a_sequence_does_not_depend_on_its_batch(isa: str, threads: int, kv_type: KvType):
    case = Case([0, 33, 700, 1200, 64], [5, 1, 1, 20, 1], q_heads=6, kv_type=kv_type)
    whole, _ = case.native(isa, threads)
    for s, (first, end) in enumerate(pairwise(case.starts)):
        assert np.array_equal(case.alone(s).native(isa, threads)[0], whole[first:end])


@on_every_isa
def test_threads_change_nothing(isa: str):
    case = Case([0, 700, 1200], [30, 1, 7], q_heads=6)
    assert np.array_equal(case.native(isa, 1)[0], case.native(isa, 2)[0])


@on_every_isa
@pytest.mark.parametrize("kv_type", [KvType.FP32, KvType.BF16])
def test_a_prompt_in_chunks_is_the_prompt_at_once(isa: str, kv_type: KvType):
    whole = Case([0], [50], kv_type=kv_type)
    wanted, _ = whole.native(isa)
    rows: list[Floats] = []
    for first, end in ((0, 1), (1, 33), (33, 50)):
        part = whole.alone(0)
        part.starts, part.positions = np.array([0, end - first], np.int32), np.array([first], np.int32)
        part.qkv, part.cos, part.sin = (a[first:end].copy() for a in (whole.qkv, whole.cos, whole.sin))
        out, whole.pool = part.native(isa)
        rows.append(out)
    assert np.array_equal(np.concatenate(rows), wanted)


def break_(case: Case, what: str) -> None:
    if what == "table":
        case.tables[0, 0] = len(case.pool)
    elif what == "negative":
        case.tables[0, 0] = -1
    elif what == "position":
        case.positions[0] = 999
    elif what == "starts":
        case.starts[-1] += 1
    elif what == "pool":
        case.pool = case.pool[:, :-64].copy()
    else:
        case.cos = case.cos[:-1].copy()


@pytest.mark.parametrize("what", ["table", "negative", "position", "starts", "pool", "cos"])
def test_what_would_read_outside_the_arrays_is_refused(what: str):
    case = Case([40, 3], [1, 9])
    break_(case, what)
    with pytest.raises(ValueError, match=r"table|starts|pool|cos"):
        case.native()


@pytest.mark.parametrize("size", [1, 15, 16, 17, 1000])
def test_argmax_finds_the_first_of_the_largest(size: int):
    x = normal(size)
    assert module.argmax(x) == x.argmax()
    assert module.argmax(np.ones(size, np.float32)) == 0


@pytest.mark.parametrize("target", ["q8", "q4"])
def test_q6_k_is_rounded_as_its_floats_are(target: str):
    raw = np.random.default_rng(6).integers(0, 256, (32, 2 * 210), np.uint8)
    raw.reshape(32, 2, 210)[:, :, 208:] = np.array([0.01], np.float16).view(np.uint8)
    values = np.ascontiguousarray(quants.dequantize(raw, GGMLQuantizationType.Q6_K))
    direct = module.pack("q6_k", target, raw, 512)
    rounded = module.pack("f32", target, values.view(np.uint8).reshape(32, -1), 512)
    x = normal(3, 512)
    assert np.array_equal(times(direct, x), times(rounded, x))
