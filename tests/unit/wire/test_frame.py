"""Frames survive any cut of the stream; what is no frame is refused, and never read past."""

from __future__ import annotations

import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import LocalProtocolError, ProtocolError, RemoteProtocolError, VersionMismatch
from shoal.request import Alternative, SamplingParams, Score
from shoal.scheduler.plan import Chunk, Opened, PromptOutputs, PromptQuery, Sampled, StageTrace, StepPlan, StepResult
from shoal.wire import messages
from shoal.wire.frame import HEADER, MAGIC, VERSION, Dtype, Frame, FrameDecoder, FrameKind, WireCodec


def wire(frame: Frame) -> bytes:
    return b"".join(bytes(buffer) for buffer in frame.buffers())


def read(data: bytes, pieces: list[int], decoder: FrameDecoder | None = None) -> list[Frame]:
    """Feeds a stream in pieces of these sizes, over and over."""
    decoder, frames, at, turn = decoder or FrameDecoder(), [], 0, 0
    while at < len(data):
        room = decoder.get_buffer()
        count = min(len(room), len(data) - at, pieces[turn % len(pieces)])
        room[:count] = data[at : at + count]
        frames += decoder.received(count)
        at, turn = at + count, turn + 1
    return frames


def facts(frame: Frame) -> tuple[object, ...]:
    return (frame.kind, frame.epoch, frame.step, bytes(frame.meta), bytes(frame.body), frame.dtype, frame.codec, frame.flags)


def header(
    magic: int = MAGIC, version: int = VERSION, kind: int = FrameKind.STEP, dtype: int = 0, codec: int = 0, meta: int = 0, body: int = 0
) -> bytes:
    return HEADER.pack(magic, version, kind, 0, dtype, codec, 0, meta, 0, body)


def frames() -> st.SearchStrategy[Frame]:
    sizes = st.one_of(st.integers(0, 40), st.sampled_from([2047, 2048, 65503, 65504, 65505, 70000]))
    return st.builds(
        Frame,
        st.sampled_from(FrameKind),
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**64 - 1),
        st.binary(max_size=40),
        sizes.map(lambda size: bytes(i % 251 for i in range(size))),
        st.sampled_from(Dtype),
        st.sampled_from(WireCodec),
        st.integers(0, 2**16 - 1),
    )


def test_the_header_is_what_the_page_says():
    data = wire(Frame(FrameKind.RESULT, 7, 9, b"meta", b"body!", Dtype.FLOAT32, WireCodec.INT8, 3))
    assert len(data) == 32 + 4 + 5
    assert struct.unpack("<HBBHBBIIQQ", data[:32]) == (0x5A1B, 1, 3, 3, 1, 2, 7, 4, 9, 5)


def test_size_is_what_goes_onto_the_wire():
    for body in (b"", b"x" * 10, b"x" * 5000):
        frame = Frame(FrameKind.STEP, meta=b"abc", body=body)
        assert frame.size == len(wire(frame))


def test_a_large_body_is_not_copied():
    body = bytearray(5000)
    _, sent = Frame(FrameKind.STEP, body=body).buffers()
    assert memoryview(sent).obj is body


@pytest.mark.slow
@given(st.lists(frames(), max_size=4), st.lists(st.integers(1, 5000), min_size=1, max_size=5))
def test_frames_survive_any_cut(sent: list[Frame], pieces: list[int]):
    decoder = FrameDecoder()
    got = read(b"".join(wire(f) for f in sent), pieces, decoder)
    assert [facts(f) for f in got] == [facts(f) for f in sent]
    assert not decoder.mid_frame


@pytest.mark.parametrize("cut", range(1, 45))
def test_two_frames_cut_at_every_byte(cut: int):
    data = wire(Frame(FrameKind.PING, meta=b"a")) + wire(Frame(FrameKind.BYE, body=b"bcd"))
    decoder = FrameDecoder()
    got = read(data[:cut], [99], decoder)
    got += read(data[cut:], [99], decoder)
    assert [f.kind for f in got] == [FrameKind.PING, FrameKind.BYE]


def test_frames_keep_their_bytes_when_more_come():
    decoder = FrameDecoder()
    (first,) = read(wire(Frame(FrameKind.STEP, meta=b"first", body=b"body")), [999], decoder)
    read(wire(Frame(FrameKind.STEP, meta=b"other", body=b"else")), [999], decoder)
    assert (bytes(first.meta), bytes(first.body)) == (b"first", b"body")


@pytest.mark.parametrize(("count", "middle"), [(0, False), (1, True), (31, True), (32, True), (36, False)])
def test_it_knows_whether_a_frame_is_cut(count: int, middle: bool):
    decoder = FrameDecoder()
    read(wire(Frame(FrameKind.STEP, body=b"1234"))[:count], [99], decoder)
    assert decoder.mid_frame is middle


