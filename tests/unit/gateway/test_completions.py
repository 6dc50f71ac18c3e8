"""POST /v1/completions: what it has beyond chat."""

from __future__ import annotations

from typing import Any

import httpx2 as httpx
import pytest

from shoal.request import Alternative, FinishReason, Request, Score, TokenChunk
from tests.support.engine import FakeEngine, Item, Script, says, spoken
from tests.support.http import complete, events, refused


def ask(engine: FakeEngine, prompt: Any = "Say", **fields: Any) -> httpx.Response:
    return complete(engine, prompt=prompt, **fields)


def choices(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"]


def test_echo_tells_the_prompt_before_the_answer():
    (choice,) = choices(ask(FakeEngine(), echo=True))
    assert (choice["text"], choice["logprobs"]) == ("SayHello", None)


def test_echo_of_tokens_is_their_text():
    (choice,) = choices(ask(FakeEngine(), [83, 97], echo=True))
    assert choice["text"] == "SaHello"


def test_echo_with_logprobs_scores_the_prompt():
    engine = FakeEngine(says("!"))
    (choice,) = choices(ask(engine, echo=True, logprobs=1))
    assert engine.asked.prompt_logprobs == 1
    found = choice["logprobs"]
    assert found["tokens"] == ["S", "a", "y", "!"]
    assert found["token_logprobs"] == [None, -1.0, -2.0, -0.5]
    assert found["text_offset"] == [0, 1, 2, 3]
    assert found["top_logprobs"] == [None, {"x": -0.5, "a": -1.0}, {"x": -0.5, "y": -2.0}, {"!": -0.5}]


def test_offsets_count_characters_not_bytes():
    (choice,) = choices(ask(FakeEngine(says("é!")), "ü", echo=True, logprobs=0))
    assert choice["text"] == "üé!"
    assert choice["logprobs"]["text_offset"] == [0, 0, 1, 1, 2]


def test_without_echo_the_prompt_is_not_scored_and_offsets_begin_with_the_answer():
    engine = FakeEngine()
    (choice,) = choices(ask(engine, logprobs=0))
    assert engine.asked.prompt_logprobs is None
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 3, 4]


def test_max_tokens_0_with_echo_only_scores():
    engine = FakeEngine()
    answer = ask(engine, echo=True, logprobs=0, max_tokens=0)
    (choice,) = choices(answer)
    assert (choice["text"], choice["finish_reason"], engine.asked.max_tokens) == ("Say", "length", 0)
    assert choice["logprobs"]["token_logprobs"] == [None, -1.0, -2.0]
    assert answer.json()["usage"]["completion_tokens"] == 0


def test_max_tokens_0_without_echo_is_refused():
    refused(ask(FakeEngine(), max_tokens=0), 400, "max_tokens")


@pytest.mark.parametrize("logprobs", [None, 0])
def test_an_echo_that_is_streamed_comes_with_each_choices_first_event(logprobs: int | None):
    told = events(ask(FakeEngine(says("ab", "cd")), echo=True, n=2, stream=True, logprobs=logprobs))
    for index, text in enumerate(("Sayab", "Saycd")):
        mine = [e["choices"][0] for e in told if e["choices"][0]["index"] == index]
        assert "".join(c["text"] for c in mine) == text
        if logprobs is not None:
            assert [t for c in mine for t in c["logprobs"]["tokens"]] == list(text)
            assert [o for c in mine for o in c["logprobs"]["text_offset"]] == list(range(5))


def test_scores_that_come_after_tokens_are_waited_for():
    """So it is where an answer is taken up again: what was said comes first."""

    def late(request: Request) -> list[Item]:
        first, *rest = spoken(request, "ab")
        scores = TokenChunk(request.id, 0, None, scores=tuple(Score(t, -1.0) for t in request.prompt))
        return [first, scores, *rest]

    first, *_ = events(ask(FakeEngine(late), echo=True, logprobs=0, stream=True))
    assert first["choices"][0]["text"] == "Saya"
    assert first["choices"][0]["logprobs"]["tokens"] == ["S", "a", "y", "a"]


