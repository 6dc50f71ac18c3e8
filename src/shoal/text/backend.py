"""The tokenizers package's tokeniser of a model, made ready: nothing cut or padded, marks taken out, control tokens read as they are written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer, normalizers

from shoal.errors import CorruptModel, UserError
from shoal.text.marks import steps

_CONTROL = re.compile(r"<[|｜].*[|｜]>|<(start|end)_of_(turn|image)>|\[/?(INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS)\]", re.DOTALL)


def looks_like_control(text: str) -> bool:
    """Whether it is written as control tokens are, whatever a file says of it: files forget to say it (as convert_hf_to_gguf.py has it)."""
    return _CONTROL.fullmatch(text) is not None


def from_directory(path: Path) -> Tokenizer:
    """Raises UserError, CorruptModel."""
    file = path / "tokenizer.json"
    if not file.exists():
        raise UserError(f"{path}: no tokenizer.json; save the model with a fast tokenizer")
    try:
        stored = cast("dict[str, Any]", json.loads(file.read_bytes()))
        stored |= {"truncation": None, "padding": None}  # settings of its training: they would cut or fill prompts without a word
        for token in cast("list[dict[str, Any]]", stored.get("added_tokens") or []):
            if token["special"] or looks_like_control(token["content"]):
                token["normalized"] = False  # or text becomes one by its normalisation
        return with_marks(Tokenizer.from_str(json.dumps(stored)))
    except Exception as error:
        raise CorruptModel(file, f"not a tokenizer ({error})") from error


def with_marks(tokenizer: Tokenizer) -> Tokenizer:
    """The same one, which takes marks out of what it is given."""
    own: Any = tokenizer.normalizer
    tokenizer.normalizer = normalizers.Sequence([*steps(), *([] if own is None else [own])])
    return tokenizer


def without_marks(tokenizer: Tokenizer) -> str:
    """Such a tokeniser's JSON as it was before: for others, who know normalisers of models by their looks."""
    stored: dict[str, Any] = json.loads(tokenizer.to_str())
    rest = stored["normalizer"]["normalizers"][len(steps()) :]
    stored["normalizer"] = rest[0] if rest else None
    return json.dumps(stored)


def written(part: Any) -> str:
    """A part of a tokeniser, as JSON."""
    return "null" if part is None else bytes(part.__getstate__()).decode()
