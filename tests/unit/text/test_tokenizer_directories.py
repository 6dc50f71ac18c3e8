"""Tokenizers in directories as transformers writes and reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from shoal.errors import CorruptModel, UserError
from shoal.text.tokenizer import Tokenizer
from tests.support.vocabularies import byte_level

HERE = Path("vocabulary")


def saved(directory: Path, bos: str | None = None, **files: dict[str, Any]) -> Path:
    backend = Tokenizer.open(HERE, byte_level())._backend
    if bos:
        backend.post_processor = processors.TemplateProcessing(f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))])
    backend.save(str(directory / "tokenizer.json"))
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


@pytest.mark.parametrize("bos", [None, "<|im_start|>"])
def test_directories_as_transformers_reads_them(bos: str | None, tmp_path: Path) -> None:
    ours = Tokenizer.open(saved(tmp_path, bos, tokenizer_config={"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}))
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for text in ("", "hello 123 é<|im_end|>\n", "🦙"):
        assert ours.encode(text) == theirs(text)["input_ids"]
        assert ours.encode(text, bos=False) == theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs(text)["input_ids"], skip_special_tokens=True)


@pytest.mark.parametrize("eos", [7, [7, 9]])
def test_ends_of_a_directory(eos: Any, tmp_path: Path) -> None:
    plain = Tokenizer.open(saved(tmp_path)).stop_tokens  # <|im_end|> is known by its name
    files = saved(tmp_path, config={"eos_token_id": 8}, generation_config={"eos_token_id": eos})
    assert Tokenizer.open(files).stop_tokens == plain | {*([eos] if isinstance(eos, int) else eos)}


def test_special_tokens_written_as_objects(tmp_path: Path) -> None:
    template = "{{ bos_token }}|{{ eos_token }}"
    files = saved(
        tmp_path,
        tokenizer_config={
            "bos_token": {"content": "<|im_start|>"},
            "eos_token": "<|im_end|>",
            "chat_template": template,
        },
    )
    tokenizer = Tokenizer.open(files)
    assert tokenizer.template is not None
    assert tokenizer.template.render([]) == "<|im_start|>|<|im_end|>"


def test_templates_by_name_and_beside(tmp_path: Path) -> None:
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    tokenizer = Tokenizer.open(saved(tmp_path, tokenizer_config={"chat_template": several}))
    template = tokenizer.template
    assert template is not None
    assert template.render([]) == "plain"
    assert (tokenizer.render_chat([]), tokenizer.render_chat([], [{}])) == ("plain", "tools")
    (tmp_path / "chat_template.jinja").write_text("beside")
    template = Tokenizer.open(tmp_path).template
    assert template is not None
    assert template.render([]) == "beside"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("tools beside")
    tokenizer = Tokenizer.open(tmp_path)
    assert (tokenizer.render_chat([]), tokenizer.render_chat([], [{}])) == ("beside", "tools beside")


def test_directories_that_hold_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        Tokenizer.open(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CorruptModel, match="not a tokenizer"):
        Tokenizer.open(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{", "\xff"])
def test_settings_that_are_none(text: str, tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "tokenizer_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CorruptModel):
        Tokenizer.open(tmp_path)


@pytest.mark.parametrize("padding", [None, 40])
@pytest.mark.parametrize("truncation", [None, 3])
def test_settings_of_the_training_neither_cut_nor_fill_a_prompt(truncation: int | None, padding: int | None, tmp_path: Path) -> None:
    backend = Tokenizer.open(HERE, byte_level())._backend
    plain = Tokenizer.open(saved(tmp_path)).encode("hello hello hello 123 é")
    if truncation is not None:
        backend.enable_truncation(truncation)
    if padding is not None:
        backend.enable_padding(length=padding, pad_id=0, pad_token="!")
    backend.save(str(tmp_path / "tokenizer.json"))
    made = Tokenizer.open(tmp_path)
    assert made.encode("hello hello hello 123 é") == plain
    assert made.encode("") == []
    assert json.loads((tmp_path / "tokenizer.json").read_text())["truncation"] is not None or truncation is None


def test_json_that_begins_with_a_byte_order_mark_or_is_not_utf8_is_read(tmp_path: Path) -> None:
    saved(tmp_path)
    config = {"eos_token": "<|im_end|>", "chat_template": "{{ eos_token }}", "note": "café"}
    (tmp_path / "tokenizer_config.json").write_bytes(json.dumps(config, ensure_ascii=False).encode("latin-1"))
    plain = (tmp_path / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(b"\xef\xbb\xbf" + plain)
    made = Tokenizer.open(tmp_path)
    assert made.render_chat([]) == "<|im_end|>"
    assert made.encode("hello", bos=False) == Tokenizer.open(HERE, byte_level()).encode("hello", bos=False)
