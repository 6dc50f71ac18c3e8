"""Text to tokens and back, what a template adds, and vocabularies that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from shoal.errors import ConfigError, CorruptModel, InvalidRequest, UnsupportedModel
from shoal.text.detokenizer import TextStream
from shoal.text.tokenizer import Tokenizer
from shoal.text.tools import HERMES
from tests.support.vocabularies import CONTROL, USER_DEFINED, byte_level, sentencepiece

HERE = Path("vocabulary")
BYTES = Tokenizer.open(HERE, byte_level())
PIECES = Tokenizer.open(HERE, sentencepiece())
TEXT = st.one_of(st.text(max_size=60), st.text("hello w日本é🦙12 \n\t'", max_size=60))


@given(TEXT)
def test_bytes_survive(text: str) -> None:
    assert BYTES.decode(BYTES.encode(text, bos=False)) == text


@given(TEXT)
def test_pieces_survive(text: str) -> None:
    text = text.replace("▁", "_")
    assert PIECES.decode(PIECES.encode(text, bos=False)) == text


@given(TEXT)
def test_the_bytes_of_tokens_are_the_text(text: str) -> None:
    assert b"".join(map(BYTES.token_bytes, BYTES.encode(text, bos=False))).decode() == text


def test_bytes_of_tokens() -> None:
    ids = PIECES.encode("hello é\n", bos=False)
    assert [PIECES.token_bytes(i) for i in ids] == [b" hello", b" ", "é".encode(), b"\n"]
    assert BYTES.token_bytes(10**6) == b""
    assert BYTES.token_bytes(BYTES.encode("<|im_end|>", bos=False)[0]) == b"<|im_end|>"


def test_merges_in_their_order() -> None:
    assert [PIECES.token_bytes(i) for i in PIECES.encode("hello aaaa 日本", bos=False)] == [
        b" hello",
        b" ",
        b"aa",
        b"aa",
        b" ",
        "日本".encode(),
    ]


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("smollm", "123 45", [b"1", b"2", b"3", b" ", b"4", b"5"]),
        ("qwen2", "123", [b"1", b"2", b"3"]),
        ("llama-bpe", "123", [b"123"]),
        ("gpt-2", "123", [b"123"]),
        ("tekken", "123", [b"1", b"2", b"3"]),
    ],
)
def test_digits(pre: str, text: str, pieces: list[bytes]) -> None:
    tokenizer = Tokenizer.open(HERE, byte_level(pre))
    assert [tokenizer.token_bytes(i) for i in tokenizer.encode(text, bos=False)] == pieces


def test_qwen2_composes_characters() -> None:
    tokenizer = Tokenizer.open(HERE, byte_level("qwen2"))
    assert tokenizer.decode(tokenizer.encode("e\u0301")) == "é"


def test_special_tokens_are_recognised() -> None:
    start, end = BYTES.encode("<|im_start|><|im_end|>")
    assert BYTES.encode("hello<|im_end|>hello", bos=False)[1] == end
    assert start != end
    assert BYTES.decode([start, end]) == ""


def test_tokens_of_the_user_are_text() -> None:
    meta = byte_level(special=("<s>", "<tool>", "</s>"))
    meta["tokenizer.ggml.token_type"][-2] = USER_DEFINED
    tokenizer = Tokenizer.open(HERE, meta)
    tokens = tokenizer.encode("hello<tool></s>", bos=False)
    assert len(tokens) == 3
    assert tokenizer.decode(tokens) == "hello<tool>"


@pytest.mark.parametrize(
    ("model", "given", "begins"),
    [("gpt2", None, False), ("gpt2", True, True), ("llama", None, True), ("llama", False, False)],
)
def test_bos(model: str, given: bool | None, begins: bool) -> None:
    changes: dict[str, Any] = {} if given is None else {"add_bos_token": given}
    meta = byte_level(**changes) if model == "gpt2" else sentencepiece(**changes)
    tokenizer, bos = Tokenizer.open(HERE, meta), meta["tokenizer.ggml.bos_token_id"]
    assert (tokenizer.encode("hello")[0] == bos) == begins
    assert bos not in tokenizer.encode("hello", bos=False)


def test_no_space_before_the_text() -> None:
    tokenizer = Tokenizer.open(HERE, sentencepiece(add_space_prefix=False))
    assert [tokenizer.token_bytes(i) for i in tokenizer.encode("he", bos=False)] == [b"h", b"e"]
    assert tokenizer.decode(tokenizer.encode(" he", bos=False)) == " he"


def test_stop_tokens() -> None:
    meta = byte_level(special=("<s>", "<|im_end|>", "<|eot_id|>", "</s>"), eot_token_id=5)
    tokens = meta["tokenizer.ggml.tokens"]
    assert Tokenizer.open(HERE, meta).stop_tokens == {
        5,
        *(tokens.index(t) for t in ("<|im_end|>", "<|eot_id|>", "</s>")),
    }


@pytest.mark.parametrize(
    ("special", "ends"),
    [
        (("<|startoftext|>", "<|end|>", "<|call|>", "<|channel|>", "<|return|>"), ("<|call|>", "<|return|>")),
        (
            ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|observation|>", "<|endoftext|>"),
            ("<|user|>", "<|observation|>", "<|endoftext|>"),
        ),
        (("<s>", "<|user|>", "<|end|>", "<|endoftext|>"), ("<|end|>", "<|endoftext|>")),
        (("<bos>", "<start_of_turn>", "<end_of_turn>", "<eos>"), ("<end_of_turn>", "<eos>")),
        (("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>"), ("<｜end▁of▁sentence｜>", "<｜User｜>")),
        (("]~!b[", "]~b]", "[e~["), ("[e~[",)),
    ],
    ids=["gpt-oss", "glm", "phi", "gemma", "deepseek", "minimax"],
)
def test_every_end_of_a_turn_ends_an_answer(special: tuple[str, ...], ends: tuple[str, ...]) -> None:
    meta = byte_level(special=special)  # its last token is the file's own end
    assert {meta["tokenizer.ggml.tokens"][token] for token in Tokenizer.open(HERE, meta).stop_tokens} == set(ends)


def test_a_model_without_a_template() -> None:
    with pytest.raises(InvalidRequest, match="no chat template"):
        BYTES.encode_chat([{"role": "user", "content": "x"}])


def test_a_template_of_the_users_replaces_the_models(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("{{ eos_token }}mine <tool_call> {{ tools }} arguments")
    meta = byte_level(**{"tokenizer.chat_template": "theirs", "tokenizer.chat_template.tool_use": "theirs with tools"})
    assert (Tokenizer.open(HERE, meta).render_chat([]), Tokenizer.open(HERE, meta).tool_format) == ("theirs", None)
    tokenizer = Tokenizer.open(HERE, meta, tmp_path / "mine.jinja")
    assert tokenizer.render_chat([]).startswith("<|im_end|>mine")
    assert tokenizer.render_chat([], [{}]) == "<|im_end|>mine <tool_call> [{}] arguments"
    assert tokenizer.tool_format == HERMES


def test_a_template_of_the_users_serves_a_model_without_one(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("mine")
    assert Tokenizer.open(HERE, byte_level(), tmp_path / "mine.jinja").render_chat([]) == "mine"


@pytest.mark.parametrize(("content", "why"), [(b"{% if %}", "no valid Jinja"), (b"\xff\xfe", "cannot be read"), (None, "cannot be read")])
def test_a_template_of_the_users_that_is_none_is_a_wrong_setting(tmp_path: Path, content: bytes | None, why: str) -> None:
    if content is not None:
        (tmp_path / "mine.jinja").write_bytes(content)
    with pytest.raises(ConfigError, match=f"--chat-template .*mine.jinja.*{why}"):
        Tokenizer.open(HERE, byte_level(), tmp_path / "mine.jinja")


@pytest.mark.parametrize("unit", ["hello ", "a", " ", "🦙", "<|im_start|>"])
def test_a_text_that_is_far_too_long_is_found_out(unit: str) -> None:
    fits = unit * (1000 // len(BYTES.encode(unit, bos=False)))
    assert not BYTES.exceeds(fits, 1000)
    assert BYTES.exceeds(unit * 20_000, 1000)


def test_finding_out_costs_no_more_than_the_limit() -> None:
    class Counting:
        def __init__(self, backend: Any) -> None:
            self.backend, self.seen = backend, 0

        def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
            self.seen += sum(map(len, texts))
            return self.backend.encode_batch_fast(texts, **options)

    tokenizer = Tokenizer.open(HERE, byte_level())
    counting: Any = Counting(tokenizer._backend)
    tokenizer._backend = counting
    assert tokenizer.exceeds("a" * 1_000_000, 1000)
    assert 1000 < counting.seen < 50_000


def test_templates_write_the_special_tokens() -> None:
    source = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    meta = byte_level(add_bos_token=True, **{"tokenizer.chat_template": source})
    tokens = Tokenizer.open(HERE, meta).encode_chat([{"role": "user", "content": "hello"}])
    assert tokens == [
        meta["tokenizer.ggml.bos_token_id"],
        meta["tokenizer.ggml.tokens"].index("hello"),
        meta["tokenizer.ggml.eos_token_id"],
    ]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": "bert"}, UnsupportedModel, "'bert' is not supported"),
        ({"model": None}, UnsupportedModel, "not supported"),
        ({"pre": "of-tomorrow"}, UnsupportedModel, "'of-tomorrow' is not supported"),
        ({"merges": ["nospace"]}, CorruptModel, "does not hold together"),
        ({"tokens": 5}, CorruptModel, "does not hold together"),
        ({"token_type": [CONTROL] * 999}, CorruptModel, "does not hold together"),
    ],
    ids=str,
)
def test_vocabularies_that_cannot_be(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Tokenizer.open(HERE, byte_level(**changes))


@pytest.mark.parametrize("source", ["{% if %}", 5])
def test_a_template_that_is_none_costs_the_model_its_chats_alone(source: Any) -> None:
    with capture_logs() as said:
        made = Tokenizer.open(HERE, byte_level(**{"tokenizer.chat_template": source}))
    assert [line["log_level"] for line in said] == ["warning"] and "chat template" in said[0]["reason"]
    assert made.encode("hello", bos=False) == BYTES.encode("hello", bos=False)
    with pytest.raises(InvalidRequest, match=r"no chat template.*--chat-template"):
        made.encode_chat([{"role": "user", "content": "x"}])


def test_merges_of_what_a_vocabulary_lacks_are_left_out() -> None:
    meta = byte_level()
    meta["tokenizer.ggml.merges"] += ["zz top", "h o", "hello Ġw"]
    with capture_logs() as said:
        made = Tokenizer.open(HERE, meta)
    assert [(line["log_level"], line["merges"]) for line in said] == [("warning", 3)]
    assert made.encode("hello who", bos=False) == BYTES.encode("hello who", bos=False)


def test_a_file_without_a_vocabulary() -> None:
    meta = byte_level()
    del meta["tokenizer.ggml.tokens"]
    with pytest.raises(CorruptModel):
        Tokenizer.open(HERE, meta)


# Directories.


ADDED = ("café", "đem", " ¡hola", "<tool>", "x y", "日本", "Ġ")


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_added_tokens_are_plain_text(kind: str, tmp_path: Path) -> None:
    meta = byte_level(special=("<s>", *ADDED, "</s>"))
    meta["tokenizer.ggml.token_type"][-1 - len(ADDED) : -1] = [USER_DEFINED] * len(ADDED)
    meta["tokenizer.ggml.tokens"][-2] = "Ġ!"  # written as the vocabulary writes bytes, and none of them
    made = Tokenizer.open(HERE, meta)
    if kind == "directory":
        made._backend.save(str(tmp_path / "tokenizer.json"))
        made = Tokenizer.open(tmp_path)
    text = "hello café đem¡hola ¡hola<tool>x y日本Ġ!"
    tokens = made.encode(text, bos=False)
    assert made.decode(tokens) == text
    assert [made.token_bytes(i).decode() for i in tokens if i > 266][:3] == ["café", "đem", " ¡hola"]
    stream = TextStream(made, [], [])
    assert "".join(map(stream.push, tokens)) + stream.finish() == text


def test_a_vocabulary_that_knows_the_word_strip_is_not_one_that_strips(tmp_path: Path) -> None:
    meta = sentencepiece(add_space_prefix=False)
    meta["tokenizer.ggml.tokens"][-1] = "Strip"
    Tokenizer.open(HERE, meta)._backend.save(str(tmp_path / "tokenizer.json"))
    made = Tokenizer.open(tmp_path)
    assert made.decode(made.encode(" he", bos=False)) == " he"
