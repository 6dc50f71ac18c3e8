"""SentencePiece vocabularies of GGUF files, exactly as llama.cpp and SentencePiece itself use them (bpe_model.cc; llm_tokenizer_spm).

A text begins as characters. Of all neighbours whose union is a piece, those with the highest score are joined, the leftmost if
scores are equal, until none is left. The tokenizers package ranks pairs instead of pieces and so cannot have two of the same
rank: runs of spaces, which can be joined in many ways, come out differently there.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import lru_cache
from heapq import heapify, heappop, heappush

from shoal.text.marks import any_of, plain

UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6
"""Types of tokens (gguf.TokenType)."""
SPACE = "▁"
_KEPT, _LONGEST = 1 << 15, 64
"""Words whose pieces are remembered, with at most this many characters."""


class SentencePiece:
    """prefix: whether each text gets a space before it, as most of these models were trained. stripping: ids of tokens that take
    the white space after them with them."""

    def __init__(
        self,
        tokens: Sequence[str],
        scores: Sequence[float],
        types: Sequence[int],
        unknown: int,
        prefix: bool,
        stripping: Collection[int] = (),
    ) -> None:
        """tokens, scores, types: by id; types is as long as tokens. Raises ValueError if scores is not."""
        rows = list(zip(tokens, scores, types, range(len(tokens)), strict=True))
        pieces = [(text, score, id) for text, score, type, id in rows if text and type not in (UNKNOWN, CONTROL, BYTE)]
        self._scores = {text: -score for text, score, _ in pieces}
        self._ids = {text: id for text, _, id in pieces}
        by_text = {text: id for text, *_, id in rows}
        self._bytes = [by_text.get(f"<0x{byte:02X}>") for byte in range(256)]
        self._unknown, self._prefix, self._stripping = unknown, prefix, frozenset(stripping)
        whole = {text: id for text, _, type, id in rows if text and type in (UNKNOWN, CONTROL, USER_DEFINED)}
        self._whole = whole
        self._apart = re.compile(f"({any_of(whole)})") if whole else None
        # If no piece has a space after another character, nothing is joined across the beginning of a word.
        spaced = re.compile(f"[^{SPACE}]{SPACE}")
        self._words = None if any(spaced.search(text) for text in self._scores) else re.compile(f"{SPACE}*[^{SPACE}]+|{SPACE}+")
        self._remembered = lru_cache(_KEPT)(self._joined)

    def encode(self, text: str) -> list[int]:
        """The tokens of a marked text (see marks.py)."""
        out: list[int] = []
        for at, part in enumerate([text] if self._apart is None else self._apart.split(text)):
            if at % 2:
                out.append(self._whole[part])
            elif said := part.lstrip() if out and out[-1] in self._stripping else part:
                out += self._plain(plain(said))
        return out

    def _plain(self, text: str) -> list[int]:
        """The tokens of the text between two whole tokens."""
        written = (SPACE if self._prefix else "") + text.replace(" ", SPACE)
        out: list[int] = []
        for word in [written] if self._words is None else self._words.findall(written):
            for id in self._remembered(word) if len(word) <= _LONGEST else self._joined(word):
                if id != self._unknown or out[-1:] != [id]:
                    out.append(id)
        return out

    def _joined(self, word: str) -> tuple[int, ...]:
        """A word's tokens. A part is identified by its start; its length is 0 once it belongs to the part before it."""
        scores, size = self._scores, len(word)
        lengths, before = [1] * size, list(range(-1, size - 1))
        queue = [(scores[pair], at, 2) for at in range(size - 1) if (pair := word[at : at + 2]) in scores]
        heapify(queue)
        while queue:
            _, left, length = heappop(queue)
            right = left + lengths[left]
            if not lengths[left] or right >= size or lengths[left] + lengths[right] != length:
                continue  # one of them was joined with another since
            lengths[left], lengths[right] = length, 0
            after = left + length
            if after < size:
                before[after] = left
                joined = length + lengths[after]
                if (score := scores.get(word[left : left + joined])) is not None:
                    heappush(queue, (score, left, joined))
            first = before[left]
            if first >= 0:
                joined = lengths[first] + length
                if (score := scores.get(word[first : first + joined])) is not None:
                    heappush(queue, (score, first, joined))
        return tuple(id for at in range(size) if lengths[at] for id in self._tokens(word[at : at + lengths[at]]))

    def _tokens(self, part: str) -> list[int]:
        """A part that is not a piece is spelt in bytes."""
        if (id := self._ids.get(part)) is not None:
            return [id]
        return [self._unknown if (id := self._bytes[byte]) is None else id for byte in part.encode()]
