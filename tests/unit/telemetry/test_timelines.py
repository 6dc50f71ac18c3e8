"""Requests and the steps in which their tokens were made."""

from __future__ import annotations

from itertools import count

import pytest

from shoal.pipeline.timing import StepPart, StepTiming
from shoal.request import FinishReason, Request, RequestId, TokenChunk
from shoal.scheduler.plan import StageTrace
from shoal.telemetry.timelines import ANSWERS, STEPS, Recovery, Timelines

WALL = 1000.0


def request(name: str, owner: str = "", n: int = 1) -> Request:
    return Request(RequestId(name), [1, 2, 3], 8, n=n, owner=owner)


class Story:
    """A head's clock, and steps one after another."""

    def __init__(self) -> None:
        self.lines, self.now, self._numbers = Timelines(WALL), 5.0, count()

    def step(self, *rows: tuple[str, int], epoch: int = 1) -> None:
        """rows: of requests, with the tokens that were sampled for each."""
        self.now += 0.1
        parts = tuple(StepPart(RequestId(name), max(tokens, 1), tokens) for name, tokens in rows)
        trace = StageTrace(0.001, 0.002, 0.03, 0.004, 0.005, 1.0)
        timing = StepTiming(3, 1, 0.01, 0.02, 0.03, 0.09, 0.04, (trace, trace), next(self._numbers), epoch, self.now, parts)
        self.lines.step(timing, (0.001, 0.002, 0.003))
        self.lines.sampled([TokenChunk(RequestId(name), 0, 7, cached=2) for name, tokens in rows for _ in range(tokens)], self.now)

    def finish(self, name: str, choice: int = 0) -> None:
        self.lines.sampled([TokenChunk(RequestId(name), choice, None, finish=FinishReason.LENGTH)], self.now)


def test_a_request_has_its_own_steps_with_every_part_of_their_way() -> None:
    story = Story()
    story.lines.begun("a", [request("a-0")], story.now)
    story.lines.begun("b", [request("b-0")], story.now)
    story.lines.route(1, ["x", "y"])
    story.step(("a-0", 0), ("b-0", 1))
    story.step(("b-0", 1))
    story.step(("a-0", 1))
    told = story.lines.timeline("a")
    assert told is not None and told.epochs == {1: ["x", "y"]} and (told.next, told.lost) == (3, 0)
    first, last = told.steps
    assert (first.number, first.tokens, last.number, last.tokens) == (0, 0, 2, 1)
    assert first.at == pytest.approx(WALL + 5.1 - 0.06) and (first.rows, first.own) == (3, 1)
    assert [stage.hop for stage in first.stages] == [0.001, 0.002] and first.back == 0.003
    assert first.stages[0].compute == 0.03 and (first.schedule, first.encode, first.send, first.apply) == (0.01, 0.02, 0.03, 0.04)
    later = story.lines.timeline("a", after=told.next)
    assert later is not None and later.steps == [] and later.epochs == {}
    story.step(("a-0", 1), epoch=2)
    later = story.lines.timeline("a", after=told.next)
    assert later is not None and [step.number for step in later.steps] == [3]


def test_what_became_of_requests_is_told() -> None:
    story = Story()
    for name in "abcd":
        story.lines.begun(name, [request(f"{name}-0", owner="key")], story.now)
    story.step(("a-0", 1), ("b-0", 1), ("c-0", 1))
    story.step(("a-0", 1))
    story.finish("a-0")
    story.lines.failed(RequestId("b-0"), "a stage broke", story.now)
    story.lines.ended("c", story.now)
    states = {one.id: one for one in story.lines.requests()}
    assert {name: one.state for name, one in states.items()} == {"a": "ended", "b": "failed", "c": "left", "d": "waiting"}
    a = states["a"]
    assert (a.prompt_tokens, a.generated, a.cached_tokens, a.key) == (3, 2, 2, "key")
    assert a.tokens_per_second == pytest.approx(10.0) and a.first == pytest.approx(WALL + 5.1) and a.ended == pytest.approx(WALL + 5.2)
    assert states["b"].reason == "a stage broke" and not states["d"].ended
    story.lines.ended("a", story.now + 9)  # which the gateway says of every answer
    assert story.lines.requests()[-1].ended == a.ended


