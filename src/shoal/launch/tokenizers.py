"""Tokenizers in processes that run no model."""

from __future__ import annotations

from shoal.models.gguf_file import GgufFile
from shoal.text.tokenizer import Tokenizer
from shoal.text.tokenizer_parts import TokenizerFiles, TokenizerParts


def opened(files: TokenizerFiles, trust_text: bool) -> Tokenizer:
    """The tokenizer of a model's file or directory. trust_text: as in ApiSettings. Raises CorruptModel, UnsupportedModel, UserError."""
    model, template = files
    return Tokenizer.open(model, None if model.is_dir() else GgufFile(model).meta, template, trust_text)


def cut(files: TokenizerFiles) -> TokenizerParts:
    """What another machine needs of them. Raises OSError, CorruptModel, UnsupportedModel."""
    return TokenizerParts.of(files, lambda path: GgufFile(path).meta_bytes)
