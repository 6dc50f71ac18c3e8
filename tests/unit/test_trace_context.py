"""`traceparent` and `tracestate`, as W3C Trace Context has them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.trace_context import TraceContext, begun, received

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"
DIGITS = "0123456789abcdef"


def test_the_example_of_the_specification():
    context = received([PARENT], ["rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"])
    assert context == TraceContext(TRACE, SPAN, True, "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE")
    assert context is not None and context.traceparent == PARENT


@pytest.mark.parametrize(
    "parents",
    [
        [],
        [""],
        [PARENT, PARENT],
        [PARENT.upper()],
        [PARENT[:-1]],
        [PARENT + "0"],
        [PARENT + "-00"],
        [PARENT.replace("-", "_")],
        [f"ff-{TRACE}-{SPAN}-01"],
        [f"ff-{TRACE}-{SPAN}-01-more"],
        [f"0-{TRACE}-{SPAN}-01"],
        [f"00-{'0' * 32}-{SPAN}-01"],
        [f"00-{TRACE}-{'0' * 16}-01"],
        [f"00-{TRACE[:-1]}g-{SPAN}-01"],
        [f"00-{TRACE}-{SPAN}-0g"],
        [f"00-{TRACE}-{SPAN}-١١"],  # digits, but not these
        [f"cc-{TRACE}-{SPAN}-01."],
    ],
)
def test_what_is_no_traceparent_is_as_none(parents: list[str]):
    assert received(parents, ["a=1"]) is None


def test_later_versions_may_say_more_and_other_flags_do_not_matter():
    assert received([f"cc-{TRACE}-{SPAN}-01-what-the-future-brings"]) == TraceContext(TRACE, SPAN, True)
    assert received([f" 00-{TRACE}-{SPAN}-03\t"]) == TraceContext(TRACE, SPAN, True)
    assert received([f"00-{TRACE}-{SPAN}-02"]) == TraceContext(TRACE, SPAN, False)


@pytest.mark.parametrize(
    ("states", "kept"),
    [
        (["a=1", " b=2 ,, c=3"], "a=1,b=2,c=3"),
        (["t@vendor=x y"], "t@vendor=x y"),
        (["a=1,a=2"], ""),
        (["A=1"], ""),
        (["a=", "b=1"], ""),
        (["a=1=2"], ""),
        (["a=\x7f"], ""),
        ([",".join(f"k{i}=v" for i in range(32))], ",".join(f"k{i}=v" for i in range(32))),
        ([",".join(f"k{i}=v" for i in range(33))], ""),
        (["a=" + "x" * 256, "b=" + "x" * 257], ""),
        (["a=" + "x" * 250, "b=" + "x" * 250, "c=" + "x" * 250], ""),
        (["a=1\r\nx: y"], ""),
    ],
)
def test_an_invalid_tracestate_is_dropped_alone(states: list[str], kept: str):
    context = received([PARENT], states)
    assert context is not None and (context.trace, context.state) == (TRACE, kept)


@given(st.lists(st.text(), max_size=2), st.lists(st.text(max_size=600), max_size=3))
def test_headers_of_any_text_are_read_or_ignored(parents: list[str], states: list[str]):
    context = received(parents, states)
    assert context is None or received([context.traceparent], [context.state] if context.state else []) == context


contexts = st.builds(TraceContext, st.text(DIGITS, min_size=32, max_size=32), st.text(DIGITS, min_size=16, max_size=16), st.booleans())


@given(contexts)
def test_a_context_goes_through_its_header(context: TraceContext):
    valid = set(context.trace) != {"0"} and set(context.span) != {"0"}
    assert received([context.traceparent]) == (context if valid else None)


@given(contexts, st.floats(0, 1))
def test_a_parent_decides_whether_it_is_sampled(parent: TraceContext, share: float):
    child = begun(parent, share)
    assert (child.trace, child.sampled) == (parent.trace, parent.sampled) and child.span != parent.span


def test_without_a_parent_a_share_of_the_traces_is_sampled():
    made = [begun(None, 0.25) for _ in range(2000)]
    assert all(re.fullmatch("[0-9a-f]{32}", one.trace) and re.fullmatch("[0-9a-f]{16}", one.span) for one in made)
    assert len({one.trace for one in made}) == 2000
    assert 350 < sum(one.sampled for one in made) < 650  # 500, give or take eight deviations
    assert all(one.sampled == (int(one.trace[16:], 16) < 2**62) for one in made)
    assert not any(begun(None, 0.0).sampled for _ in range(100)) and all(begun(None, 1.0).sampled for _ in range(100))
