"""Rows for experts come over the wire as they were sent, are cut and joined without a change, and are refused if anything is wrong."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import RemoteProtocolError
from shoal.wire.frame import MAX_BODY
from shoal.wire.routed import MOST_EXPERTS, Routed, RoutedHeader, SumsHeader, decode_sums, encode_sums, merged
from tests.support.routed_rows import any_routed, changed, routed_of, said, values

ONE = routed_of([{2: 0.5, 7: 0.25}, {2: 1.0}, {3: 0.125}], layer=4)


def alike(mine: Routed, its: Routed) -> bool:
    return mine.header == its.header and bytes(mine.body) == bytes(its.body)


def header(routed: Routed) -> RoutedHeader:
    return msgspec.msgpack.decode(routed.encode()[0], type=RoutedHeader)


def body_of(**arrays: Any) -> bytes:
    """The body of ONE, with other arrays."""
    return bytes(changed(ONE, **{name: np.asarray(array, getattr(ONE, name).dtype) for name, array in arrays.items()}).body)


@given(any_routed())
def test_what_is_sent_comes_back(routed: Routed) -> None:
    meta, body = routed.encode()
    for taken in (body, bytearray(body), memoryview(b"x" + body)[1:]):
        found = Routed.decode(meta, taken)
        found.check()
        assert alike(found, routed)
        assert (found.rows, found.hidden) == (routed.rows, routed.hidden)
        assert said(found) == said(routed) and values(found) == values(routed)


@given(any_routed())
def test_a_body_is_not_copied(routed: Routed) -> None:
    meta, body = routed.encode()
    found = Routed.decode(meta, body)
    assert found.body is body
    assert not any(getattr(found, name).flags.owndata for name in ("index", "weights", "q" if routed.rounded else "x"))


@given(any_routed(), st.sets(st.integers(0, 12)))
def test_a_part_has_the_entries_of_its_experts_and_no_other_row(routed: Routed, wanted: set[int]) -> None:
    part, rows = routed.only(sorted(wanted))
    assert set(part.experts.tolist()) == wanted & set(routed.experts.tolist())
    kept = [Counter({entry: count for entry, count in row.items() if entry[0] in wanted}) for row in said(routed)]
    assert [kept[row] for row in rows] == said(part)
    assert rows.tolist() == sorted({*rows.tolist()}) == [row for row, entries in enumerate(kept) if entries]
    assert [values(routed)[row] for row in rows] == values(part)
    if len(rows):
        assert alike(Routed.decode(*part.encode()), part)


@given(any_routed(), st.sets(st.integers(0, 9)))
def test_two_parts_have_every_entry_once(routed: Routed, wanted: set[int]) -> None:
    found: list[Counter[tuple[int, float]]] = [Counter() for _ in range(routed.rows)]
    for some in (wanted, set(range(10)) - wanted):
        part, rows = routed.only(sorted(some))
        for row, entries in zip(rows, said(part), strict=True):
            found[row] += entries
    assert found == said(routed)


@given(st.booleans().flatmap(lambda rounded: st.lists(any_routed(3, 64, rounded), min_size=1, max_size=4)))
def test_several_are_merged_row_after_row(several: list[Routed]) -> None:
    one = merged(several)
    assert said(one) == [row for routed in several for row in said(routed)]
    assert values(one) == [row for routed in several for row in values(routed)]
    assert one.experts.tolist() == sorted({expert for routed in several for expert in routed.experts.tolist()})
    assert alike(Routed.decode(*one.encode()), one)


NO_INTS = st.one_of(st.none(), st.text(max_size=3), st.floats(), st.lists(st.integers(0, 9), max_size=2), st.booleans())
WRONG: dict[str, st.SearchStrategy[Any]] = {
    "layer": st.one_of(NO_INTS, st.integers(-(2**63), -1)),
    **{name: st.one_of(NO_INTS, st.integers(-(2**63), 2**64 - 1)) for name in ("rows", "hidden", "experts", "entries")},
    "rounded": st.one_of(st.booleans(), st.none(), st.integers(-(2**63), 2**64 - 1), st.text(max_size=3)),
}


@given(any_routed(), st.data())
def test_a_wrong_number_in_the_metadata_is_refused(routed: Routed, data: st.DataObject) -> None:
    meta, body = routed.encode()
    plain = msgspec.msgpack.decode(meta)
    at = data.draw(st.integers(0, len(plain) - 1))
    wrong = data.draw(
        WRONG[RoutedHeader.__struct_fields__[at]].filter(lambda value: type(value) is not type(plain[at]) or value != plain[at])
    )
    with pytest.raises(RemoteProtocolError):
        Routed.decode(msgspec.msgpack.encode([*plain[:at], wrong, *plain[at + 1 :]]), body)


@given(any_routed(), st.integers(-40, 40).filter(bool))
def test_a_body_of_another_size_is_refused(routed: Routed, off: int) -> None:
    meta, body = routed.encode()[0], bytes(routed.body)
    with pytest.raises(RemoteProtocolError, match=f"instead of {len(body)}"):
        Routed.decode(meta, body[:off] if off < 0 else body + bytes(off))


@pytest.mark.parametrize(
    "wrong",
    [
        {"experts": [-1, 3, 7]},
        {"experts": [2, 2, 7]},
        {"experts": [7, 3, 2]},
        {"offsets": [1, 2, 3, 4]},
        {"offsets": [0, 2, 3, 5]},
        {"offsets": [0, 3, 2, 4]},
        {"offsets": [0, 2**31 - 1, -(2**31), 4]},
        {"offsets": [-(2**31), 2, 3, 4]},
        {"offsets": [0, 4, 4, 4]},  # more than there are rows
        {"index": [0, 1, 2, 3]},
        {"index": [-1, 1, 2, 0]},
        {"index": [0, 1, 2, 2**31 - 1]},
    ],
)
def test_experts_and_entries_that_cannot_be_are_refused(wrong: dict[str, list[int]]) -> None:
    with pytest.raises(RemoteProtocolError, match="cannot be"):
        Routed.decode(ONE.encode()[0], body_of(**wrong)).check()


@given(any_routed(), st.data())
def test_what_a_wrong_body_still_says_can_be_merged(routed: Routed, data: st.DataObject) -> None:
    """Nothing of it reaches rows of others."""
    meta, body = routed.encode()
    wrong = bytearray(body)
    at = 4 * data.draw(st.integers(0, (2 * len(routed.experts) + 2 * len(routed.index))))
    wrong[at : at + 4] = data.draw(st.integers(-(2**31), 2**31 - 1)).to_bytes(4, "little", signed=True)
    try:
        one = merged([routed, Routed.decode(meta, bytes(wrong[: len(body)])), routed])
    except RemoteProtocolError:
        return
    rows = said(one)
    assert rows[: routed.rows] == rows[-routed.rows :] == said(routed)


@given(st.one_of(st.binary(max_size=30), any_routed().map(lambda routed: routed.encode()[0])), st.binary(max_size=30))
def test_bytes_that_are_no_frame_are_refused(meta: bytes, body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Routed.decode(meta, body)
    with pytest.raises(RemoteProtocolError):
        decode_sums(meta, body, ONE)


@pytest.mark.parametrize("tail", [b"\x91", b"\x81\xa1a", b"\xdd\xff\xff\xff\xff"])
def test_metadata_that_are_deep_or_endless_are_refused(tail: bytes) -> None:
    for meta in (b"\x97" + b"\x01" * 5 + b"\xc2" + tail * 50_000, tail * 50_000):
        with pytest.raises(RemoteProtocolError, match="cannot be read"):
            Routed.decode(meta, b"")
        with pytest.raises(RemoteProtocolError, match="cannot be read"):
            decode_sums(meta, b"", ONE)


@pytest.mark.parametrize(
    "announced",
    [
        {"rows": 2**40},
        {"hidden": 2**40},
        {"rows": 2**62, "hidden": 2**62},
        {"entries": 2**60},
        {"experts": MOST_EXPERTS},
        {"experts": MOST_EXPERTS + 1},
        {"rows": 2**63, "rounded": False},
    ],
)
def test_sizes_that_are_only_announced_take_no_memory(announced: dict[str, Any]) -> None:
    meta = msgspec.msgpack.encode(msgspec.structs.replace(header(ONE), **announced))
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError):
            Routed.decode(meta, ONE.encode()[1])
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_rows_whose_sums_would_not_fit_a_frame_are_refused() -> None:
    """Their answer could not be sent."""
    hidden = 1 << 14
    most = MAX_BODY // 8 // hidden
    for rows, why in ((most, "bytes instead of"), (most + 1, "cannot be")):
        meta = msgspec.msgpack.encode(msgspec.structs.replace(header(ONE), rows=rows, hidden=hidden))
        with pytest.raises(RemoteProtocolError, match=why):
            Routed.decode(meta, b"")


def test_rows_that_are_rounded_have_whole_groups() -> None:
    meta = msgspec.msgpack.encode(msgspec.structs.replace(header(ONE), hidden=48))
    with pytest.raises(RemoteProtocolError, match="cannot be"):
        Routed.decode(meta, b"")


def sums_of(routed: Routed) -> Any:
    return np.random.default_rng(0).integers(-(2**40), 2**40, (routed.rows, routed.hidden)) * 2.0**-32


@given(any_routed(), st.floats(0, 1e6), st.floats(0, 1e6))
def test_sums_come_back_bit_by_bit(routed: Routed, waited: float, computed: float) -> None:
    sums = sums_of(routed)
    found, said = decode_sums(*encode_sums(sums, waited, computed), routed)
    assert found.tobytes() == sums.tobytes()
    assert said == SumsHeader(routed.rows, routed.hidden, waited, computed)


def test_sums_that_are_not_contiguous_are_sent_all_the_same() -> None:
    sums = sums_of(ONE)
    for out in (np.concatenate([sums, sums])[::2], sums.T.copy().T, sums[::-1], np.repeat(sums, 2, axis=1)[:, ::2]):
        found, _ = decode_sums(*encode_sums(out), ONE)
        assert np.array_equal(found, out)


@given(any_routed(), st.data())
def test_sums_of_another_shape_are_refused(routed: Routed, data: st.DataObject) -> None:
    meta, body = encode_sums(sums_of(routed))
    plain = msgspec.msgpack.decode(meta)
    at = data.draw(st.integers(0, 1))
    wrong = data.draw(
        st.one_of(NO_INTS, st.integers(-(2**63), 2**64 - 1)).filter(lambda value: value is not plain[at] and value != plain[at])
    )
    with pytest.raises(RemoteProtocolError):
        decode_sums(msgspec.msgpack.encode([*plain[:at], wrong, *plain[at + 1 :]]), body, routed)
    with pytest.raises(RemoteProtocolError, match="were asked for"):
        decode_sums(meta, bytes(body)[: data.draw(st.integers(0, len(body) - 1))], routed)
    with pytest.raises(RemoteProtocolError, match="were asked for"):
        decode_sums(meta, bytes(body) + bytes(data.draw(st.integers(1, 40))), routed)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_sum_that_is_no_number_is_refused(value: float) -> None:
    sums = sums_of(ONE)
    sums[1, 5] = value
    with pytest.raises(RemoteProtocolError, match="not all numbers"):
        decode_sums(*encode_sums(sums), ONE)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("field", ["scale", "x", "weights"])
def test_rows_that_overflowed_before_they_were_sent_are_nobodys_fault(value: float, field: str) -> None:
    asked = routed_of([{2: 0.5, 7: 0.25}, {2: 1.0}, {3: 0.125}], rounded=field != "x")
    array = getattr(asked, field).copy()
    array[1] = value
    asked = changed(asked, **{field: array})
    row = int(asked.index[1]) if field == "weights" else 1
    assert asked.sound.tolist() == [at != row for at in range(3)]
    sums = sums_of(asked)
    sums[row] = np.nan
    found, _ = decode_sums(*encode_sums(sums), asked)
    assert np.isnan(found[row]).all()
    sums[(row + 1) % 3, 0] = np.nan
    with pytest.raises(RemoteProtocolError, match="not all numbers"):
        decode_sums(*encode_sums(sums), asked)