@pytest.mark.parametrize("bad", [{"magic": 0x4854}, {"kind": 0}, {"kind": 99}, {"dtype": 2}, {"codec": 4}])
def test_what_is_no_frame_is_refused(bad: dict[str, int]):
    with pytest.raises(RemoteProtocolError):
        read(header(**bad), [32])


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_version_is_told_apart(version: int):
    with pytest.raises(VersionMismatch) as refused:
        read(header(version=version), [32])
    assert (refused.value.theirs, refused.value.ours) == (version, VERSION)


@pytest.mark.parametrize(("meta", "body"), [(101, 0), (0, 1001), (2**32 - 1, 0), (0, 2**64 - 1)])
def test_a_lying_length_is_refused_before_memory_is_taken(meta: int, body: int):
    with pytest.raises(RemoteProtocolError, match="limits"):
        read(header(meta=meta, body=body), [32], FrameDecoder(max_meta=100, max_body=1000))


def test_a_broken_stream_is_never_read_again():
    decoder = FrameDecoder()
    with pytest.raises(RemoteProtocolError):
        read(header(magic=1), [32], decoder)
    with pytest.raises(LocalProtocolError):
        decoder.received(0)


def test_a_frame_over_the_limits_is_never_sent():
    with pytest.raises(LocalProtocolError, match="limits"):
        Frame(FrameKind.STEP, meta=bytes((16 << 20) + 1)).buffers()


@given(st.binary(max_size=200), st.integers(1, 64))
def test_noise_is_refused_or_waited_for(noise: bytes, piece: int):
    try:
        assert read(noise, [piece]) == []
    except ProtocolError:
        return


@pytest.mark.slow
@given(frames(), st.integers(0, 31), st.integers(0, 7))
def test_a_flipped_bit_in_a_header_never_crashes(frame: Frame, at: int, bit: int):
    data = bytearray(wire(frame))
    data[at] ^= 1 << bit
    decoder = FrameDecoder(max_meta=1 << 17, max_body=1 << 17)
    try:
        read(bytes(data), [4096], decoder)
    except ProtocolError:
        return


# The metadata


PLAN = StepPlan(
    5,
    [Opened(1, SamplingParams(temperature=0.5, seed=2**64 - 1, logit_bias={3: 1.5}), [1, 2], [3])],
    [4],
    [5],
    [(6, 7)],
    [Chunk(1, 0, [1, 2], [8], True), Chunk(2, 0, [1, 2], [9], False, PromptQuery([2, 3], 1, True))],
)


def test_a_plan_comes_back_as_it_went():
    step = messages.decode_step(messages.encode(messages.Step(messages.raw(PLAN), [StageTrace(1, 2, 3, 4, 5)])))
    assert messages.decode_plan(step.plan) == PLAN
    assert step.traces == [StageTrace(1, 2, 3, 4, 5)]


def test_a_result_comes_back_as_it_went():
    result = StepResult(5, [Sampled(1, 2, -0.5, (Alternative(2, -0.5), Alternative(3, -1.0)))], [])
    told = PromptOutputs(2, [Score(1, None), Score(2, -0.5, (Alternative(2, -0.5),))], b"\0" * 16)
    assert messages.decode_result(messages.encode(msgspec.structs.replace(result, examined=[told]))).examined == [told]
    assert messages.decode_result(messages.encode(result)) == result


def test_a_greeting_and_an_error_come_back_as_they_went():
    hello, error = messages.Hello("1", "c", "n", 2), messages.Error("why", 1)
    assert messages.decode_hello(messages.encode(hello)) == hello
    assert messages.decode_error(messages.encode(error)) == error


DECODERS = [messages.decode_step, messages.decode_result, messages.decode_hello, messages.decode_error]


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize("meta", [b"", b"\xc1", b"\x93\x01", msgspec.msgpack.encode({"a": 1}), msgspec.msgpack.encode([1, "x"])])
def test_metadata_of_another_shape_is_refused(decode: object, meta: bytes):
    with pytest.raises(RemoteProtocolError):
        decode(meta)  # pyright: ignore[reportCallIssue]


@given(st.data())
def test_a_cut_plan_is_refused(data: st.DataObject):
    whole = bytes(messages.raw(PLAN))
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(RemoteProtocolError):
        messages.decode_plan(msgspec.Raw(whole[:cut]))


def test_a_header_out_of_range_is_this_sides_fault():
    with pytest.raises(LocalProtocolError):
        Frame(FrameKind.STEP, epoch=2**32).buffers()