def test_many_prompts_have_their_own_echoes_and_scores():
    found = choices(ask(FakeEngine(says("!")), ["ab", "c"], echo=True, logprobs=0))
    assert [c["text"] for c in found] == ["ab!", "c!"]
    assert [c["logprobs"]["token_logprobs"] for c in found] == [[None, -1.0, -0.5], [None, -0.5]]


def ranked(*logprobs: float) -> Script:
    """Choice i says the letter i, with a log-probability."""

    def script(request: Request) -> list[Item]:
        return [TokenChunk(request.id, c, 97 + c, logprobs[c], finish=FinishReason.LENGTH) for c in range(request.n)]

    return script


def test_best_of_tells_the_likeliest_choices_of_each_prompt():
    engine = FakeEngine(ranked(-3, -1, -2))
    answer = ask(engine, ["x", "y"], best_of=3, n=2)
    found = choices(answer)
    assert [(c["index"], c["text"], c["logprobs"]) for c in found] == [(i, t, None) for i, t in enumerate("bcbc")]
    assert answer.json()["usage"]["completion_tokens"] == 6
    assert [s.request.n for s in engine.streams] == [3, 3]


def test_best_of_needs_log_probabilities_of_the_engine_even_where_the_client_does_not():
    engine = FakeEngine(ranked(-3, -1))
    ask(engine, best_of=2)
    assert engine.asked.sampling.logprobs == 0


@pytest.mark.parametrize(("fields", "param"), [({"best_of": 1, "n": 2}, "best_of"), ({"best_of": 2, "stream": True}, "best_of")])
def test_a_best_of_that_cannot_be_is_refused(fields: dict[str, Any], param: str):
    refused(ask(FakeEngine(), **fields), 400, param)


def test_suffix_is_refused():
    assert "suffix" in refused(ask(FakeEngine(), suffix="x"), 400, "suffix", "unsupported_parameter")


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"n": 0}, "n"), ({"n": 17}, "n"), ({"n": 0, "best_of": 2}, "n"), ({"best_of": 0}, "best_of"), ({"best_of": 17}, "best_of")],
)
def test_the_number_of_choices_is_bounded_by_the_field_that_says_it(fields: dict[str, Any], param: str):
    assert "must lie in [1, 16]" in refused(ask(FakeEngine(), **fields), 400, param)


def test_with_include_usage_every_chunk_has_it_and_the_last_one_is_no_choice_s():
    *told, last = events(ask(FakeEngine(), stream=True, stream_options={"include_usage": True}))
    assert {e["usage"] for e in told} == {None}
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 6)
    assert all("usage" not in e for e in events(ask(FakeEngine(), stream=True)))


@pytest.mark.parametrize(("asked", "tier"), [(None, "default"), ("auto", "default"), ("flex", "flex"), ("priority", "priority")])
def test_the_answer_says_what_it_was_served_with(asked: str | None, tier: str):
    assert ask(FakeEngine(), service_tier=asked).json()["service_tier"] == tier


# Alternatives by their texts

EMOJI = "\U0001f600"


def of_parts(request: Request) -> list[Item]:
    """The bytes of an emoji, one a token, each beside ten others that are parts of characters, too."""
    out: list[Item] = []
    for token in EMOJI.encode():
        others = tuple(Alternative(other, -1.0 - other / 1000) for other in range(0x90, 0x9A) if other != token)[:9]
        out.append(TokenChunk(request.id, 0, token, -0.5, (Alternative(token, -0.5), *others)))
    return [*out, TokenChunk(request.id, 0, None, finish=FinishReason.STOP)]


