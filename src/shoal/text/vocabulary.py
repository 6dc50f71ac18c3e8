"""Builds tokenisers from a GGUF file's metadata.

The tokenizers package does the work; this maps llama.cpp's names for pre-tokenisers (llama-vocab.cpp) to the rules in the
models' own tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from shoal.errors import CorruptModel, UnsupportedModel
from shoal.text.backend import with_marks
from shoal.text.pre_tokenizers import DEFAULT, RULES
from shoal.text.sentencepiece import BYTE, CONTROL, UNKNOWN, USER_DEFINED, SentencePiece

log = structlog.get_logger()

END_OF_TURN = (
    *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<end_of_turn>"),
    *("<｜end▁of▁sentence｜>", "<|END_OF_TURN_TOKEN|>", "[EOT]", "[e~["),
)
"""Tokens that end a turn in the known families, whether or not the file's metadata says so (llama-vocab.cpp does the same)."""
GLM, GLM_TURNS = "[gMASK]", ("<|user|>", "<|observation|>")
"""A token that only GLM's vocabularies have, and those that begin the turns of others: a GLM's own turn ends with one of them."""


def from_gguf(meta: Mapping[str, Any], where: object) -> Tokenizer:
    """Raises UnsupportedModel for an unknown kind of vocabulary, CorruptModel for an inconsistent one."""
    kind = meta.get("tokenizer.ggml.model")
    try:
        tokens: list[str] = meta["tokenizer.ggml.tokens"]
        if kind == "gpt2":
            tokenizer = _byte_level(meta, tokens, where)
        elif kind == "llama":
            tokenizer = _sentencepiece(meta, tokens)
        else:
            raise UnsupportedModel(
                f"{where}: vocabulary '{kind}' is not supported; shoal reads gpt2 (byte-level BPE) and llama (SentencePiece)"
            )
        types = _types(meta, tokens)
        added = [(i, CONTROL if t == UNKNOWN else t) for i, t in enumerate(types) if t in (UNKNOWN, CONTROL, USER_DEFINED)]
        marked: Any = tokenizer  # the package's stubs leave these two untyped
        marked.add_special_tokens([AddedToken(tokens[i], special=True, normalized=False) for i, t in added if t == CONTROL])
        marked.add_tokens([AddedToken(tokens[i], special=False, normalized=False) for i, t in added if t == USER_DEFINED])
    except UnsupportedModel:
        raise
    except Exception as error:
        raise CorruptModel(where, f"the vocabulary does not hold together ({error})") from error
    return with_marks(tokenizer)


def begins_with_bos(meta: Mapping[str, Any]) -> bool:
    """Whether texts begin with BOS if the file does not say."""
    rule = RULES.get(str(meta.get("tokenizer.ggml.pre")))
    return meta.get("tokenizer.ggml.model") == "llama" or (rule is not None and rule.begins)


def _byte_level(meta: Mapping[str, Any], tokens: list[str], where: object) -> Tokenizer:
    pre = meta.get("tokenizer.ggml.pre")
    if pre is None:
        log.warning(
            "the file does not say how text is to be split before it becomes tokens: answers may be worse; convert the model anew",
            file=str(where),
            rules=DEFAULT,
        )
    rule = RULES.get(str(pre or DEFAULT))
    if rule is None:
        raise UnsupportedModel(f"{where}: pre-tokeniser '{pre}' is not supported; supported are {', '.join(sorted(RULES))}")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    pairs = [(left, right) for left, right in (line.split(" ", 1) for line in meta["tokenizer.ggml.merges"])]
    merges = [(left, right) for left, right in pairs if left in vocabulary and right in vocabulary and left + right in vocabulary]
    if len(merges) < len(pairs):
        log.warning("merges of what the vocabulary lacks are left out", file=str(where), merges=len(pairs) - len(merges))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=rule.whole_words))
    splits = [pre_tokenizers.Split(Regex(split), "isolated") for split in rule.splits]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    if rule.composes:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def pieces(meta: Mapping[str, Any], where: object) -> SentencePiece | None:
    """Turns text into tokens if the vocabulary is SentencePiece's; otherwise None. Raises CorruptModel."""
    if meta.get("tokenizer.ggml.model") != "llama":
        return None
    try:
        tokens: list[str] = meta["tokenizer.ggml.tokens"]
        unknown, prefix = int(meta.get("tokenizer.ggml.unknown_token_id", 0)), bool(meta.get("tokenizer.ggml.add_space_prefix", True))
        types = _types(meta, tokens)
        return SentencePiece(tokens, meta["tokenizer.ggml.scores"], types, unknown, prefix, _stripping(meta, tokens, types))
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptModel(where, f"the vocabulary does not hold together ({error})") from error


def _stripping(meta: Mapping[str, Any], tokens: list[str], types: list[int]) -> frozenset[int]:
    """Tokens that take the white space after them with them: Phi-3's, which no file says (llama-vocab.cpp knows it by the name)."""
    if meta.get("general.architecture") not in ("phi3", "phimoe"):
        return frozenset()
    own = (CONTROL, USER_DEFINED)
    return frozenset(i for i, token in enumerate(tokens) if types[i] in own and token not in ("<s>", "<unk>", "<|endoftext|>"))


def _types(meta: Mapping[str, Any], tokens: list[str]) -> list[int]:
    """Token types by id. Tokens that end a turn count as control tokens, whatever the file says. Raises ValueError."""
    types: list[int] = meta.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    if len(types) != len(tokens):
        raise ValueError(f"{len(types)} types for {len(tokens)} tokens")
    return [CONTROL if token in END_OF_TURN and type == 1 else type for token, type in zip(tokens, types, strict=True)]


def _sentencepiece(meta: Mapping[str, Any], tokens: list[str]) -> Tokenizer:
    """For decoding its tokens, and for grammars, which need a tokeniser of this package; `pieces` encodes text."""
    scores: list[float] = meta["tokenizer.ggml.scores"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges: list[tuple[float, int, int, str, str]] = []
    for token, score, kind in zip(tokens, scores, _types(meta, tokens), strict=True):
        if kind in (CONTROL, BYTE):
            continue
        for at in range(1, len(token)):
            left, right = token[:at], token[at:]
            if left in vocabulary and right in vocabulary:
                merges.append((-score, vocabulary[left], vocabulary[right], left, right))
    merges.sort()
    unknown = tokens[int(meta.get("tokenizer.ggml.unknown_token_id", 0))]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=[(m[3], m[4]) for m in merges], unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    prefix: list[Any] = [normalizers.Prepend("▁")] if meta.get("tokenizer.ggml.add_space_prefix", True) else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    strip: list[Any] = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return tokenizer
