"""From the timeline of a request to spans."""

from __future__ import annotations

from itertools import pairwise
from math import ceil, log2

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.observed.requests import HopSpan, RecoverySpan, RequestView, StepSpan, Timeline
from shoal.observed.trace_span import TraceSpan
from shoal.telemetry.request_spans import SINGLE, TOGETHER, duration, interruption_spans, spans_of
from shoal.trace_context import TraceContext

ROOT = TraceContext("1" * 32, "2" * 16, True, "a=1")
HOP = HopSpan(0.001, 0.0005, 0.0005, 0.005, 0.0, 0.0005)
LAST = HopSpan(0.002, 0.001, 0.001, 0.005, 0.001, 0.001)


def step(number: int, at: float, epoch: int = 1, stages: int = 2, tokens: int = 1) -> StepSpan:
    return StepSpan(number, epoch, at, 3, 1, tokens, 0.001, 0.0005, 0.0005, [HOP] * (stages - 1) + [LAST], 0.001, 0.001)


def timeline(steps: int, *, first: int = 1, state: str = "ended", **more: object) -> Timeline:
    """A request that began at 100, whose steps take 0.03 s each, `first` of them for its prompt."""
    made = [step(i, 101 + 0.03 * i, tokens=int(i >= first - 1)) for i in range(steps)]
    view = RequestView(
        "a",
        100.0,
        state=state,
        prompt_tokens=7,
        cached_tokens=2,
        generated=max(steps - first + 1, 0),
        first=made[first - 1].at + 0.025 if steps >= first else 0.0,
        ended=made[-1].at + 0.03 if made else 100.5,
        reason="no stage left" if state == "failed" else "",
    )
    return msgspec.structs.replace(Timeline(view, {1: ["n0", "n1"]}, made, [], steps), **more)


def made(of: Timeline) -> list[TraceSpan]:
    return spans_of(of, ROOT, lambda at: None)


def below(spans: list[TraceSpan], parent: TraceSpan | TraceContext) -> list[TraceSpan]:
    context = parent.context if isinstance(parent, TraceSpan) else parent
    return [span for span in spans if span.parent == context.span]


def named(spans: list[TraceSpan], name: str) -> TraceSpan:
    (found,) = (span for span in spans if span.name == name)
    return found


def test_a_request_is_its_phases_and_they_their_steps():
    spans = made(timeline(3))
    assert [(s.name, s.began, round(s.ended, 3)) for s in below(spans, ROOT)] == [
        ("queue", 100.0, 101.0),
        ("prefill", 101.0, 101.025),
        ("decode", 101.025, 101.09),
    ]
    assert [s.attributes["shoal.step"] for s in below(spans, named(spans, "prefill"))] == [0]
    assert [s.attributes["shoal.step"] for s in below(spans, named(spans, "decode"))] == [1, 2]
    assert named(spans, "prefill").attributes == {"shoal.prompt_tokens": 7, "shoal.cached_tokens": 2, "shoal.steps": 1}
    one = below(spans, named(spans, "prefill"))[0]
    parts = [(s.name, round(s.began - 101, 4), round(s.ended - 101, 4)) for s in below(spans, one)]
    assert parts == [
        ("schedule", 0.0, 0.002),
        ("link head → n0", 0.002, 0.003),
        ("stage n0", 0.003, 0.0095),
        ("link n0 → n1", 0.0095, 0.0115),
        ("stage n1", 0.0115, 0.0205),
        ("link n1 → head", 0.0205, 0.0215),
        ("apply", 0.0215, 0.0225),
    ]
    last = [(s.name, round(s.began - 101, 4), round(s.ended - 101, 4)) for s in below(spans, named(below(spans, one), "stage n1"))]
    assert last == [("wait", 0.0115, 0.0125), ("compute", 0.0135, 0.0185), ("sample", 0.0185, 0.0195)]
    assert [s.name for s in below(spans, named(below(spans, one), "stage n0"))] == ["wait", "compute"]


def test_steps_that_are_put_together_say_what_is_usual_and_show_the_longest():
    of = timeline(30)
    of.steps[20] = msgspec.structs.replace(of.steps[20], back=0.02)
    spans = made(of)
    groups = [s for s in below(spans, named(spans, "decode")) if s.name == "steps"]
    assert [(s.attributes["shoal.step.first"], s.attributes["shoal.step.last"]) for s in groups] == [(5, 12), (13, 28), (29, 29)]
    second = groups[1].attributes
    assert second["shoal.steps"] == 16 and second["shoal.tokens"] == 16 and second["shoal.stages"] == ["n0", "n1"]
    assert second["shoal.link.median"] == [0.001, 0.002, 0.001] and second["shoal.stage.compute.median"] == [0.005, 0.005]
    assert second["shoal.step.longest"] == duration(of.steps[20]) and second["shoal.step.median"] == duration(of.steps[19])
    (longest,) = below(spans, groups[1])
    assert longest.name == "step" and longest.attributes["shoal.step"] == 20


