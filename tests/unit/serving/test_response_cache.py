"""Which questions have the same answer, which answers are kept, and which have to go."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.request import Alternative, FinishReason, Priority, Request, RequestId, SamplingParams, Score, TokenChunk
from shoal.serving.response_cache import EVERYBODY, Question, Recording, packed, surplus, unpacked
from shoal.trace_context import begun

COLD = SamplingParams(temperature=0)


def request(sampling: SamplingParams = COLD, **fields: Any) -> Request:
    return Request(**{"id": RequestId("a-0"), "prompt": [1, 2, 3], "max_tokens": 4, "sampling": sampling, **fields})


def question(sampling: SamplingParams = COLD, **fields: Any) -> Question:
    return Question((request(sampling, **fields),))


def key(asked: Question) -> bytes:
    return asked.key("engine", "")


# Which may be answered again


@pytest.mark.parametrize(
    ("asked", "repeatable"),
    [
        (question(), True),
        (question(SamplingParams(temperature=0.5, seed=3)), False),
        (Question((request(SamplingParams(temperature=0.5, seed=3)),), seeded=True), True),
        (Question((request(), request(SamplingParams(seed=1)))), False),
        (question(embed=True), False),
        (Question((request(embed=True),), seeded=True), False),
    ],
)
def test_answers_without_chance_are_given_again(asked: Question, repeatable: bool) -> None:
    assert asked.repeatable is repeatable


# What makes two questions the same

SAMPLINGS: list[dict[str, Any]] = [
    {"temperature": 0.5},
    {"top_k": 3},
    {"top_p": 0.5},
    {"min_p": 0.1},
    {"repetition_penalty": 1.1},
    {"presence_penalty": 0.5},
    {"frequency_penalty": 0.5},
    {"logit_bias": {7: 1.0}},
    {"logit_bias": {7: 2.0}},
    {"logprobs": 0},
    {"logprobs": 2},
    {"grammar": "{}"},
]
REQUESTS: list[dict[str, Any]] = [
    {"prompt": [1, 2, 4]},
    {"prompt": [1, 2]},
    {"max_tokens": 5},
    {"n": 2},
    {"stop_tokens": frozenset({9})},
    {"prompt_logprobs": 0},
    {"prompt_logprobs": 1},
    {"embed": True},
]


def test_whatever_changes_the_answer_is_another_question() -> None:
    others = [
        question(),
        *(question(SamplingParams(**{"temperature": 0, **fields})) for fields in SAMPLINGS),
        *(question(**fields) for fields in REQUESTS),
        Question((request(),), stops=("x",)),
        Question((request(),), stops=("x", "y")),
        Question((request(),), stops=("xy",)),
        Question((request(),), markers=(5,)),
        Question((request(), request())),
    ]
    keys = [key(other) for other in others] + [
        question().key("other engine", ""),
        question().key("engine", "key-1"),
        question().key("", "engine"),
    ]
    assert len(set(keys)) == len(keys)


def test_every_field_of_a_request_is_in_the_list_above() -> None:
    """A new one must be in it, or be one of those that change no token."""
    assert {name for fields in SAMPLINGS for name in fields} | {"seed"} == set(SamplingParams.__struct_fields__)
    nothing = {"id", "priority", "owner", "trace"}
    assert {name for fields in REQUESTS for name in fields} | nothing | {"sampling"} == set(Request.__struct_fields__)


@pytest.mark.parametrize(
    "fields", [{"id": RequestId("b-0")}, {"priority": Priority.BATCH}, {"owner": "key-1"}, {"trace": begun(None, 1.0)}]
)
def test_who_asks_and_when_changes_nothing(fields: dict[str, Any]) -> None:
    assert key(question(**fields)) == key(question())


def test_a_seed_counts_where_there_is_chance() -> None:
    assert key(question(SamplingParams(temperature=0, seed=1))) == key(question(SamplingParams(temperature=0, seed=2)))
    assert key(question(SamplingParams(seed=1))) != key(question(SamplingParams(seed=2)))


def test_nothing_depends_on_the_order_of_a_set() -> None:
    bias = [(token, float(token)) for token in (3, 1000, 256, 9, 99_999)]
    ends = [3, 1000, 256, 9, 99_999]
    one = question(SamplingParams(temperature=0, logit_bias=dict(bias)), stop_tokens=frozenset(ends))
    other = question(SamplingParams(temperature=0, logit_bias=dict(bias[::-1])), stop_tokens=frozenset(ends[::-1]))
    assert key(one) == key(other)


@given(st.lists(st.tuples(st.text(max_size=12), st.text(max_size=12)), min_size=2, max_size=4, unique=True))
def test_no_two_scopes_share_a_key(places: list[tuple[str, str]]) -> None:
    assert len({question().key(engine, scope) for engine, scope in places}) == len(places)


@given(st.text("0123456789abcdef", max_size=12))
def test_no_key_is_everybody(owner: str) -> None:
    assert question().key("engine", owner) != question().key("engine", EVERYBODY)


# Which answers are kept


def chunk(token: int | None = 5, choice: int = 0, finish: FinishReason | None = None, **more: Any) -> TokenChunk:
    return TokenChunk(RequestId("a-0"), choice, token, finish=finish, **more)


def recorded(*chunks: TokenChunk, ended: tuple[int, ...] = (), **fields: Any) -> Recording:
    recording = Recording(request(**fields))
    for each in chunks:
        recording.came(each)
    for choice in ended:
        recording.ended(choice)
    return recording


STOP, LENGTH, CANCELLED = FinishReason.STOP, FinishReason.LENGTH, FinishReason.CANCELLED


@pytest.mark.parametrize(
    ("recording", "whole"),
    [
        (recorded(), False),
        (recorded(chunk()), False),
        (recorded(chunk(), chunk(None, finish=STOP)), True),
        (recorded(chunk(None, finish=STOP)), True),
        (recorded(chunk(), ended=(0,)), True),
        (recorded(chunk(), chunk(finish=LENGTH), max_tokens=2), True),
        (recorded(chunk(), chunk(finish=LENGTH), max_tokens=3), False),
        (recorded(chunk(None, finish=LENGTH), max_tokens=0), True),
        (recorded(chunk(), chunk(None, finish=CANCELLED)), False),
        (recorded(chunk(), chunk(None, choice=1, finish=STOP), n=2), False),
        (recorded(chunk(None, finish=STOP), chunk(None, choice=1, finish=STOP), n=2), True),
        (recorded(chunk(None, finish=STOP), ended=(1,), n=2), True),
        (recorded(chunk(None, finish=STOP), chunk(None, choice=1, finish=CANCELLED), n=2), False),
        (recorded(chunk(degraded=1), chunk(None, finish=STOP, degraded=1)), False),
    ],
)
def test_only_answers_that_end_by_themselves_are_kept(recording: Recording, whole: bool) -> None:
    assert recording.whole is whole


def test_chunks_come_back_as_they_were_under_the_new_request() -> None:
    one = recorded(
        TokenChunk(RequestId("a-0"), 0, None, scores=(Score(1, None), Score(2, -0.5, (Alternative(3, -1.0),)))),
        chunk(5, logprob=-0.25, alternatives=(Alternative(6, -1.5),), cached=32),
        chunk(None, finish=STOP),
    )
    two = recorded(chunk(7, finish=LENGTH), max_tokens=1)
    again = [request(id=RequestId("b-0")), request(id=RequestId("b-1"))]
    found = unpacked(packed([one, two]), again)
    assert found == [[msgspec.structs.replace(c, request=r.id) for c in was.chunks] for was, r in zip((one, two), again, strict=True)]


@pytest.mark.parametrize("damaged", [b"", b"\xc1", packed([]), packed([recorded(), recorded()]), b"\x91\x91\x05"])
def test_what_is_no_answer_is_not_read_as_one(damaged: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        unpacked(damaged, [request()])


# Which have to go


@given(st.lists(st.integers(1, 50), max_size=20), st.integers(0, 400))
def test_the_oldest_go_and_no_more_than_have_to(sizes: list[int], bound: int) -> None:
    gone = surplus(sum(sizes), bound, enumerate(sizes))
    assert gone == [*range(len(gone))]
    assert sum(sizes[len(gone) :]) <= bound
    if gone:
        assert sum(sizes[len(gone) - 1 :]) > bound
