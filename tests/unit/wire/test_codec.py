"""Activations come back as exactly as their encoding promises, and a body of the wrong size is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from shoal.errors import RemoteProtocolError
from shoal.wire.codec import decode, encode, encoded_bytes
from shoal.wire.frame import WireCodec

CODECS = list(WireCodec)


def activations(rows: int = 3, width: int = 64, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, width)) * rng.choice([1e-3, 1, 1e3], (rows, 1))).astype(np.float32)


def trip(codec: WireCodec, x: NDArray[np.float32]) -> NDArray[np.float32]:
    return decode(codec, bytes(encode(codec, x)), *x.shape)


def test_raw_is_exact_and_no_copy():
    x = activations()
    body = bytes(encode(WireCodec.RAW, x))
    out = decode(WireCodec.RAW, body, *x.shape)
    assert np.array_equal(out, x)
    assert not out.flags.owndata


@given(st.integers(0, 99))
def test_bf16_errs_by_less_than_a_256th(seed: int):
    x = activations(seed=seed)
    assert np.all(np.abs(trip(WireCodec.BF16, x) - x) <= np.abs(x) / 256)


def test_bf16_rounds_to_even():
    bits = np.array([[0x3F808000, 0x3F818000, 0x3F808001]], np.uint32)
    assert trip(WireCodec.BF16, bits.view(np.float32)).view(np.uint32).tolist() == [[0x3F800000, 0x3F820000, 0x3F810000]]


@given(st.integers(0, 99))
def test_int8_errs_by_half_a_step_of_its_row(seed: int):
    x = activations(seed=seed)
    step = np.abs(x).max(axis=1, keepdims=True) / 127
    assert np.all(np.abs(trip(WireCodec.INT8, x) - x) <= step * 0.5001)


@given(st.integers(0, 99))
def test_int4_errs_by_little_more_than_half_a_step_of_its_group(seed: int):
    x = activations(seed=seed)
    groups = x.reshape(len(x), -1, 32)
    step = np.repeat(np.abs(groups).max(axis=2) / 7, 32, axis=1)
    assert np.all(np.abs(trip(WireCodec.INT4, x) - x) <= step * 0.55)


@pytest.mark.parametrize("codec", CODECS)
def test_the_size_is_known_beforehand(codec: WireCodec):
    for rows, width in ((1, 32), (5, 96), (0, 64)):
        if rows:
            assert encode(codec, activations(rows, width)).nbytes == encoded_bytes(codec, rows, width)
    assert encoded_bytes(codec, 0, 64) == 0


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("off", [-1, 1])
def test_a_body_of_another_size_is_refused(codec: WireCodec, off: int):
    body = bytes(encoded_bytes(codec, 2, 32) + off)
    with pytest.raises(RemoteProtocolError, match="2 rows of 32"):
        decode(codec, body, 2, 32)


@pytest.mark.parametrize("codec", CODECS)
def test_zeros_stay_zeros(codec: WireCodec):
    assert not trip(codec, np.zeros((2, 32), np.float32)).any()


@pytest.mark.parametrize("codec", CODECS)
def test_a_row_does_not_depend_on_its_neighbours(codec: WireCodec):
    x = activations(4)
    assert np.array_equal(trip(codec, x)[1:2], trip(codec, x[1:2]))


@pytest.mark.parametrize("codec", CODECS)
def test_what_is_not_contiguous_is_encoded_all_the_same(codec: WireCodec):
    x = activations(6)
    assert np.array_equal(trip(codec, x[::2]), trip(codec, x[::2].copy()))


@given(st.integers(0, 50))
def test_the_largest_value_of_a_row_keeps_its_sign_and_size(seed: int):
    x = activations(seed=seed)
    for codec in (WireCodec.INT8, WireCodec.INT4):
        at = np.abs(x).argmax(axis=1)[:, None]
        was, now = np.take_along_axis(x, at, 1), np.take_along_axis(trip(codec, x), at, 1)
        assert np.allclose(now, was, rtol=1 / 128)


@pytest.mark.parametrize("codec", CODECS)
def test_what_is_no_number_does_not_become_one(codec: WireCodec):
    x = activations()
    x[1, 3] = np.nan
    with np.errstate(invalid="ignore"):
        assert np.isnan(trip(codec, x)[1]).any()
