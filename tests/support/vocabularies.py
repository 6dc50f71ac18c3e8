"""Small vocabularies as GGUF metadata, complete down to the bytes. Changes name their keys in full or after `tokenizer.ggml.`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


def byte_level(pre: str = "smollm", special: Sequence[str] = ("<|im_start|>", "<|im_end|>"), **changes: Any) -> dict[str, Any]:
    """Bytes, a few merges, and special tokens at the end."""
    pairs = [
        ("h", "e"),
        ("l", "l"),
        ("he", "ll"),
        ("hell", "o"),
        ("Ġ", "hello"),
        ("Ġ", "w"),
        ("1", "2"),
        ("12", "3"),
        ("ð", "Ł"),
        ("Ã", "©"),
    ]
    tokens = [*sorted(ByteLevel.alphabet()), *(a + b for a, b in pairs), *special]
    types = [NORMAL] * (len(tokens) - len(special)) + [CONTROL] * len(special)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [f"{a} {b}" for a, b in pairs],
        "tokenizer.ggml.bos_token_id": tokens.index(special[0]),
        "tokenizer.ggml.eos_token_id": tokens.index(special[-1]),
        **{key if "." in key else f"tokenizer.ggml.{key}": value for key, value in changes.items()},
    }


def sentencepiece(**changes: Any) -> dict[str, Any]:
    """<unk>, <s>, </s>, the bytes, pieces by falling score, then single characters."""
    pieces = ["▁h", "▁he", "ll", "▁hell", "▁hello", "▁w", "aa", "aaa", "日本"]
    letters = [*"▁abcdefghijklmnopqrstuvwxyz.,!?", "日", "本", "é"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *pieces, *letters]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * (len(pieces) + len(letters))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(i) for i in range(len(pieces) + len(letters))],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        **{key if "." in key else f"tokenizer.ggml.{key}": value for key, value in changes.items()},
    }


def telling(text: str, pre: str | None, longest: int = 14) -> dict[str, Any]:
    """A vocabulary that makes a token of every piece that a text is split into, so that its tokens show how it was split.

    longest: bytes of the longest piece. pre: how it is split, as a file names it.
    """
    alphabet = _alphabet()
    written = "".join(alphabet[b] for b in text.encode())
    parts = {written[at : at + n] for n in range(1, longest + 1) for at in range(len(written) - n + 1)}
    tokens = [*sorted(ByteLevel.alphabet()), *sorted((p for p in parts if len(p) > 1), key=lambda p: (len(p), p)), "<s>"]
    merges = [f"{t[:at]} {t[at:]}" for t in tokens[256:-1] for at in range(1, len(t))]
    return {
        "tokenizer.ggml.model": "gpt2",
        **({} if pre is None else {"tokenizer.ggml.pre": pre}),
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [NORMAL] * (len(tokens) - 1) + [CONTROL],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": len(tokens) - 1,
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
    }


def _alphabet() -> list[str]:
    """The characters that bytes 0 to 255 are written as."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]
