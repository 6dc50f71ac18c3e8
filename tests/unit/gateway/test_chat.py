"""Chat over an engine without a model, whole and streamed."""

from __future__ import annotations

import pytest

from shoal.request import Request, Score, TokenChunk
from tests.support.engine import FakeEngine, Item, says, spoken
from tests.support.http import ask, choice_text, events

# Chat


def test_chat_answers_the_whole_text() -> None:
    answer = ask(FakeEngine()).json()
    choice = answer["choices"][0]
    assert (answer["object"], answer["model"], len(answer["choices"])) == ("chat.completion", "fake", 1)
    assert choice["message"] == {"role": "assistant", "content": "Hello", "refusal": None}
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "stop", None)


def test_chat_counts_tokens() -> None:
    usage = ask(FakeEngine(), max_tokens=3).json()["usage"]
    prompt = len("user: Hi\n")
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (prompt, 3, prompt + 3)


def test_chat_cut_at_max_tokens_says_length() -> None:
    choice = ask(FakeEngine(), max_completion_tokens=2).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("He", "length")


def test_stream_opens_with_the_role_and_ends_with_the_reason() -> None:
    stream = events(ask(FakeEngine(), stream=True))
    assert stream[0]["choices"][0]["delta"]["role"] == "assistant"
    assert choice_text(stream) == "Hello"
    assert [e["choices"][0]["finish_reason"] for e in stream] == [None] * (len(stream) - 1) + ["stop"]
    assert {e["object"] for e in stream} == {"chat.completion.chunk"}
    assert len({e["id"] for e in stream}) == 1


def test_what_is_said_of_a_prompt_is_no_token_of_the_answer() -> None:
    def script(request: Request) -> list[Item]:
        return [TokenChunk(request.id, 0, None, scores=(Score(1, None),)), *spoken(request, "Hello")]

    answer = ask(FakeEngine(script)).json()
    assert answer["choices"][0]["message"]["content"] == "Hello"
    assert answer["usage"] == ask(FakeEngine(says("Hello"))).json()["usage"]


def test_stream_reports_usage_only_when_asked() -> None:
    plain = events(ask(FakeEngine(), stream=True))
    asked = events(ask(FakeEngine(), stream=True, stream_options={"include_usage": True}))
    assert not any("usage" in event for event in plain)
    assert (asked[-1]["choices"], asked[-1]["usage"]["completion_tokens"]) == ([], 6)
    assert all(event["usage"] is None for event in asked[:-1])


def test_every_choice_has_its_own_text() -> None:
    answer = ask(FakeEngine(says("one", "two", "drei")), n=3).json()
    assert [(c["index"], c["message"]["content"]) for c in answer["choices"]] == [(0, "one"), (1, "two"), (2, "drei")]


def test_choices_of_a_stream_are_told_apart() -> None:
    stream = events(ask(FakeEngine(says("one", "two")), n=2, stream=True))
    assert [choice_text(stream, i) for i in (0, 1)] == ["one", "two"]


def test_half_a_character_is_never_streamed() -> None:
    stream = events(ask(FakeEngine(says("a😀é")), stream=True))
    assert [e["choices"][0]["delta"].get("content") for e in stream[1:-1]] == ["a", "😀", "é"]


@pytest.mark.parametrize("stream", [False, True])
def test_stop_string_over_tokens_is_not_leaked(stream: bool) -> None:
    engine = FakeEngine(says("before END after"), hang=True)
    answer = ask(engine, stop=["never", "END"], stream=stream)
    text = choice_text(events(answer)) if stream else answer.json()["choices"][0]["message"]["content"]
    assert text == "before "
    assert engine.streams[0].ended == {0}


def test_stop_string_ends_one_choice_and_not_the_other() -> None:
    answer = ask(FakeEngine(says("ab.cd", "abcdef")), n=2, stop=".").json()
    assert [c["message"]["content"] for c in answer["choices"]] == ["ab", "abcdef"]
    assert [c["finish_reason"] for c in answer["choices"]] == ["stop", "stop"]


def test_what_only_began_like_a_stop_string_is_text() -> None:
    assert ask(FakeEngine(says("so EN")), stop="END").json()["choices"][0]["message"]["content"] == "so EN"


def test_chat_logprobs_name_every_token() -> None:
    content = ask(FakeEngine(says("ab")), logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]["content"]
    assert [(t["token"], t["bytes"], t["logprob"]) for t in content] == [("a", [97], -0.5), ("b", [98], -0.5)]
    assert [t["token"] for t in content[0]["top_logprobs"]] == ["a", "b"]


def test_streamed_logprobs_are_those_of_the_whole() -> None:
    whole = ask(FakeEngine(says("é!")), logprobs=True).json()["choices"][0]["logprobs"]["content"]
    stream = events(ask(FakeEngine(says("é!")), logprobs=True, stream=True))
    streamed = [t for e in stream if (lp := e["choices"][0]["logprobs"]) for t in lp["content"]]
    assert streamed == whole


def test_text_parts_are_joined() -> None:
    engine = FakeEngine()
    ask(engine, messages=[{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}])
    assert bytes(engine.asked.prompt) == b"user: ab\n"


def test_the_tier_that_a_request_is_served_with_is_told() -> None:
    assert [ask(FakeEngine(), service_tier=tier).json()["service_tier"] for tier in ("auto", "default", "flex", "priority", None)] == [
        *("default", "default", "flex", "priority", "default")
    ]
    assert {event["service_tier"] for event in events(ask(FakeEngine(), service_tier="flex", stream=True))} == {"flex"}


def test_usage_has_its_details() -> None:
    usage = ask(FakeEngine()).json()["usage"]
    assert (usage["completion_tokens_details"]["reasoning_tokens"], usage["prompt_tokens_details"]["cached_tokens"]) == (0, 0)


def test_developer_is_the_system() -> None:
    engine = FakeEngine()
    ask(engine, messages=[{"role": "developer", "content": "x"}])
    assert bytes(engine.asked.prompt) == b"system: x\n"


# Clients that leave


def test_text_is_sent_as_it_is_and_not_escaped() -> None:
    answer = ask(FakeEngine(says("日本語")), stream=True)
    assert "日" in answer.text
    assert choice_text(events(answer)) == "日本語"