@pytest.mark.parametrize("stream", [False, True])
def test_parts_of_characters_are_told_apart(stream: bool):
    answer = ask(FakeEngine(of_parts), logprobs=10, stream=stream)
    told = events(answer) if stream else [answer.json()]
    found = [e["choices"][0]["logprobs"] for e in told]
    tokens, tops = ([each for part in found for each in part[name]] for name in ("tokens", "top_logprobs"))
    assert tokens == [r"bytes:\xf0", r"bytes:\x9f", r"bytes:\x98", r"bytes:\x80"]
    assert [len(top) for top in tops] == [10] * 4
    assert tops[0] | {} == {r"bytes:\xf0": -0.5, **{rf"bytes:\x{b:02x}": -1.0 - b / 1000 for b in range(0x90, 0x99)}}
    assert all(top[token] == -0.5 for token, top in zip(tokens, tops, strict=True))


def test_so_it_is_of_a_prompt_that_is_echoed():
    def script(request: Request) -> list[Item]:
        others = tuple(Alternative(b, -1.0) for b in range(0x90, 0x9A))
        scores = tuple(Score(t, -0.5 if i else None, others if i else ()) for i, t in enumerate(request.prompt))
        return [TokenChunk(request.id, 0, None, scores=scores), TokenChunk(request.id, 0, None, finish=FinishReason.LENGTH)]

    (choice,) = choices(ask(FakeEngine(script), EMOJI, echo=True, logprobs=10, max_tokens=0))
    assert choice["logprobs"]["tokens"] == [r"bytes:\xf0", r"bytes:\x9f", r"bytes:\x98", r"bytes:\x80"]
    assert [top and len(top) for top in choice["logprobs"]["top_logprobs"]] == [None, 11, 10, 11]


def test_tokens_of_one_text_are_told_apart_by_their_numbers(monkeypatch: pytest.MonkeyPatch):
    """SentencePiece has an A and a byte 0x41."""
    engine = FakeEngine(lambda r: [TokenChunk(r.id, 0, 65, -2.0, (Alternative(66, -0.5), Alternative(65, -2.0), Alternative(67, -3.0)))])
    monkeypatch.setattr(engine.tokenizer, "token_bytes", lambda token: b"A")
    (choice,) = choices(ask(engine, logprobs=3, max_tokens=1))
    assert choice["logprobs"]["top_logprobs"] == [{"token_id:66": -0.5, "A": -2.0, "token_id:67": -3.0}]


# Prompts, choices and tokens


def test_completion_of_text_and_of_tokens_is_the_same() -> None:
    of_text, of_tokens = (complete(FakeEngine(), prompt=p).json() for p in ("Hi", [72, 105]))
    assert of_text["object"] == "text_completion"
    assert of_text["choices"] == of_tokens["choices"]


@pytest.mark.parametrize("prompts", [["a", "bc"], [[97], [98, 99]]])
def test_several_prompts_are_answered_in_their_order(prompts: list[Any]) -> None:
    engine = FakeEngine(lambda r: spoken(r, bytes(r.prompt).decode().upper()))
    answer = complete(engine, prompt=prompts).json()
    assert [(c["index"], c["text"]) for c in answer["choices"]] == [(0, "A"), (1, "BC")]
    assert answer["usage"]["prompt_tokens"] == 3


def test_choices_of_several_prompts_are_numbered_through() -> None:
    answer = complete(FakeEngine(says("x", "y")), prompt=["a", "b"], n=2).json()
    assert [c["text"] for c in answer["choices"]] == ["x", "y", "x", "y"]


def test_completion_has_16_tokens_unless_told() -> None:
    engine = FakeEngine()
    complete(engine)
    assert engine.asked.max_tokens == 16


def test_completion_logprobs_give_offsets() -> None:
    logprobs = complete(FakeEngine(says("abc")), logprobs=1).json()["choices"][0]["logprobs"]
    assert (logprobs["tokens"], logprobs["text_offset"]) == (["a", "b", "c"], [0, 1, 2])
    assert logprobs["top_logprobs"][0] == {"a": -0.5}
