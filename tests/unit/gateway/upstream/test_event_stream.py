"""Events of another server: cut apart however they come, and left as they are."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.gateway.upstream.event_stream import EventStream, Garbled, StreamEvent
from shoal.gateway.upstream.meter import Meter
from tests.support.fake_upstream import DONE, FINISH, USAGE, chunk

OBJECTS = st.dictionaries(st.text(max_size=8), st.text(max_size=20) | st.integers(-(2**53), 2**53), max_size=4)


def cut(raw: bytes, *at: int) -> list[bytes]:
    ends = sorted({min(i, len(raw)) for i in at})
    return [raw[a:b] for a, b in zip([0, *ends], [*ends, len(raw)], strict=True)]


@given(st.lists(OBJECTS, max_size=6), st.lists(st.integers(0, 800), max_size=12), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_however_bytes_come_the_same_events_come_out(objects: list[dict[str, object]], at: list[int], line: bytes) -> None:
    raws = [b"event: x" + line + b"data: " + json.dumps(each).encode() + line + line for each in objects]
    stream = EventStream()
    found = [event for piece in cut(b"".join(raws), *at) for event in stream.feed(piece)]
    assert [event.data for event in found] == objects
    assert b"".join(event.raw for event in found) + bytes(stream._rest) == b"".join(raws)
    assert not stream.unfinished


def test_comments_pass_and_the_end_is_seen() -> None:
    stream = EventStream()
    assert [*stream.feed(b": ping\n\ndata: [DONE]\n\n")] == [StreamEvent(b": ping\n\n"), StreamEvent(b"data: [DONE]\n\n", done=True)]


def test_data_over_several_lines_is_one_object() -> None:
    (event,) = EventStream().feed(b'data: {"a":\ndata: 1}\n\n')
    assert event.data == {"a": 1}


@pytest.mark.parametrize(
    "raw",
    [b"data:\n\n", b"data: \n\n", b"data\n\n", b"data:\ndata:\n\n", b"event: a\ndata: \n\n", b"x-trace: 1\n\n", b"nothing\n\n", b"\n\n"],
)
def test_empty_data_and_unknown_fields_pass(raw: bytes) -> None:
    stream = EventStream()
    events = [*stream.feed(raw + chunk("a"))]
    assert b"".join(event.raw for event in events) == raw + chunk("a")
    assert [event.data is None and not event.done for event in events] == [True] * (len(events) - 1) + [False]


@pytest.mark.parametrize("raw", [b"data: {\n\n", b"data: 5\n\n", b"<html>\n\n", b"data: \xff\n\n", b'{"error": 1}\n\n', b"Bad Gateway\n\n"])
def test_garbage_is_no_event(raw: bytes) -> None:
    events = EventStream().feed(b": ping\n\n" + raw)
    assert next(events).data is None, "what came before it is told"
    with pytest.raises(Garbled):
        next(events)


def test_an_event_without_end_is_not_kept_for_ever() -> None:
    stream = EventStream()
    for _ in range(16):
        assert [*stream.feed(b"x" * (1 << 20))] == []
    with pytest.raises(Garbled):
        list(stream.feed(b"x"))


def test_the_end_within_an_event_is_seen() -> None:
    stream = EventStream()
    assert not [*stream.feed(b"data: {")] and stream.unfinished


def metered(*raws: bytes) -> tuple[Meter, list[bool]]:
    meter, stream = Meter(40), EventStream()
    return meter, [meter.event(event) for event in stream.feed(b"".join(raws))]


def test_usage_is_taken_from_where_each_api_tells_it() -> None:
    meter, hidden = metered(chunk("a"), FINISH, USAGE, DONE)
    assert (meter.prompt, meter.completion, meter.whole, hidden) == (11, 3, True, [False, False, True, False])
    meter, _ = metered(
        b'data: {"type":"message_start","message":{"usage":{"input_tokens":5,"cache_read_input_tokens":2,"output_tokens":1}}}\n\n',
        b'data: {"type":"message_delta","usage":{"output_tokens":9}}\n\n',
        b'data: {"type":"message_stop"}\n\n',
    )
    assert (meter.prompt, meter.completion, meter.done) == (7, 9, True)
    meter, _ = metered(b'data: {"type":"response.completed","response":{"usage":{"input_tokens":4,"output_tokens":6}}}\n\n')
    assert (meter.prompt, meter.completion, meter.done) == (4, 6, True)


def test_without_usage_events_and_bytes_are_counted() -> None:
    meter, _ = metered(chunk("a"), chunk("b"))
    assert (meter.prompt, meter.completion, meter.whole) == (10, 2, False)


@given(
    OBJECTS,
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)),
)
def test_whatever_stands_where_usage_should_nothing_breaks(event: dict[str, object], odd: object) -> None:
    for field in ("usage", "choices", "response", "message", "error", "type", "sequence_number"):
        meter = Meter(4)
        meter.event(StreamEvent(b"", {**event, field: odd}))
        meter.answer({**event, field: odd}, 40)
        assert meter.prompt >= 0 and meter.completion >= 0


STARTED = b'data: {"type":"message_start","message":{"usage":{"input_tokens":5,"output_tokens":1}}}\n\n'
DELTA = b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a"}}\n\n'
PING = b'data: {"type":"ping"}\n\n'
FAILED = b'data: {"type":"error","error":{"type":"overloaded_error","message":"busy"}}\n\n'


@pytest.mark.parametrize("end", [[], [FAILED]], ids=["left", "failed"])
def test_what_a_stream_tells_at_its_beginning_is_not_all_that_it_costs(end: list[bytes]) -> None:
    meter, _ = metered(STARTED, *[DELTA] * 20, *[PING] * 50, *end)
    assert meter.prompt == 5 and meter.completion == 21 + len(end)


def choice(index: int, reason: str | None) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": index, "delta": {}, "finish_reason": reason}]}).encode() + b"\n\n"


@pytest.mark.parametrize(
    ("asked", "said", "whole"),
    [
        (1, [choice(0, None)], False),
        (1, [choice(0, "stop")], True),
        (2, [choice(0, "stop")], False),
        (2, [choice(0, "stop"), choice(1, None)], False),
        (2, [choice(0, "stop"), choice(1, None), choice(1, "length")], True),
        (1, [choice(0, None), choice(1, None), choice(0, "stop")], False),
        (2, [choice(0, "stop"), choice(1, "stop"), choice(0, None)], True),
        (2, [choice(0, "stop"), DONE], True),
    ],
)
def test_a_stream_is_whole_when_each_of_its_choices_is(asked: int, said: list[bytes], whole: bool) -> None:
    meter, stream = Meter(40, asked), EventStream()
    for event in stream.feed(b"".join(said)):
        meter.event(event)
    assert meter.whole is whole


def test_embeddings_have_no_completion() -> None:
    meter = Meter(40)
    meter.answer({"object": "list", "usage": {"prompt_tokens": 4, "total_tokens": 4}}, 4000)
    assert (meter.prompt, meter.completion) == (4, 0)
    meter.answer({"object": "chat.completion"}, 400)
    assert meter.completion == 0, "what was told once stays"
