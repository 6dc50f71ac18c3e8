"""What a grammar allows, in the tokens of every kind of vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from llguidance import LLTokenizer
from tokenizers import Tokenizer as Backend

from shoal.executor.constraint import Grammars
from shoal.text import grammar
from shoal.text.tokenizer import Tokenizer
from tests.support import vocabularies
from tests.support.masks import mask


def spelled(llguidance: LLTokenizer, tokenizer: Tokenizer, pattern: str, text: str) -> bool:
    """Whether a text may be said under a pattern in this vocabulary's tokens, and none of its masks has a token of other bytes."""
    grammars = Grammars(lambda: llguidance, patience=None)
    place, at, raw = grammars.constrain(grammar.regex(pattern), [], tokenizer.size + 9), 0, text.encode()
    while at < len(raw):
        may = {token: tokenizer.token_bytes(token) for token in mask(place, tokenizer.size + 9)}
        fitting = [token for token, said in may.items() if token not in tokenizer.stop_tokens and said and raw[at:].startswith(said)]
        if not fitting:
            return False
        best = max(fitting, key=lambda token: len(may[token]))
        grammars.advance([(place, best)])
        at += len(may[best])
    ends = mask(place, tokenizer.size + 9)
    grammars.close()
    return tokenizer.stop_tokens <= ends and max(ends) < tokenizer.size


@pytest.mark.parametrize(
    "meta",
    [vocabularies.byte_level(), vocabularies.sentencepiece(), vocabularies.sentencepiece(add_space_prefix=False)],
    ids=["byte-level", "sentencepiece", "sentencepiece without a first space"],
)
@pytest.mark.parametrize("text", ["hello", " hello", "日本 é\n{}", "aaa  aaa", "ÿþ"])
def test_text_is_spelled_in_the_tokens_of_every_kind_of_vocabulary(meta: dict[str, Any], text: str):
    made = Tokenizer.open(Path("x.gguf"), meta)
    seen = made.for_grammars(made.size + 9)
    pattern = "".join(f"\\x{{{ord(c):x}}}" for c in text)
    assert spelled(seen, made, pattern, text)
    assert spelled(seen, made, "(?s:.*)", text)
    assert not spelled(seen, made, f"z{pattern}", text)


def test_a_directorys_tokenizer(tmp_path: Path):
    gguf = Tokenizer.open(Path("x.gguf"), vocabularies.byte_level())
    Backend.from_str(gguf._backend.to_str()).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    made = Tokenizer.open(tmp_path)
    assert spelled(made.for_grammars(made.size + 9), made, "hello w[a-z]+", "hello wide")


def test_special_tokens_have_names():
    assert Tokenizer.open(Path("x.gguf"), vocabularies.byte_level()).special == {"<|im_start|>": 266, "<|im_end|>": 267}
