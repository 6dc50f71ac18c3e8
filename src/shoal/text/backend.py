"""A model's tokeniser from the tokenizers package, prepared: no truncation or padding, marks removed, control tokens recognised
as written."""

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
    """Whether it is written like a control token, whatever the file says: files forget to say it (as in convert_hf_to_gguf.py)."""
    return _CONTROL.fullmatch(text) is not None


def from_directory(path: Path) -> Tokenizer:
    """Raises UserError, CorruptModel."""
    file = path / "tokenizer.json"
    if not file.exists():
        raise UserError(f"{path}: no tokenizer.json; save the model with a fast tokenizer")
    try:
        stored = cast("dict[str, Any]", json.loads(file.read_bytes()))
        stored |= {"truncation": None, "padding": None}  # settings from its training: they would silently cut or pad prompts
        for token in cast("list[dict[str, Any]]", stored.get("added_tokens") or []):
            if token["special"] or looks_like_control(token["content"]):
                token["normalized"] = False  # otherwise normalisation could turn text into one
        return with_marks(Tokenizer.from_str(json.dumps(stored)))
    except Exception as error:
        raise CorruptModel(file, f"not a tokenizer ({error})") from error


def with_marks(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokeniser, which now removes marks from its input."""
    own: Any = tokenizer.normalizer
    tokenizer.normalizer = normalizers.Sequence([*steps(), *([] if own is None else [own])])
    return tokenizer


def without_marks(tokenizer: Tokenizer) -> str:
    """The JSON of such a tokeniser without marks, for other libraries, which recognise models' normalisers by their form."""
    stored: dict[str, Any] = json.loads(tokenizer.to_str())
    rest = stored["normalizer"]["normalizers"][len(steps()) :]
    stored["normalizer"] = rest[0] if rest else None
    return json.dumps(stored)


def written(part: Any) -> str:
    """A part of a tokeniser, as JSON."""
    return "null" if part is None else bytes(part.__getstate__()).decode()
