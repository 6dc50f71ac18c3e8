"""What a machine without a model gets of it: a tokenizer that says the same, fetched whole or not at all."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import CorruptModel, HashMismatch, RemoteProtocolError, UserError
from shoal.launch.tokenizers import cut, opened
from shoal.models.gguf_file import GgufFile
from shoal.text import tokenizer_parts
from shoal.text.tokenizer_parts import MAX_PART, TokenizerFiles, TokenizerPart, TokenizerParts, fetched
from tests.support.vocabulary_files import TEMPLATE, gguf
from tests.unit.text.test_tokenizer_directories import saved

TEXT = "hello 123 é<|im_end|>\n🦙"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return gguf(tmp_path / "m.gguf")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    folder = tmp_path / "m"
    (folder / "additional_chat_templates").mkdir(parents=True)
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    (folder / "model.safetensors").write_bytes(bytes(1 << 16))
    return saved(folder, tokenizer_config={"eos_token": "<|im_end|>", "chat_template": TEMPLATE})


class Source:
    """Where parts come from: counts what is read, and may answer something else."""

    def __init__(self, parts: TokenizerParts) -> None:
        self.parts, self.reads = parts, 0
        self.wrong: bytes | None = None

    async def read(self, name: str, offset: int) -> bytes:
        self.reads += 1
        return self.parts.read(name, offset) if self.wrong is None else self.wrong


def fetch(source: Source, folder: Path) -> TokenizerFiles:
    return asyncio.run(fetched(source.parts.listed, source.read, folder))


def test_a_gguf_files_tokenizer_comes_without_its_tensors(model: Path, tmp_path: Path) -> None:
    files = TokenizerFiles(model)
    got = fetch(Source(cut(files)), tmp_path / "cache")
    there, here = opened(files, False), opened(got, False)
    assert here.encode(TEXT) == there.encode(TEXT)
    assert here.render_chat([{"content": "x"}]) == there.render_chat([{"content": "x"}])
    assert here.stop_tokens == there.stop_tokens
    assert GgufFile(got.model).tensors == {}
    assert GgufFile(got.model).meta == GgufFile(model).meta
    assert got.model.stat().st_size <= model.stat().st_size - (1 << 16)


def test_a_directorys_tokenizer_comes_without_its_weights(directory: Path, tmp_path: Path) -> None:
    files = TokenizerFiles(directory)
    got = fetch(Source(cut(files)), tmp_path / "cache")
    there, here = opened(files, False), opened(got, False)
    assert here.encode(TEXT) == there.encode(TEXT)
    assert here.render_chat([{"content": "x"}], tools=[{"a": 1}]) == there.render_chat([{"content": "x"}], tools=[{"a": 1}])
    names = {str(path.relative_to(got.model)) for path in got.model.rglob("*") if path.is_file()}
    assert names == {"tokenizer.json", "tokenizer_config.json", "additional_chat_templates/tool_use.jinja"}


@pytest.mark.parametrize("kind", ["model", "directory"])
def test_a_chosen_template_comes_too(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    chosen = tmp_path / "own.jinja"
    chosen.write_text("other {{ messages[0].content }}")
    got = fetch(Source(cut(TokenizerFiles(request.getfixturevalue(kind), chosen))), tmp_path / "cache")
    assert opened(got, False).render_chat([{"content": "x"}]) == "other x"


def test_what_is_there_is_not_fetched_again(model: Path, tmp_path: Path) -> None:
    source = Source(cut(TokenizerFiles(model)))
    first = fetch(source, tmp_path / "cache")
    reads = source.reads
    assert fetch(source, tmp_path / "cache") == first
    assert source.reads == reads
    first.model.write_bytes(first.model.read_bytes()[:-1] + b"x")
    assert fetch(source, tmp_path / "cache") == first
    assert source.reads == 2 * reads
    assert opened(first, False).encode(TEXT)


@pytest.mark.parametrize("wrong", [b"", b"x", bytes(1 << 20)])
def test_what_is_not_what_was_promised_is_not_kept(wrong: bytes, model: Path, tmp_path: Path) -> None:
    source = Source(cut(TokenizerFiles(model)))
    source.wrong = wrong
    with pytest.raises((HashMismatch, RemoteProtocolError)):
        fetch(source, tmp_path / "cache")
    assert [*(tmp_path / "cache").iterdir()] == []


@pytest.mark.parametrize(
    "part",
    [
        TokenizerPart("../x", 1, ""),
        TokenizerPart("/etc/passwd", 1, ""),
        TokenizerPart("additional_chat_templates/../../x", 1, ""),
        TokenizerPart("..", 1, ""),
        TokenizerPart(".hidden", 1, ""),
        TokenizerPart("a\\b", 1, ""),
        TokenizerPart("tokenizer.json", MAX_PART + 1, ""),
        TokenizerPart("tokenizer.json", -1, ""),
    ],
)
def test_no_part_lies_outside_of_its_folder_or_has_no_end(part: TokenizerPart, tmp_path: Path) -> None:
    async def read(name: str, offset: int) -> bytes:
        raise AssertionError("nothing is read")

    with pytest.raises(RemoteProtocolError, match="no part"):
        asyncio.run(fetched([part], read, tmp_path))


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_parts_read_in_pieces_of_any_size_are_the_same(data: st.DataObject) -> None:
    """Also where a piece begins or ends inside the number of tensors, which is 0 in what is read."""
    content = data.draw(st.binary(min_size=24, max_size=64))
    piece = data.draw(st.integers(1, 40))
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        path.write_bytes(content)
        patch.setattr(tokenizer_parts, "PIECE", piece)
        parts = TokenizerParts.of(TokenizerFiles(path), lambda _: len(content))
        read = b""
        while len(read) < len(content):
            read += parts.read("model.gguf", len(read))
    assert read == content[:8] + bytes(8) + content[16:]


def test_nothing_else_can_be_read(model: Path) -> None:
    parts = cut(TokenizerFiles(model))
    for name, offset in (("m.gguf", 0), ("model.gguf", -1)):
        with pytest.raises(RemoteProtocolError):
            parts.read(name, offset)
    assert parts.read("model.gguf", 1 << 40) == b""


def test_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(bytes(100))
    with pytest.raises(CorruptModel):
        cut(TokenizerFiles(tmp_path / "m.gguf"))
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps({}))
    with pytest.raises(UserError):
        opened(fetch(Source(cut(TokenizerFiles(tmp_path / "m"))), tmp_path / "cache"), False)
