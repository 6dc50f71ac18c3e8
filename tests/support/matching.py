"""Whether a text matches a grammar, tried byte by byte."""

from __future__ import annotations

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

_END = 256


class _Bytes(TokenizerWrapper):
    def __init__(self) -> None:
        self.is_tokenizer_wrapper = True
        self.eos_token_id, self.bos_token_id = _END, None
        self.tokens = [*(bytes([b]) for b in range(256)), b"<end>"]
        self.special_token_ids = [_END]

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def matches(grammar: str, text: str) -> bool:
    """As a whole."""
    matcher = LLMatcher(LLTokenizer(_Bytes()), grammar)
    assert not matcher.is_error(), matcher.get_error()
    tokens = list(text.encode())
    return matcher.validate_tokens(tokens) == len(tokens) and matcher.consume_tokens(tokens) and matcher.is_accepting()