def test_an_answer_ends_with_its_last_choice() -> None:
    story = Story()
    story.lines.begun("a", [request("a-0", n=2), request("a-1")], story.now)
    for name, choice in (("a-0", 0), ("a-1", 0)):
        story.finish(name, choice)
        assert story.lines.requests()[0].state == "running"
    story.finish("a-0", 1)
    assert story.lines.requests()[0].state == "ended"


def test_a_text_that_its_reader_finds_complete_has_ended() -> None:
    """As at a stop string, of which the stages know nothing."""
    story = Story()
    story.lines.begun("a", [request("a-0", n=2)], story.now)
    story.step(("a-0", 1))
    story.lines.finished(RequestId("a-0"), 0, story.now)
    story.lines.finished(RequestId("a-0"), 0, story.now)
    assert story.lines.requests()[0].state == "running"
    story.finish("a-0", 1)
    story.lines.ended("a", story.now + 1)
    assert story.lines.requests()[0].state == "ended"


def test_a_key_sees_its_own_requests_alone() -> None:
    story = Story()
    story.lines.begun("a", [request("a-0", owner="one")], story.now)
    story.lines.begun("b", [request("b-0", owner="two")], story.now)
    assert [one.id for one in story.lines.requests("one")] == ["a"] and [one.id for one in story.lines.requests()] == ["b", "a"]
    assert story.lines.timeline("a", "one") is not None
    assert story.lines.timeline("a", "two") is None and story.lines.timeline("nothing") is None


def test_a_recovery_is_in_the_timelines_of_those_who_waited() -> None:
    story = Story()
    story.lines.begun("before", [request("before-0")], story.now)
    story.finish("before-0")
    story.now += 1
    story.lines.begun("a", [request("a-0")], story.now)
    story.step(("a-0", 1))
    began = story.now
    story.now += 2
    story.lines.interrupted(Recovery("x left", began, story.now, {"fence": 0.5, "load": 1.5}, 40, "x", 1.2))
    story.lines.begun("after", [request("after-0")], story.now + 0.1)
    told = story.lines.timeline("a")
    assert told is not None
    (one,) = told.recoveries
    assert (one.node, one.silence, one.kept, one.refilled, one.parts) == ("x", 1.2, 1, 40, {"fence": 0.5, "load": 1.5})
    assert one.ended - one.at == pytest.approx(2.0)
    for other in ("before", "after"):
        assert (timeline := story.lines.timeline(other)) is not None and timeline.recoveries == []


def test_a_recovery_is_that_of_its_pipeline_and_a_request_that_moved_has_those_of_both() -> None:
    story = Story()
    for name in "ab":
        story.lines.begun(name, [request(f"{name}-0")], story.now, f"m/{'ab'.index(name) + 1}")

    def interrupted(pipeline: str, reason: str) -> None:
        story.now += 1
        story.lines.interrupted(Recovery(reason, story.now - 1, story.now, {}, 0, pipeline=pipeline))

    interrupted("m/1", "first")
    assert story.lines.moved(RequestId("a-0"), "m/2") == "a"
    assert story.lines.moved(RequestId("unknown"), "m/2") == ""
    interrupted("m/1", "nobody waited")
    interrupted("m/2", "second")
    found = {name: story.lines.timeline(name) for name in "ab"}
    reasons = {name: [one.reason for one in told.recoveries] for name, told in found.items() if told is not None}
    assert reasons == {"a": ["first", "second"], "b": ["second"]}


def test_old_steps_and_answers_are_forgotten_and_the_loss_is_told() -> None:
    story = Story()
    story.lines.begun("a", [request("a-0")], story.now)
    for _ in range(STEPS + 5):
        story.step(("a-0", 1))
    told = story.lines.timeline("a")
    assert told is not None and len(told.steps) == STEPS and told.lost == 5
    for i in range(ANSWERS + 20):
        story.lines.begun(f"n{i}", [request(f"n{i}-0")], story.now)
        story.finish(f"n{i}-0")
    listed = [one.id for one in story.lines.requests()]
    assert len(listed) == ANSWERS and listed[-1] == "a", "one that runs is never forgotten"
