"""What the head writes down, and what of a file that ends anywhere, or is none, comes back."""

from __future__ import annotations

import struct
import zlib

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.pipeline.records import Accepted, Began, Gone, Ledger, Record, SampledToken, SampledTokens, decode, encode, read, written
from shoal.request import Alternative, FinishReason, Request, RequestId, SamplingParams

names = st.sampled_from(["a", "b", "ü"])
numbers = st.integers(0, 6)
tokens = st.integers(0, 2**31)
logprobs = st.none() | st.floats(-100, 0)
sampling = st.builds(SamplingParams, seed=st.integers(0, 2**64 - 1), logit_bias=st.dictionaries(tokens, st.floats(-100, 100), max_size=2))
requests = st.builds(
    Request,
    names.map(RequestId),
    st.lists(tokens, max_size=5),
    st.integers(1, 9),
    sampling,
    st.integers(1, 4),
    st.frozensets(tokens, max_size=2),
)
draws = st.builds(
    SampledToken,
    numbers,
    st.integers(0, 3),
    st.none() | tokens,
    logprobs,
    st.lists(st.builds(Alternative, tokens, st.floats(-100, 0)), max_size=2).map(tuple),
    st.none() | st.sampled_from(FinishReason),
    numbers,
)
records: st.SearchStrategy[list[Record]] = st.lists(
    st.builds(Began, st.sampled_from(["m", "o"]))
    | st.builds(Accepted, names, numbers, st.binary(max_size=9), st.lists(requests, max_size=2))
    | st.builds(SampledTokens, st.lists(draws, max_size=4))
    | st.builds(Gone, names),
    max_size=12,
)


def state(of: Ledger) -> object:
    return of.identity, of.answers


def told(some: list[Record]) -> object:
    ledger = Ledger()
    for record in some:
        ledger.add(record)
    return state(ledger)


def test_what_an_older_head_wrote_is_read():
    """Fields that requests have gained since have their defaults."""
    sampling = SamplingParams(seed=7, logprobs=2)
    older = {"id": "a-0", "prompt": [1, 2], "max_tokens": 3, "sampling": msgspec.to_builtins(sampling)[:10], "n": 2, "stop_tokens": [5]}
    payload = msgspec.msgpack.encode(["accepted", "a", 0, b"note", [older]])
    data = encode(Began("m")) + struct.pack("<II", len(payload), zlib.crc32(payload)) + payload
    ledger, end = read(data)
    assert end == len(data)
    assert ledger.answers["a"].requests == [Request(RequestId("a-0"), [1, 2], 3, sampling, 2, frozenset({5}))]


@given(records)
def test_records_come_back_as_they_were(some: list[Record]):
    assert [record for record, _ in decode(b"".join(map(encode, some)))] == some


@settings(max_examples=60)
@given(records)
def test_every_beginning_of_a_file_is_a_state_that_once_was(some: list[Record]):
    parts = [encode(record) for record in some]
    data, ends = b"".join(parts), [0]
    for part in parts:
        ends.append(ends[-1] + len(part))
    for cut in range(len(data) + 1):
        ledger, end = read(data[:cut])
        whole = max(i for i, e in enumerate(ends) if e <= cut)
        assert (end, state(ledger)) == (ends[whole], told(some[:whole]))


@given(records, st.binary(max_size=40))
def test_what_is_no_record_ends_the_file(some: list[Record], noise: bytes):
    data = b"".join(map(encode, some))
    ledger, end = read(data + noise)
    if end == len(data):  # else the noise was a record, which no test will see
        assert state(ledger) == told(some)


@given(records.filter(bool), st.data())
def test_a_byte_that_changed_is_found(some: list[Record], data: st.DataObject):
    whole = bytearray(b"".join(map(encode, some)))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    found = [record for record, _ in decode(bytes(whole))]
    assert found == some[: len(found)]
    assert len(found) < len(some)


@given(st.binary(max_size=200))
def test_noise_is_no_file(noise: bytes):
    assert read(noise)[1] == 0


@given(records)
def test_a_file_written_anew_says_the_same_of_what_lives(some: list[Record]):
    def numbered(some: list[Record]) -> list[Record]:
        """As the log does: no number is given twice."""
        out, next = list[Record](), 0
        for record in some:
            if isinstance(record, Accepted):
                record = Accepted(record.answer, next, record.note, record.requests)
                next += len(record.requests)
            out.append(record)
        return out

    ledger = Ledger()
    for record in numbered(some):
        ledger.add(record)
    again, _ = read(written("m", ledger.answers.values()))
    assert (again.identity, again.answers) == ("m", ledger.answers)


def test_another_version_is_nobodys():
    ledger = Ledger()
    ledger.add(Began("m", version=99))
    assert ledger.identity == ""
