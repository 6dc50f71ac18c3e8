"""Vocabularies and their folders: what does not hold together is refused."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from shoal.errors import InvalidRequest, ShoalError
from shoal.text.tokenizer import Tokenizer
from tests.support.vocabularies import byte_level, sentencepiece


def test_text_that_is_not_unicode() -> None:
    """tokenizers 0.23 answers a lone surrogate with TypeError, not UnicodeEncodeError."""
    with pytest.raises(InvalidRequest, match="not valid Unicode"):
        Tokenizer.open(Path("b"), byte_level()).encode("\ud800")


def test_the_unknown_token_is_special() -> None:
    assert Tokenizer.open(Path("p"), sentencepiece()).encode("<unk>", bos=False) == [0]


BAD_META: list[dict[str, Any]] = [
    {"bos_token_id": "x"},
    {"bos_token_id": -1},
    {"eos_token_id": [1]},
    {"token_type": "x"},
    {"tokens": 5},
    {"merges": ["a"]},
    {"merges": [5]},
]


@pytest.mark.parametrize("changes", BAD_META, ids=str)
def test_vocabularies_that_do_not_hold_together(changes: dict[str, Any]) -> None:
    with pytest.raises(ShoalError):
        Tokenizer.open(Path("b"), byte_level(**changes))


@pytest.mark.parametrize(
    "changes",
    [{"scores": [1.0]}, {"unknown_token_id": 10**6}, {"unknown_token_id": "x"}, {"scores": ["a"] * 293}],
    ids=str,
)
def test_sentencepiece_vocabularies_that_do_not_hold_together(changes: dict[str, Any]) -> None:
    with pytest.raises(ShoalError):
        Tokenizer.open(Path("p"), sentencepiece(**changes))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("generation_config.json", {"eos_token_id": "x"}),
        ("tokenizer_config.json", {"bos_token": {}}),
        ("tokenizer_config.json", {"chat_template": [{"name": "default"}]}),
        ("tokenizer_config.json", {"chat_template": 5}),
        ("tokenizer_config.json", {"eos_token": 5}),
    ],
)
def test_tokenizer_directories_that_do_not_hold_together(name: str, content: Any, tmp_path: Path) -> None:
    Tokenizer.open(Path("b"), byte_level())._backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / name).write_text(json.dumps(content))
    with contextlib.suppress(ShoalError):
        Tokenizer.open(tmp_path)


def test_bytes_of_tokens_under_a_sequence_of_decoders(tmp_path: Path) -> None:
    from tokenizers import decoders

    backend = Tokenizer.open(Path("b"), byte_level())._backend
    backend.decoder = decoders.Sequence([decoders.ByteLevel()])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.open(tmp_path)
    assert tokenizer.token_bytes(tokenizer.encode("a hello", bos=False)[-1]) == b" hello"