def test_requests_that_did_not_get_far():
    waited = made(timeline(0, state="failed"))
    assert [(s.name, s.began, s.ended, s.error) for s in waited] == [("queue", 100.0, 100.5, "no stage left")]
    prompt = made(timeline(2, first=5, state="failed"))
    assert [(s.name, s.error) for s in below(prompt, ROOT)] == [("queue", None), ("prefill", "no stage left")]
    forgotten = made(msgspec.structs.replace(timeline(3), steps=[], lost=3))
    assert [(s.name, s.attributes.get("shoal.steps.lost")) for s in forgotten] == [("queue", None), ("prefill", None), ("decode", 3)]


def test_an_interruption_is_in_its_phase_with_its_parts_and_names_its_own_trace():
    recovery = RecoverySpan(101.1, 101.4, "n1 is lost", "n1", 2.0, {"fence": 0.1, "load": 0.15, "resume": 0.05}, 40, 3)
    own = TraceContext("3" * 32, "4" * 16, True)
    of = timeline(20, recoveries=[recovery])
    spans = spans_of(of, ROOT, {101.1: own}.get)
    one = named(spans, "interruption")
    assert one.parent == named(spans, "decode").context.span and one.links == [own]
    assert one.attributes == {
        "shoal.reason": "n1 is lost",
        "shoal.refilled_tokens": 40,
        "shoal.node": "n1",
        "shoal.silence": 2.0,
        "shoal.kept_tokens": 3,
    }
    assert [(s.name, round(s.began, 3), round(s.ended, 3)) for s in below(spans, one)] == [
        ("fence", 101.1, 101.2),
        ("load", 101.2, 101.35),
        ("resume", 101.35, 101.4),
    ]
    (whole, *parts) = interruption_spans(recovery, own, [ROOT])
    assert (whole.context, whole.parent, whole.links, len(parts)) == (own, "", [ROOT], 3)
    early = msgspec.structs.replace(recovery, at=99.0, ended=100.5)
    spans = made(timeline(2, recoveries=[early]))
    assert named(spans, "interruption").parent == named(spans, "queue").context.span


def test_another_route_is_shown_in_detail_again():
    of = timeline(40)
    for i in range(20, 40):
        of.steps[i] = step(i, of.steps[i].at, epoch=2, stages=1)
    of = msgspec.structs.replace(of, epochs={1: ["n0", "n1"]})
    spans = made(of)
    single = [s.attributes["shoal.step"] for s in below(spans, named(spans, "decode")) if s.name == "step"]
    assert single == [1, 2, 3, 4, 20, 21, 22, 23]
    assert "stage stage 0" in {s.name for s in spans}  # nobody knows its node's name any more


def count(span: TraceSpan) -> int:
    """Its steps."""
    found = span.attributes.get("shoal.steps", 0)
    assert isinstance(found, int)
    return found


def most(steps: int) -> int:
    """Spans of so many steps on one route of two stages, in two phases."""
    groups = ceil(log2(max(steps - SINGLE, 0) / TOGETHER + 1)) + 1
    return 3 + 2 * (SINGLE * 13 + groups * 14)


@settings(deadline=None)
@given(st.integers(0, 3000), st.integers(1, 40))
def test_every_step_is_counted_once_and_spans_are_few(steps: int, first: int):
    of = timeline(steps, first=first)
    spans = made(of)
    assert len(spans) <= most(steps)
    counted = 0
    for phase in below(spans, ROOT):
        inside = sum(1 if s.name == "step" else count(s) for s in below(spans, phase))
        assert inside == count(phase)
        counted += inside
    assert counted == steps
    ids = [span.context.span for span in spans]
    assert len({*ids}) == len(ids) and {span.parent for span in spans} <= {ROOT.span, *ids}
    assert all(span.context.trace == ROOT.trace and span.context.state == "a=1" for span in spans)


seconds = st.floats(0, 10)
steps_of_any = st.lists(
    st.builds(
        lambda at, epoch, a, b, stages: StepSpan(0, epoch, 100 + at, 2, 1, 1, a, b, a, stages, b, a),
        seconds,
        st.integers(1, 3),
        seconds,
        seconds,
        st.lists(st.builds(HopSpan, seconds, seconds, seconds, seconds, seconds, seconds), max_size=3),
    ),
    max_size=30,
)


@settings(deadline=None)
@given(
    steps_of_any, st.floats(0, 30), st.floats(0, 30), st.sampled_from(["ended", "failed", "left"]), st.lists(st.floats(-10, 40), max_size=3)
)
def test_no_timeline_makes_a_span_that_ends_before_it_begins(
    steps: list[StepSpan], first: float, more: float, state: str, recoveries: list[float]
):
    steps.sort(key=lambda one: one.at)
    view = RequestView("a", 100.0, state=state, first=100 + first if first else 0.0, ended=100 + first + more)
    found = [RecoverySpan(100 + at, 101 + at, "", "", 0.0, {"fence": 0.5}, 0, 0) for at in recoveries]
    spans = made(Timeline(view, {1: ["a"]}, steps, found, len(steps)))
    assert all(span.began <= span.ended for span in spans)
    phases = below(spans, ROOT)
    assert all(a.ended <= b.began + 1e-9 for a, b in pairwise(phases))
    assert len([span for span in spans if span.name == "interruption"]) == len(recoveries)
