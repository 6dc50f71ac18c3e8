"""Which requests a head traces, and when it sends their spans."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import pytest
from structlog.testing import capture_logs

from shoal.observed.trace_span import TraceSpan
from shoal.telemetry.timelines import Recovery
from shoal.telemetry.traces import Traces
from shoal.trace_context import TraceContext
from tests.unit.telemetry.test_timelines import Story, request

TRACE = TraceContext("1" * 32, "2" * 16, True)
OTHER = TraceContext("3" * 32, "4" * 16, True)


class Sent:
    """A SpanExport."""

    def __init__(self) -> None:
        self.spans: list[TraceSpan] = []
        self.closed = False

    def send(self, spans: Sequence[TraceSpan]) -> None:
        self.spans += spans

    def close(self) -> None:
        self.closed = True

    def of(self, trace: TraceContext) -> list[str]:
        return [span.name for span in self.spans if span.context.trace == trace.trace and span.parent == trace.span]


def begin(story: Story, name: str, trace: TraceContext | None) -> None:
    story.lines.begun(name, [msgspec.structs.replace(request(f"{name}-0"), trace=trace)], story.now)


def told(story: Story) -> Sent:
    """What was sent of a request `a` that is traced, and of others that are not."""
    sent = Sent()

    async def go() -> None:
        traces = Traces(sent, story.lines)
        begin(story, "a", TRACE)
        begin(story, "b", msgspec.structs.replace(OTHER, sampled=False))
        begin(story, "c", None)
        story.step(("a-0", 1), ("b-0", 1), ("c-0", 1))
        for name in "abc":
            story.finish(f"{name}-0")
        assert not sent.spans  # its last step is recorded after that
        story.step(("a-0", 1))
        await asyncio.sleep(0)
        traces.close()

    asyncio.run(go())
    assert sent.closed
    return sent


def test_spans_are_sent_of_what_is_sampled_with_its_last_step() -> None:
    sent = told(Story())
    assert {span.context.trace for span in sent.spans} == {TRACE.trace} and sent.of(TRACE) == ["queue", "prefill", "decode"]
    assert sum(span.name == "step" for span in sent.spans) == 2


def test_a_request_that_fails_or_is_left_is_sent_once() -> None:
    story, sent = Story(), Sent()

    async def go() -> None:
        traces = Traces(sent, story.lines)
        for name in "ab":
            begin(story, name, TRACE)
        story.lines.failed(request("a-0").id, "no stage left", story.now + 1)
        story.lines.ended("b", story.now + 1)
        for name in "ab":
            story.lines.ended(name, story.now + 2)
        await asyncio.sleep(0)
        traces.close()

    asyncio.run(go())
    assert [(span.name, span.error) for span in sent.spans] == [("queue", "no stage left"), ("queue", None)]


def test_an_interruption_has_a_trace_and_those_who_waited_name_it() -> None:
    story, sent = Story(), Sent()

    async def go() -> None:
        traces = Traces(sent, story.lines)
        recovery = Recovery("n1 is lost", story.now, story.now + 1, {"fence": 1.0}, 5)
        story.lines.interrupted(recovery)
        assert not sent.spans  # nobody waited
        begin(story, "a", TRACE)
        begin(story, "b", OTHER)
        begin(story, "c", None)
        story.step(("a-0", 1), ("b-0", 1))
        story.lines.interrupted(Recovery("n1 is lost", story.now, story.now + 1, {"fence": 1.0}, 5))
        story.now += 1
        for name in "ab":
            story.lines.ended(name, story.now)
        await asyncio.sleep(0)
        traces.close()

    asyncio.run(go())
    own, *others = [span for span in sent.spans if span.name == "interruption"]
    assert own.parent == "" and own.links == [TRACE, OTHER]
    assert [span.links for span in others] == [[own.context]] * 2 and {span.context.trace for span in others} == {TRACE.trace, OTHER.trace}


def test_a_bug_in_making_spans_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.telemetry.traces.spans_of", lambda *_: 1 // 0)
    with capture_logs() as lines:
        assert not told(Story()).spans
    assert [line["event"] for line in lines] == ["the spans of a request could not be made"]


def test_a_choice_that_goes_on_keeps_a_request_open() -> None:
    story, sent = Story(), Sent()

    async def go() -> None:
        traces = Traces(sent, story.lines)
        story.lines.begun("a", [msgspec.structs.replace(request("a-0", n=2), trace=TRACE)], story.now)
        story.finish("a-0")
        await asyncio.sleep(0)
        story.finish("a-0", 1)
        await asyncio.sleep(0)
        traces.close()

    asyncio.run(go())
    assert [span.name for span in sent.spans].count("queue") == 1
