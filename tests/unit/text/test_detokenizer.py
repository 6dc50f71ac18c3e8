"""Streaming gives exactly the text that decoding everything gives, never half a character, never part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.text.detokenizer import Detokenizer, StopStrings, TextStream
from shoal.text.tokenizer import Tokenizer
from tests.support.vocabularies import byte_level, sentencepiece

BYTES = Tokenizer.open(Path("bytes"), byte_level())
PIECES = Tokenizer.open(Path("pieces"), sentencepiece())
TOKENIZERS = st.sampled_from([BYTES, PIECES])
TEXT = st.one_of(st.text(max_size=40), st.text("hello w日本é🦙👍 \n", max_size=40))


def streamed(tokenizer: Tokenizer, tokens: Sequence[int], prompt: Sequence[int] = ()) -> list[str]:
    stream = Detokenizer(tokenizer, prompt)
    return [*(stream.push(token) for token in tokens), stream.finish()]


@given(TOKENIZERS, TEXT)
def test_a_stream_is_the_text(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text, bos=False)
    assert "".join(streamed(tokenizer, tokens)) == tokenizer.decode(tokens)


@given(TOKENIZERS, TEXT, TEXT)
def test_a_stream_goes_on_where_the_prompt_ended(tokenizer: Tokenizer, prompt: str, text: str) -> None:
    before, after = tokenizer.encode(prompt + "x", bos=False), tokenizer.encode("x" + text, bos=False)[1:]
    whole = tokenizer.decode([*before, *after])
    assert whole == tokenizer.decode(before) + "".join(streamed(tokenizer, after, before))


@given(TEXT)
def test_no_piece_has_half_a_character(text: str) -> None:
    text = text.replace("\ufffd", "")
    assert not any("\ufffd" in piece for piece in streamed(BYTES, BYTES.encode(text, bos=False)))


@pytest.mark.parametrize("text", ["🦙" * 12, "a🦙🦙🦙b", "日本語🦙日本語🦙", "👨‍👩‍👧‍👦👨‍👩‍👧‍👦"])
@pytest.mark.parametrize("tokenizer", [BYTES, PIECES], ids=["bytes", "pieces"])
def test_runs_of_characters_of_several_tokens(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text, bos=False)
    assert "".join(streamed(tokenizer, tokens)) == tokenizer.decode(tokens)


@given(st.lists(st.integers(0, BYTES.size - 1), max_size=60))
@settings(max_examples=300)
def test_any_tokens_at_all(tokens: list[int]) -> None:
    assert "".join(streamed(BYTES, tokens)) == BYTES.decode(tokens)


@given(st.binary(max_size=16), st.text("hello w", min_size=1, max_size=30))
def test_text_after_broken_bytes_is_not_lost(broken: bytes, text: str) -> None:
    tokens = [BYTES.encode("x", bos=False)[0], *(_byte(b) for b in broken), *BYTES.encode("x" + text, bos=False)]
    assert "".join(streamed(BYTES, tokens)) == BYTES.decode(tokens)


def _byte(value: int) -> int:
    return next(i for i in range(256) if BYTES.token_bytes(i) == bytes([value]))


def test_a_marker_is_text_and_other_special_tokens_are_none() -> None:
    start, end = (BYTES.special[name] for name in ("<|im_start|>", "<|im_end|>"))
    stream = TextStream(BYTES, [start], [], markers=[start])
    assert "".join(map(stream.push, [start, *BYTES.encode("hello", bos=False), end])) + stream.finish() == "<|im_start|>hello"


def test_text_is_out_as_soon_as_it_is_certain() -> None:
    tokens = BYTES.encode("hello hello", bos=False)
    assert streamed(BYTES, tokens) == ["hello", " hello", ""]


def test_an_unfinished_character_ends_as_a_replacement() -> None:
    tokens = BYTES.encode("a🦙", bos=False)[:-1]
    pieces = streamed(BYTES, tokens)
    assert "".join(pieces[:-1]) == "a"
    assert set(pieces[-1]) == {"\ufffd"}


def test_special_tokens_are_no_text() -> None:
    tokens = BYTES.encode("hello<|im_end|> hello", bos=False)
    assert "".join(streamed(BYTES, tokens)) == "hello hello"


def cut(stops: Sequence[str], pieces: Sequence[str]) -> tuple[str, str]:
    """The text that goes out, and the stop string that ended it."""
    filter = StopStrings(stops)
    out = "".join(filter.push(piece) for piece in pieces)
    return out + ("" if filter.stopped else filter.finish()), filter.stopped


SHORT = st.text("ab", min_size=1, max_size=4)


@given(st.lists(SHORT, max_size=3), st.lists(st.text("ab", max_size=3), max_size=12))
def test_text_ends_before_the_first_stop_string(stops: list[str], pieces: list[str]) -> None:
    """However the text is cut into pieces, what goes out is what precedes the stop string that is complete first."""
    text = "".join(pieces)
    ends = [(text.find(s) + len(s), text.find(s)) for s in stops if s in text]
    out, stopped = cut(stops, pieces)
    assert bool(stopped) == bool(ends)
    assert not stopped or out + stopped in text
    assert out in ([text[:at] for _, at in ends] if ends else [text])
    assert not any(s in out for s in stops)


@given(st.lists(SHORT, min_size=1, max_size=3), st.text("ab", max_size=20))
def test_no_part_of_a_stop_string_leaks(stops: list[str], text: str) -> None:
    filter, out = StopStrings(stops), ""
    for character in text:
        out += filter.push(character)
        if filter.stopped:
            break
    assert not filter.stopped or not any(
        out.endswith(s[:1]) and text.startswith(out + s[1:]) and s in (out + text[len(out) :])[: len(out)] for s in stops
    )
    assert text.startswith(out)


def test_a_stop_string_over_several_tokens() -> None:
    stream = TextStream(BYTES, [], ["lo hel"])
    pieces = [stream.push(token) for token in BYTES.encode("hello hello", bos=False)]
    assert stream.stopped
    assert "".join(pieces) == "hel"
    assert stream.push(BYTES.encode("x")[0]) == "" == stream.finish()


def test_what_only_looked_like_a_stop_string_goes_out_at_the_end() -> None:
    stream = TextStream(BYTES, [], ["hello world"])
    pieces = [stream.push(token) for token in BYTES.encode("hello w", bos=False)]
    assert "".join(pieces) == ""
    assert stream.finish() == "hello w"


def test_a_stop_string_that_ends_in_an_unfinished_character() -> None:
    stream = TextStream(BYTES, [], ["\ufffd"])
    for token in BYTES.encode("a🦙", bos=False)[:-1]:
        stream.push(token)
    stream.finish()
    assert stream.stopped


@pytest.mark.parametrize("text", ["🦙🦙🦙", "ok 🇩🇪🇫🇷 ok", "👨‍👩‍👧 x"])
def test_emoji_from_byte_tokens(text: str) -> None:
    tokenizer = Tokenizer.open(Path("p"), sentencepiece())
    tokens = tokenizer.encode(text, bos=False)
    assert "".join(streamed(tokenizer, tokens)) == tokenizer.decode(tokens)


def test_byte_tokens_after_a_prompt_that_ends_in_them() -> None:
    tokenizer = Tokenizer.open(Path("p"), sentencepiece())
    prompt, answer = tokenizer.encode("é你你", bos=False), tokenizer.encode("x🦙", bos=False)[2:]
    assert "".join(streamed(tokenizer, answer, prompt)) == "🦙"


def test_a_character_after_junk() -> None:
    tokenizer = Tokenizer.open(Path("b"), byte_level())
    byte = {tokenizer.token_bytes(i): i for i in range(256)}
    tokens = [byte[bytes([b])] for b in b"\xff" * 8 + "🦙".encode()]
    assert "".join(streamed(tokenizer, tokens)).endswith("🦙")
