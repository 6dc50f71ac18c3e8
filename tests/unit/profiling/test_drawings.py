"""A run as a Chrome trace, and a profile as a page."""

from __future__ import annotations

import itertools
import json
import re
from html.parser import HTMLParser

import msgspec
from hypothesis import given

from shoal.observed.requests import StepSpan
from shoal.profiling.chrome_trace import chrome_trace
from shoal.profiling.profile import LinkLoad, Profile, StageLimit, StageParts, WhatIf, profiled
from shoal.profiling.report import html_report
from shoal.profiling.slices import merged, slices
from shoal.profiling.tables import tables
from tests.support.timelines import any_steps, step, timeline

HOSTILE = "<script src=//evil.example/x></script>\"'&"


def tracks(trace: dict[str, object]) -> dict[int, str]:
    events = trace["traceEvents"]
    assert isinstance(events, list)
    return {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}


def test_the_head_each_link_and_each_stage_have_a_track():
    trace = chrome_trace(merged([timeline(step())]))
    assert [*tracks(trace).values()] == ["head", "head → a", "a", "a → b", "b", "b → head"]
    assert json.loads(json.dumps(trace)) == trace


@given(any_steps())
def test_slices_of_a_track_never_overlap_and_none_is_lost(steps: list[StepSpan]):
    run = merged([timeline(*steps)])
    trace = chrome_trace(run)
    drawn = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert len(drawn) == sum(one.seconds > 0 for each in steps for one in slices(each))
    for tid in tracks(trace):
        own = sorted((event for event in drawn if event["tid"] == tid), key=lambda event: event["ts"])
        assert all(event["dur"] >= 0 and event["ts"] >= 0 for event in own)
        assert all(a["ts"] + a["dur"] <= b["ts"] + 1e-3 for a, b in itertools.pairwise(own))


def test_steps_that_share_a_link_get_a_second_track():
    trace = chrome_trace(merged([timeline(step(1, 100.0), step(2, 100.0002))]))
    assert "head → a (2)" in tracks(trace).values()


def everything(node: str) -> Profile:
    made = profiled(merged([timeline(step(), nodes=(node, "b"))]), node, 1)
    return msgspec.structs.replace(
        made,
        links=[LinkLoad(f"head → {node}", 0.001, 2304)],
        limits=[StageLimit(node, "decode", 1, 0.004, 0.002, 0.001, "memory", 0.5)],
        computing=[
            StageParts(node, "decode", 1, 0.004, True, {"attention": 0.003, "other": 0.001}),
            StageParts("b", "decode", 1, 0.004, False, {"experts": 0.004}),
        ],
        changes=[WhatIf(f"without {node}", 10.0, 0.1), WhatIf("no", why=node)],
        notes=[node],
    )


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_asks_nobody_and_escapes_every_name():
    page = html_report(everything(HOSTILE))
    tags = Tags()
    tags.feed(page)
    assert {tag for tag, _ in tags.found}.isdisjoint({"script", "link", "img", "iframe", "object", "a", "form"})
    assert not [name for _, attributes in tags.found for name in attributes if name in ("src", "href") or name.startswith("on")]
    assert HOSTILE not in page and tags.text.count(HOSTILE) >= 6
    assert "default-src 'none'" in page and not re.search(r"url\(|@import", page)


def test_every_table_has_rows_of_the_same_columns():
    found = tables(everything("a"))
    assert all(found.values())
    assert all(len({tuple(row) for row in rows}) == 1 for rows in found.values())


def test_computing_says_whether_it_was_measured():
    measured, estimated = tables(everything("a"))["computing"]
    assert (measured["how"], measured["attention"], measured["other"], measured["head"]) == ("measured", "75.0%", "25.0%", "-")
    assert (estimated["how"], estimated["experts"]) == ("estimated", "100.0%")


def test_a_profile_is_read_back_from_its_json():
    made = everything("a")
    assert msgspec.json.decode(msgspec.json.encode(made), type=Profile) == made
