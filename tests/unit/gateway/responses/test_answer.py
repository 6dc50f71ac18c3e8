"""A response and the events that tell how it grows, with calls and with text."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response

from shoal.errors import StageLost
from tests.support.engine import says, spoken
from tests.support.responses import CALL, CALLED, MESSAGE, PATH, WEATHER, ResponsesApi, kinds, rebuilt, text

# One response


def test_a_response_is_the_object_that_the_sdk_knows(api: Callable[..., ResponsesApi]):
    made = api(says("Hello")).create(metadata={"k": "v"}, temperature=0.5, max_output_tokens=9, user="me")
    assert made["id"].startswith("resp_") and made["object"] == "response" and made["model"] == "fake"
    assert made["status"] == "completed" and made["error"] is None and made["incomplete_details"] is None
    assert (made["metadata"], made["temperature"], made["top_p"]) == ({"k": "v"}, 0.5, 1.0)
    assert (made["max_output_tokens"], made["store"], made["user"]) == (9, True, "me")
    (item,) = made["output"]
    assert item == {
        "id": item["id"],
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}],
    }
    assert made["usage"]["input_tokens"] == len("user: Hi\n") and made["usage"]["output_tokens"] == 6
    assert Response.model_validate(made).output_text == "Hello"


def test_an_answer_cut_by_max_output_tokens_is_incomplete(api: Callable[..., ResponsesApi]):
    made = api(says("Hello there")).create(max_output_tokens=5)
    assert (made["status"], made["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert made["output"][0]["status"] == "incomplete" and text(made) == "Hello"


def test_instructions_come_first_as_system(api: Callable[..., ResponsesApi]):
    one = api()
    one.create([{"role": "user", "content": "Hi"}], instructions="Be brief")
    assert one.prompt() == "system: Be brief\nuser: Hi\n"


@pytest.mark.parametrize(
    ("item", "line"),
    [
        ({"role": "user", "content": "A"}, "user: A\n"),
        ({"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "A"}]}, "system: A\n"),
        ({"role": "user", "content": [{"type": "input_text", "text": "A"}, {"type": "input_text", "text": "B"}]}, "user: AB\n"),
        (
            {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "phase": "final_answer"}
            | {"content": [{"type": "output_text", "text": "A", "annotations": [], "logprobs": []}]},
            "assistant: A\n",
        ),
    ],
)
def test_messages_are_understood_in_all_their_forms(api: Callable[..., ResponsesApi], item: dict[str, Any], line: str):
    one = api()
    one.create([item, {"role": "user", "content": "Hi"}])
    assert one.prompt() == line + "user: Hi\n"


def test_logprobs_come_where_they_are_included(api: Callable[..., ResponsesApi]):
    one, asked = api(says("Hi")), {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    scored = one.create(**asked)["output"][0]["content"][0]["logprobs"]
    assert [(entry["token"], entry["bytes"], len(entry["top_logprobs"])) for entry in scored] == [("H", [72], 2), ("i", [105], 2)]
    events = one.stream(**asked)
    told = [entry["token"] for event in events if event["type"] == "response.output_text.delta" for entry in event["logprobs"]]
    assert told == ["H", "i"]


# Events


def test_a_stream_tells_how_the_response_grows(api: Callable[..., ResponsesApi]):
    events = api(says("Hello")).stream()
    assert kinds(events) == ["created", "in_progress", *MESSAGE, "completed"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    created, last = events[0]["response"], events[-1]["response"]
    assert (created["status"], created["output"], created["completed_at"]) == ("in_progress", [], None)
    assert (created["usage"]["input_tokens"], created["usage"]["output_tokens"]) == (9, 0)
    assert last["status"] == "completed" and rebuilt(events) == last["output"] and text(last) == "Hello"


def test_a_stream_that_is_cut_ends_with_incomplete(api: Callable[..., ResponsesApi]):
    events = api(says("Hello there")).stream(max_output_tokens=5)
    assert kinds(events)[-1] == "incomplete"
    assert events[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert events[-2]["item"]["status"] == "incomplete"


def test_an_answer_of_nothing_is_an_empty_message(api: Callable[..., ResponsesApi]):
    events = api(says("")).stream()
    assert kinds(events) == ["created", "in_progress", *(kind for kind in MESSAGE if not kind.endswith("delta")), "completed"]
    assert text(events[-1]["response"]) == ""


def test_a_stream_that_breaks_off_says_so_and_ends_with_failed(api: Callable[..., ResponsesApi]):
    one = api(lambda request: [*spoken(request, "Hel")[:3], StageLost("stage 1: gone")])
    events = one.stream()
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert (events[-2]["message"], events[-2]["code"]) == ("stage 1: gone", "unavailable")
    failed = events[-1]["response"]
    assert (failed["status"], failed["error"]) == ("failed", {"code": "server_error", "message": "stage 1: gone"})
    kept = one.fetch("GET", f"{PATH}/{failed['id']}").json()
    assert (kept["status"], kept["error"], kept["output"]) == ("failed", failed["error"], [])


def test_a_whole_response_that_fails_is_an_error_and_not_gone_on_from(api: Callable[..., ResponsesApi]):
    one = api(lambda request: [StageLost("stage 1: gone")])
    answer = one.fetch("POST", PATH, json={"input": "Hi"}, headers={"X-Request-Id": "mine"})
    assert answer.status_code == 503
    assert one.status("mine") == "failed"
    error = one.refused(400, json={"input": "Hi", "previous_response_id": "mine"})
    assert error["param"] == "previous_response_id" and "is failed" in error["message"]


def test_the_events_of_any_answer_build_the_response(api: Callable[..., ResponsesApi]):
    words = ""
    one = api(lambda request: spoken(request, words), tools=True)

    def nameless(response: dict[str, Any]) -> list[dict[str, Any]]:
        return [{key: value for key, value in item.items() if key not in ("id", "call_id")} for item in response["output"]]

    @given(
        text=st.text(st.characters(codec="utf-8"), max_size=12),
        calls=st.sampled_from(["", CALL, f"{CALL}\n{CALL}", CALL[:-9]]),
        tokens=st.integers(1, 120),
    )
    def builds(text: str, calls: str, tokens: int) -> None:
        nonlocal words
        words = text + calls
        fields = {"tools": [WEATHER], "store": False, "max_output_tokens": tokens}
        events = one.stream(**fields)
        whole = one.create(**fields)
        last = events[-1]["response"]
        assert rebuilt(events) == last["output"] and last["output"]
        assert (nameless(whole), whole["status"], whole["usage"]) == (nameless(last), last["status"], last["usage"])

    builds()


# Tools and structured output


def test_a_call_is_an_item_whose_arguments_are_streamed(api: Callable[..., ResponsesApi]):
    events = api(says("Let me see. " + CALL), tools=True).stream("Weather?", tools=[WEATHER])
    assert kinds(events) == ["created", "in_progress", *MESSAGE, *CALLED, "completed"]
    message, call = events[-1]["response"]["output"]
    assert message["content"][0]["text"] == "Let me see."
    assert (call["type"], call["name"], json.loads(call["arguments"])) == ("function_call", "weather", {"city": "Paris"})
    assert rebuilt(events) == [message, call]
    done = next(event for event in events if event["type"] == "response.function_call_arguments.done")
    assert (done["name"], done["arguments"], done["item_id"]) == ("weather", call["arguments"], call["id"])


def test_several_calls_have_ids_of_their_own(api: Callable[..., ResponsesApi]):
    made = api(says(f"{CALL}\n{CALL}"), tools=True).create("Weather?", tools=[WEATHER])
    first, second = made["output"]
    assert first["call_id"] != second["call_id"] and first["id"] != second["id"]


def test_a_result_of_a_call_goes_on_from_it(api: Callable[..., ResponsesApi]):
    one = api(says(CALL), tools=True)
    made = one.create("Weather?", tools=[WEATHER])
    result = {"type": "function_call_output", "call_id": made["output"][0]["call_id"], "output": "sunny"}
    one.create([result], tools=[WEATHER], previous_response_id=made["id"])
    stored = one.prompt()
    one.create([{"role": "user", "content": "Weather?"}, *made["output"], result], tools=[WEATHER], store=False)
    assert one.prompt() == stored
    assert '"city": "Paris"' in stored and "tool: sunny (weather, " in stored


def test_what_is_asked_of_the_answer_becomes_its_grammar(api: Callable[..., ResponsesApi]):
    one = api(says("{}"), tools=True)
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
    asked = {"type": "json_schema", "name": "n", "schema": schema, "strict": True}
    made = one.create(text={"format": asked})
    assert '"integer"' in one.engine.streams[-1].request.sampling.grammar.replace("\\", "")
    assert made["text"]["format"] == asked
    one.create(text={"format": {"type": "json_object"}})
    assert one.engine.streams[-1].request.sampling.grammar
    one.create(text={"format": {"type": "text"}})
    assert not one.engine.streams[-1].request.sampling.grammar


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "weather"}])
def test_tool_choice_makes_a_call_certain(api: Callable[..., ResponsesApi], choice: Any):
    one = api(says(CALL), tools=True)
    made = one.create("Weather?", tools=[WEATHER], tool_choice=choice)
    assert made["tool_choice"] == choice and made["tools"][0]["name"] == "weather"
    assert "TEXT" not in one.engine.streams[-1].request.sampling.grammar


def test_no_tool_is_called_where_none_may_be(api: Callable[..., ResponsesApi]):
    one = api(says(CALL), tools=True)
    made = one.create("Weather?", tools=[WEATHER], tool_choice="none")
    assert text(made) == CALL and "weather" not in one.prompt()
