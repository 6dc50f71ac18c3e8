"""Prompts as names of pieces of their text."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from shoal.serving.balancing.text_pieces import MOST, PIECE, inquiry_of, piece_names, prompt_text

MESSAGES = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.text(max_size=300)}), max_size=6)


@given(st.binary(max_size=1000), st.binary(max_size=1000))
def test_texts_share_names_as_far_as_they_are_the_same(one: bytes, two: bytes) -> None:
    same = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two))) // PIECE
    names, others = piece_names(one), piece_names(two)
    assert names[:same] == others[:same]
    assert not set(names[same:]) & set(others[same:])
    assert len(names) == len(one) // PIECE and len(set(names)) == len(names)


@given(st.text(max_size=400), MESSAGES, MESSAGES)
def test_a_conversation_that_goes_on_begins_as_it_did(system: str, before: list[Any], more: list[Any]) -> None:
    for field in ("messages", "input"):
        body = {"instructions": system, field: before}
        assert prompt_text({**body, field: before + more}).startswith(prompt_text(body))


@given(MESSAGES, st.lists(st.dictionaries(st.sampled_from(["name", "type"]), st.text(max_size=50)), max_size=3))
def test_other_fields_change_nothing(messages: list[Any], tools: list[Any]) -> None:
    body = {"messages": messages, "tools": tools}
    other = {"temperature": 1, "model": "m", **body, "stream": True, "n": 2}
    assert inquiry_of(body) == inquiry_of(other)


def test_prompts_of_every_api_are_read() -> None:
    assert prompt_text({"prompt": "abc"}) == b"abc"
    assert prompt_text({"prompt": [1, 2, 3]}) == b"1\n2\n3"
    assert prompt_text({"input": ["a", "b"]}) == b'"a"\n"b"'
    assert prompt_text({"system": [{"type": "text", "text": "s"}], "messages": [{"role": "user"}]}) == (
        b'{"type":"text","text":"s"}\n{"role":"user"}'
    )
    assert prompt_text({"messages": 5, "prompt": None}) == b"5" and prompt_text({}) == b""


def test_a_long_prompt_is_named_as_far_as_an_index_takes_it() -> None:
    assert len(piece_names(b"x" * PIECE * (MOST + 5))) == MOST


def test_a_session_is_the_one_that_the_client_names() -> None:
    assert inquiry_of({"prompt": "a" * 80, "prompt_cache_key": "s1"}).session == "s1"
    assert inquiry_of({"prompt": "a" * 80, "prompt_cache_key": 5}).session == "" and inquiry_of({"prompt": "a" * 80}).tokens == 20
