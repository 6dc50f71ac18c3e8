"""Small vocabularies as GGUF metadata, complete down to the bytes. Changes name their keys in full or after `tokenizer.ggml.`."""

from __future__ import annotations

from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


def byte_level(pre: str = "smollm", special: tuple[str, ...] = ("<|im_start|>", "<|im_end|>"), **changes: Any) -> dict[str, Any]:
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
