"""Text to tokens and back: against ids that llama.cpp gave (recorded), transformers, and by properties."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from shoal.errors import ConfigError, CorruptModel, InvalidRequest, UnsupportedModel, UserError
from shoal.models.weights import GgufWeights
from shoal.text.detokenizer import TextStream
from shoal.text.tokenizer import Tokenizer
from shoal.text.tools import HERMES
from tests.support.vocabularies import CONTROL, USER_DEFINED, byte_level, sentencepiece

HERE = Path("vocabulary")
BYTES = Tokenizer.open(HERE, byte_level())
PIECES = Tokenizer.open(HERE, sentencepiece())
TEXT = st.one_of(st.text(max_size=60), st.text("hello w日本é🦙12 \n\t'", max_size=60))

# What llama-server's /tokenize (b9844) answers for SmolLM2-135M-Instruct, special tokens parsed.
SMOLLM2: list[tuple[str, list[int]]] = [
    ("", []),
    ("  a", [216, 253]),
    ("Hello, world!", [19556, 28, 905, 17]),
    ("tabs\t\tand\n\n\nnewlines \n \n x", [100, 7366, 197, 197, 397, 1116, 198, 2241, 5110, 3717, 3717, 1792]),
    (
        "def f(x):\n    return x**2 + 12345  # ok\n",
        [1604, 275, 24, 104, 727, 472, 1003, 1792, 828, 34, 1232, 216, 33, 34, 35, 36, 37, 216, 907, 10907, 198],
    ),
    (
        "12345 678,901.50 ½ ² ٣٤٥ 一二三",
        [
            33,
            34,
            35,
            36,
            37,
            216,
            38,
            39,
            40,
            28,
            41,
            32,
            33,
            30,
            37,
            32,
            216,
            16738,
            216,
            19133,
            216,
            164,
            113,
            164,
            114,
            164,
            115,
            216,
            22924,
            16736,
            230,
            7906,
            227,
        ],
    ),
    ("é Å NFC?", [85, 151, 219, 330, 151, 228, 442, 12236, 47]),
    ("日本語のテキスト", [23274, 115, 40993, 179, 120, 248, 26453, 11100, 224, 10391, 251, 10391, 134, 11100, 226]),
    ("한국어 텍스트", [33085, 246, 181, 130, 251, 183, 240, 129, 48138, 223, 231, 183, 228, 114, 184, 228, 133]),
    ("Привет, мир", [155, 249, 46879, 16464, 32547, 28, 41337, 7872, 9175]),
    ("مرحبا بالعالم", [21706, 20602, 44626, 31462, 10805, 45726, 22208, 34966, 22208, 21706]),
    ("नमस्ते दुनिया", [30658, 35090, 38770, 16525, 26293, 30581, 12335, 116, 42990, 30658, 27011, 32932, 18075]),
    (
        "🦙🦙🦙 👨\u200d👩\u200d👧\u200d👦 🇩🇪 ❤️",
        [
            10813,
            116,
            243,
            10813,
            116,
            243,
            10813,
            116,
            243,
            15107,
            235,
            118,
            321,
            231,
            10813,
            235,
            119,
            321,
            231,
            10813,
            235,
            117,
            321,
            231,
            10813,
            235,
            116,
            15107,
            225,
            119,
            10813,
            225,
            120,
            4636,
            247,
            114,
            31752,
        ],
    ),
    ("I'll we're DON'T it's I'LL 'S", [57, 3060, 392, 2316, 422, 2154, 23, 68, 357, 506, 339, 23, 16421, 637, 67]),
    ("<|im_start|>user\nhi<|im_end|>\n", [1, 4093, 198, 6004, 2, 198]),
    ("\xa0nbsp\u3000ideo\u200bzw", [15442, 94, 32093, 12109, 218, 8496, 321, 229, 106, 103]),
    ("\r\n\r\n\r x", [16980, 1792]),
    ("aaaaaaaaaaaaaaaaaa", [46880, 46880, 46880, 46880, 11510]),
    ("\x00\x01\x7f", [190, 191, 217]),
    ("   \n   \t  ", [333, 472, 197, 256]),
    ("(((()))){}[]", [48519, 1000, 7754, 6150, 75, 77]),
]


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2_weights: GgufWeights) -> Tokenizer:
    return Tokenizer.open(smollm2_weights.file.path, smollm2_weights.file.meta)


@pytest.mark.real
@pytest.mark.parametrize(("text", "tokens"), SMOLLM2, ids=range(len(SMOLLM2)))
def test_as_llama_cpp(text: str, tokens: list[int], smollm2_tokenizer: Tokenizer) -> None:
    assert smollm2_tokenizer.encode(text) == tokens


@pytest.mark.real
@settings(suppress_health_check=list(HealthCheck), deadline=None)
@given(st.text(st.characters(max_codepoint=0x1FFFF, exclude_categories=["Cs", "Cc"]), max_size=200))  # it lacks some bytes
def test_any_text_survives_the_trained_vocabulary(smollm2_tokenizer: Tokenizer, text: str) -> None:
    assert smollm2_tokenizer.decode(smollm2_tokenizer.encode(text)) == text


@pytest.mark.real
def test_a_chat_as_the_trained_template_writes_it(smollm2_tokenizer: Tokenizer) -> None:
    tokens = smollm2_tokenizer.encode_chat([{"role": "user", "content": "Hello"}])
    assert tokens[:2] == [1, 9690]
    assert tokens[-7:] == smollm2_tokenizer.encode("Hello<|im_end|>\n<|im_start|>assistant\n")
    assert smollm2_tokenizer.stop_tokens >= {2, 0}


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


def test_json_that_begins_with_a_byte_order_mark_or_is_not_utf8_is_read(tmp_path: Path) -> None:
    saved(tmp_path)
    config = {"eos_token": "<|im_end|>", "chat_template": "{{ eos_token }}", "note": "café"}
    (tmp_path / "tokenizer_config.json").write_bytes(json.dumps(config, ensure_ascii=False).encode("latin-1"))
    plain = (tmp_path / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(b"\xef\xbb\xbf" + plain)
    made = Tokenizer.open(tmp_path)
    assert made.render_chat([]) == "<|im_end|>"
    assert made.encode("hello", bos=False) == BYTES.encode("hello", bos=False)
