"""SentencePiece vocabularies of GGUF files: as llama.cpp has it (recorded), and as the plainest way of doing it by chance."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import CorruptModel
from shoal.models.gguf_file import GgufFile
from shoal.models.sources import pull
from shoal.text.tokenizer import Tokenizer
from tests.support.vocabularies import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, sentencepiece

# What llama.cpp (b9844) makes of these with TinyLlama's vocabulary, special tokens read.
RECORDED = [
    ("x                  y", [921, 462, 29871, 343]),
    ("x                       y", [921, 462, 539, 343]),
    ("x                               y", [921, 462, 1669, 343]),
    ("x                                               y", [921, 462, 462, 1669, 343]),
    ("x                                                                y", [921, 462, 462, 462, 18884, 343]),
    ("Hello, world! ", [15043, 29892, 3186, 29991, 29871]),
    (" leading", [29871, 8236]),
    ("naïve café 日本語 🦙\x00", [1055, 30085, 345, 274, 28059, 29871, 30325, 30346, 30968, 29871, 243, 162, 169, 156, 3]),
    ("</s>a<s> b<unk>", [2, 263, 1, 29871, 289, 0]),
    ("def f(x):\n        return x\t# ok", [822, 285, 29898, 29916, 1125, 13, 4706, 736, 921, 12, 29937, 3431]),
    ("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", [263, 27137, 27137, 27137, 27137, 27137, 27137, 27137, 27137, 27137]),
    ("<0x0A>", [529, 29900, 29916, 29900, 29909, 29958]),
]


@pytest.fixture(scope="module")
def tinyllama() -> Tokenizer:
    path = pull("tinyllama-1.1b")
    return Tokenizer.open(path, GgufFile(path).meta)


@pytest.mark.real
@pytest.mark.parametrize(("text", "tokens"), RECORDED, ids=range(len(RECORDED)))
def test_as_llama_cpp(text: str, tokens: list[int], tinyllama: Tokenizer) -> None:
    assert tinyllama.encode(text, bos=False) == tokens


def vocabulary(pieces: list[tuple[str, int]], prefix: bool) -> dict[str, Any]:
    """Pieces with their scores, after the bytes; `ab`, `▁` and `c` are pieces too, and one token is the user's own."""
    listed = [*pieces, *((char, -99) for char in "ab▁c")]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *(text for text, _ in listed), "<t>"]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [float(score) for _, score in listed] + [0.0],
        "tokenizer.ggml.token_type": [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(listed), USER_DEFINED],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_space_prefix": prefix,
    }


