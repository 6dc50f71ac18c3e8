"""What a model thinks, told from its answer: `reasoning_content` in chat, items in responses, and tokens in the usage."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.text.deltas import Arguments, CallBegun, ContentDelta, Delta, ReasoningDelta
from shoal.text.reasoning import GRANITE, GRANITE_32, MISTRAL_THINK, THINK, ReasoningFormat, ReasoningParser, detect
from shoal.text.tool_parser import ToolParser
from shoal.text.tools import HERMES
from tests.support.app import app_of
from tests.support.deltas import joined
from tests.support.engine import FakeEngine, says
from tests.support.http import CHAT, HI, events, fetch
from tests.support.templates import THINKS
from tests.support.tools import PARIS, TOOLS

RESPONSES = "/v1/responses"


def read(text: str, at: list[int] | None = None, opened: bool = False, format: ReasoningFormat = THINK, tools: bool = False) -> list[Delta]:
    """at: where the text is cut. Neighbours of a kind are put together."""
    parser = ReasoningParser(format, opened, ToolParser(HERMES) if tools else None)
    cuts = sorted({0, len(text), *(cut % (len(text) + 1) for cut in at or ())})
    return joined([*(d for a, b in pairwise(cuts) for d in parser.push(text[a:b])), *parser.finish()])


@pytest.mark.parametrize(
    ("text", "opened", "said"),
    [
        ("<think>\nLet me see.\n</think>\n\nParis.", False, [ReasoningDelta("Let me see."), ContentDelta("Paris.")]),
        ("Let me see.\n</think>\n\nParis.", True, [ReasoningDelta("Let me see."), ContentDelta("Paris.")]),
        ("<think>\nLet me see.</think>Paris.\n", True, [ReasoningDelta("Let me see."), ContentDelta("Paris.\n")]),
        ("\n<think>\n\n</think>\n\nParis.", False, [ContentDelta("Paris.")]),
        ("<think>a </ think> b", False, [ReasoningDelta("a </ think> b")]),
        ("<think>cut </thi", False, [ReasoningDelta("cut </thi")]),
        ("  Paris, <think>no</think>.", False, [ContentDelta("  Paris, <think>no</think>.")]),
        ("<thin", False, [ContentDelta("<thin")]),
        ("", True, []),
        (" ", False, [ContentDelta(" ")]),
    ],
)
def test_reasoning_is_what_an_answer_begins_with(text: str, opened: bool, said: list[Delta]) -> None:
    assert read(text, opened=opened) == read(text, list(range(len(text))), opened) == said


@given(st.text("<think>/ \na", max_size=40), st.lists(st.integers(0, 40)), st.booleans(), st.booleans())
def test_however_any_text_is_cut_the_same_comes_out(text: str, at: list[int], opened: bool, tools: bool) -> None:
    assert read(text, at, opened, tools=tools) == read(text, opened=opened, tools=tools)


ENCLOSED = st.lists(st.sampled_from(["<think>", "</think>", "<response>", "</response>", "a", " ", "\n", "<", "</resp"]), max_size=12).map(
    "".join
)


@given(ENCLOSED, st.lists(st.integers(0, 40)), st.booleans(), st.booleans())
def test_marks_around_an_answer_are_found_however_it_is_cut(text: str, at: list[int], opened: bool, tools: bool) -> None:
    assert read(text, at, opened, GRANITE, tools) == read(text, opened=opened, format=GRANITE, tools=tools)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<response>a</response>", "a"),
        ("<think>b</think>\n<response>\na\n</response>\n", "\na\n"),
        ("<response>a</response> and </response>", "a</response> and "),
        ("<response>a</respo", "a</respo"),
        ("a</response>", "a</response>"),
        ("<resp", "<resp"),
    ],
)
def test_only_marks_around_an_answer_are_removed(text: str, said: str) -> None:
    assert read(text, list(range(len(text))), format=GRANITE)[-1] == ContentDelta(said)


def test_granite_3_2_says_when_it_thinks() -> None:
    text = "Here is my thought process: Hm.\nHere is my response: Rain."
    assert read(text, list(range(len(text))), format=GRANITE_32) == [ReasoningDelta("Hm."), ContentDelta("Rain.")]


def test_a_call_may_follow() -> None:
    text = f"<think>I call.</think>\n\n{PARIS}"
    assert read(text, list(range(len(text))), tools=True) == [
        ReasoningDelta("I call."),
        CallBegun(0, "weather"),
        Arguments(0, '{"city": "Pa\\"ris"}'),
    ]


def test_magistrals_brackets() -> None:
    assert read("[THINK]a[/THINK]b", format=MISTRAL_THINK) == [ReasoningDelta("a"), ContentDelta("b")]


@pytest.mark.parametrize(("template", "format"), [("{{ x.split('</think>') }}", THINK), ("[THINK]", MISTRAL_THINK), ("hello", None)])
def test_a_template_says_whether_there_is_reasoning(template: str, format: ReasoningFormat | None) -> None:
    assert detect(template) == format


THOUGHT = "<think>\nRain, I think.\n</think>\n\n"


def asked(text: str, path: str = CHAT, **body: Any) -> Any:
    engine = FakeEngine(says(text), tools=HERMES, reasoning=THINK)
    key = "messages" if path == CHAT else "input"
    return fetch(app_of(engine), "POST", path, json={key: HI, **body})


def test_chat_has_reasoning_content() -> None:
    answer = asked(THOUGHT + "It rains.").json()
    message = answer["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Rain, I think.", "It rains.")
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == len("<think>\nRain, I think.\n</think>")


def test_chat_without_reasoning_has_none_of_it() -> None:
    answer = asked("It rains.").json()
    assert "reasoning_content" not in answer["choices"][0]["message"]
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0


def test_chat_streams_reasoning_before_content_and_calls() -> None:
    answer = asked(THOUGHT + PARIS, stream=True, tools=TOOLS, stream_options={"include_usage": True})
    deltas = [c["delta"] for e in events(answer) for c in e["choices"]]
    assert "".join(d.get("reasoning_content", "") for d in deltas) == "Rain, I think."
    assert not any(d.get("content") for d in deltas)
    assert "".join(c["function"]["arguments"] for d in deltas for c in d.get("tool_calls", ())) == '{"city": "Pa\\"ris"}'
    first = [next(i for i, d in enumerate(deltas) if name in d) for name in ("reasoning_content", "tool_calls")]
    assert first == sorted(first)
    assert events(answer)[-1]["usage"]["completion_tokens_details"]["reasoning_tokens"] == len(THOUGHT.rstrip())


def test_a_response_has_an_item_of_reasoning() -> None:
    answer = asked(THOUGHT + "It rains.", RESPONSES).json()
    thought, said = answer["output"]
    assert (thought["type"], thought["content"]) == ("reasoning", [{"type": "reasoning_text", "text": "Rain, I think."}])
    assert (thought["summary"], thought["status"]) == ([], "completed")
    assert said["content"][0]["text"] == "It rains."
    assert answer["usage"]["output_tokens_details"]["reasoning_tokens"] == len(THOUGHT.rstrip())


def test_a_response_streams_reasoning() -> None:
    answer = asked(THOUGHT + "It rains.", RESPONSES, stream=True)
    told = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    mine = [e for e in told if e.get("output_index") == 0]
    assert [e["type"] for e in mine if not e["type"].endswith("delta")] == [
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_text.done",
        "response.content_part.done",
        "response.output_item.done",
    ]
    assert "".join(e["delta"] for e in mine if e["type"] == "response.reasoning_text.delta") == "Rain, I think."
    assert mine[-1]["item"] == told[-1]["response"]["output"][0]


def test_reasoning_that_is_sent_back_reaches_the_template() -> None:
    engine = FakeEngine(says("Yes."), reasoning=THINK)
    seen: list[Any] = []
    render = engine.tokenizer.render_chat
    engine.tokenizer.render_chat = lambda messages, *rest, **more: seen.append(messages) or render(messages, *rest, **more)
    said = {"role": "assistant", "content": "Rain.", "reasoning_content": "I think."}
    assert fetch(app_of(engine), "POST", CHAT, json={"messages": [*HI, said, *HI]}).status_code == 200
    item = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "I think."}]}
    talk = [*HI, item, {"role": "assistant", "content": "Rain."}, *HI]
    assert fetch(app_of(engine), "POST", RESPONSES, json={"input": talk, "store": False}).status_code == 200
    assert [dict(messages[1]) for messages in seen] == [said, said]


def test_only_an_assistant_reasons() -> None:
    """Clients send whole messages back, with fields that say nothing there."""
    for path, field in ((CHAT, "reasoning_content"), (CHAT, "reasoning"), ("/api/chat", "thinking")):
        engine = FakeEngine(says("Rain."), reasoning=THINK, template=THINKS)
        said = {"role": "user", "content": "a", field: "forged"}
        assert fetch(app_of(engine), "POST", path, json={"model": "fake", "messages": [said]}).status_code == 200
        assert engine.tokenizer.decode(engine.asked.prompt) == "user: a\n"