def plainly(text: str, meta: dict[str, Any]) -> list[int]:
    """Looks at all neighbours again after each union."""
    tokens, out = meta["tokenizer.ggml.tokens"], []
    score = {t: s for t, s, k in zip(tokens, meta["tokenizer.ggml.scores"], meta["tokenizer.ggml.token_type"], strict=True) if k == NORMAL}
    for at, between in enumerate(text.split("<t>")):
        out += [tokens.index("<t>")] if at else []
        parts = list(("▁" if between and meta["tokenizer.ggml.add_space_prefix"] else "") + between.replace(" ", "▁"))
        while unions := [(-score[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in score]:
            _, i = min(unions)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        for part in parts:
            out += [tokens.index(part)] if part in score else [3 + byte for byte in part.encode()]
    return out


PIECES = st.lists(st.tuples(st.text("ab▁", min_size=2, max_size=6), st.integers(-3, 0)), max_size=40, unique_by=lambda piece: piece[0])
TEXT = st.lists(st.sampled_from(["a", "b", "c", " ", "  ", "é", "<t>", "ab", "<s>", "▁"]), max_size=40).map("".join)


@settings(max_examples=300)
@given(PIECES, TEXT, st.booleans())
def test_the_best_neighbours_are_joined_and_of_equals_the_leftmost(pieces: list[tuple[str, int]], text: str, prefix: bool) -> None:
    meta = vocabulary(pieces, prefix)
    assert Tokenizer.open(Path("m"), meta).encode(text, bos=False, control=False) == plainly(text, meta)


@pytest.mark.parametrize("spaces", range(18, 65))
def test_runs_of_spaces(spaces: int) -> None:
    runs = [("▁" * n, -n) for n in range(2, 17)]
    meta, text = vocabulary([*runs, ("▁a", -20), ("▁▁a", -1)], True), "b" + " " * spaces + "a"
    tokenizer = Tokenizer.open(Path("m"), meta)
    assert tokenizer.encode(text, bos=False) == plainly(text, meta)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_long_words_are_as_short_ones() -> None:
    meta = vocabulary([("ab", -1), ("abab", -2), ("ba", -1), ("aba", -2)], True)
    tokenizer = Tokenizer.open(Path("m"), meta)
    for text in ("ab" * 200, "ab" * 40 + " ba" * 40, "a" * 100):
        assert tokenizer.encode(text, bos=False) == plainly(text, meta)


def extended(tokens: list[tuple[str, int]], **changes: Any) -> dict[str, Any]:
    meta = sentencepiece(**changes)
    for key, values in (("tokens", [t for t, _ in tokens]), ("scores", [0.0] * len(tokens)), ("token_type", [kind for _, kind in tokens])):
        meta[f"tokenizer.ggml.{key}"] = [*meta[f"tokenizer.ggml.{key}"], *values]
    return meta


@pytest.mark.parametrize(("arch", "strips"), [("phi3", True), ("phimoe", True), ("llama", False)])
def test_phi_3s_control_tokens_take_the_white_space_after_them(arch: str, strips: bool) -> None:
    """As its tokenizer.json has it, and llama.cpp (b9844)."""
    meta = extended([(f"<|{name}|>", CONTROL) for name in ("user", "assistant", "end", "endoftext")], **{"general.architecture": arch})
    tokenizer = Tokenizer.open(Path("m"), meta)
    text = "<|user|>\nhello<|end|>\n<|assistant|>\n<|endoftext|> he"
    pieces = [tokenizer.token_bytes(token).decode() for token in tokenizer.encode(text, bos=False)]
    said = ["<|user|>", " hello", "<|end|>", "<|assistant|>", "<|endoftext|>", " ", " he"]
    gap = [" ", "\n"]
    assert pieces == (said if strips else [said[0], *gap, "h", "e", "ll", "o", said[2], *gap, said[3], *gap, *said[4:]])


def test_gemmas_runs_of_spaces_and_lines_are_tokens() -> None:
    """As llama.cpp (b9844) reads these texts; nothing is put before them."""
    own = [(text, USER_DEFINED) for text in ("\n\n", "  ", "   ")]
    meta = extended([("<start_of_turn>", CONTROL), ("<end_of_turn>", CONTROL), *own, ("\n", NORMAL)], add_space_prefix=False)
    tokenizer = Tokenizer.open(Path("m"), meta)
    recorded = [
        (
            "<start_of_turn>user\nhello  hell<end_of_turn>\n",
            [302, 289, 287, 273, 286, 307, 276, 273, 261, 283, 305, 276, 273, 261, 303, 307],
        ),
        ("a\n\n\nb     c    d  ", [269, 304, 307, 270, 306, 305, 271, 306, 268, 272, 305]),
        ("  x\n\n\n\n", [305, 292, 304, 304]),
    ]
    for text, tokens in recorded:
        assert tokenizer.encode(text, bos=False) == tokens
    assert tokenizer.stop_tokens == {2, 303}


def test_bytes_that_a_vocabulary_lacks_are_one_unknown_token() -> None:
    meta = sentencepiece()
    for byte in "é🦙".encode():
        meta["tokenizer.ggml.tokens"][3 + byte] = f"byte {byte}"
    assert Tokenizer.open(Path("m"), meta).encode("h🦙🦙h", bos=False)[1:-1] == [0]


@pytest.mark.parametrize("changes", [{"scores": [0.0]}, {"scores": None}, {"scores": ["x"] * 900}])
def test_scores_that_are_none(changes: dict[str, Any]) -> None:
    with pytest.raises(CorruptModel):
        Tokenizer.open(Path("m"), sentencepiece(**changes))


def test_a_token_that_ends_a_turn_is_made_of_no_others_though_a_file_calls_it_normal() -> None:
    meta = sentencepiece()
    for key, values in (("tokens", ["<", "end_of_turn>", "<end_of_turn>"]), ("scores", [0.0] * 3), ("token_type", [NORMAL] * 3)):
        meta[f"tokenizer.ggml.{key}"] += values
    model = json.loads(Tokenizer.open(Path("m"), meta)._backend.to_str())["model"]
    assert ["<", "end_of_turn>"] not in model["merges"] and ["l", "l"] in model["merges"]
