"""Text to tokens and back, for a model in a GGUF file or a directory."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from time import sleep
from typing import Any, cast

import structlog
from llguidance import LLTokenizer
from tokenizers import Tokenizer as Backend

from shoal.errors import ConfigError, CorruptModel, InvalidRequest
from shoal.text import harmony
from shoal.text.backend import from_directory, looks_like_control, without_marks, written
from shoal.text.chat import ChatTemplate
from shoal.text.marks import Marks, escape
from shoal.text.reasoning import ReasoningFormat
from shoal.text.sentencepiece import SentencePiece
from shoal.text.tools import ToolFormat
from shoal.text.vocabulary import END_OF_TURN, GLM, GLM_TURNS, begins_with_bos, from_gguf, pieces

log = structlog.get_logger()

_TURN = 1024  # tokens that are decoded at once: a millisecond
_SLICE, _SLACK = 16 << 10, 64
"""Characters that are counted at once; tokens by which cutting the text there may change the count."""


class Tokenizer:
    """`stop_tokens`: ids that end an answer. `template`: the chat template, None for a model that has none.
    `tool_template`: the one for conversations with tools. `named`: the texts of bos_token and eos_token, if there are any.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        bos: int | None,
        add_bos: bool,
        stop_tokens: frozenset[int],
        named: Mapping[str, str],
        templates: tuple[ChatTemplate | None, ChatTemplate | None],
        marks: Marks | None = None,
        pieces: SentencePiece | None = None,
    ) -> None:
        self._backend, self._marks, self._pieces = backend, marks, pieces
        self._bos = bos
        self._add_bos = add_bos
        self.named = {name: text for name, text in named.items() if text}
        channels = backend.token_to_id(harmony.CHANNEL) is not None and backend.token_to_id(harmony.CALL) is not None
        ends = [*(text for text in END_OF_TURN if text != harmony.END), harmony.CALL, harmony.RETURN] if channels else [*END_OF_TURN]
        ends += [] if backend.token_to_id(GLM) is None else GLM_TURNS
        known = frozenset(i for i in map(backend.token_to_id, ends) if i is not None)
        self.stop_tokens = (stop_tokens | known) - ({backend.token_to_id(harmony.END)} if channels else set())
        self.template, self.tool_template = templates[0], templates[1] or templates[0]
        self._added = {i: t.content for i, t in backend.get_added_tokens_decoder().items()}
        self._special = {i for i, t in backend.get_added_tokens_decoder().items() if t.special}
        decoder = written(backend.decoder)
        self._byte_level = '"ByteLevel"' in decoder
        self._strips = not self._byte_level and ('"Strip"' in decoder or ('"Metaspace"' in decoder and '"never"' not in decoder))

    @classmethod
    def open(
        cls, path: Path, meta: Mapping[str, Any] | None = None, chat_template: Path | None = None, trust_text: bool = False
    ) -> Tokenizer:
        """path: a model directory, or a GGUF file whose metadata is `meta`. chat_template: replaces the model's own.
        trust_text: recognise control tokens in everybody's text, not only in the chat template's.

        Raises CorruptModel, UnsupportedModel, UserError.
        """
        if meta is None:
            return cls._from_directory(path, chat_template, trust_text)
        return cls._from_gguf(path, meta, chat_template, trust_text)

    @classmethod
    def _from_gguf(cls, path: Path, meta: Mapping[str, Any], chat_template: Path | None, trust_text: bool) -> Tokenizer:
        backend = from_gguf(meta, path)

        def token(name: str) -> int | None:
            value = meta.get(f"tokenizer.ggml.{name}_token_id")
            if value is not None and (not isinstance(value, int) or not 0 <= value < backend.get_vocab_size()):
                raise CorruptModel(path, f"the {name} token {value!r} is not in the vocabulary")
            return value

        bos, eos = token("bos"), token("eos")
        ends = [eos, token("eot"), token("eom")]
        sources = {"default": meta.get("tokenizer.chat_template"), "tool_use": meta.get("tokenizer.chat_template.tool_use")}
        marks = None if trust_text else _marks(backend)
        special = {
            "bos_token": (backend.id_to_token(bos) or "") if bos is not None else "",
            "eos_token": (backend.id_to_token(eos) or "") if eos is not None else "",
        }
        return cls(
            backend,
            bos=bos,
            add_bos=bool(meta.get("tokenizer.ggml.add_bos_token", begins_with_bos(meta))),
            stop_tokens=frozenset(int(i) for i in ends if i is not None),
            named=special,
            marks=marks,
            pieces=pieces(meta, path),
            templates=_templates(sources, special, path, chat_template, marks),
        )

    @classmethod
    def _from_directory(cls, path: Path, chat_template: Path | None, trust_text: bool) -> Tokenizer:
        backend = from_directory(path)
        marks = None if trust_text else _marks(backend)
        config, generation = _json(path / "tokenizer_config.json"), _json(path / "generation_config.json")

        def special(name: str) -> str:
            value = config.get(name) or ""
            return str(cast("dict[str, Any]", value)["content"]) if isinstance(value, dict) else str(value)

        eos = generation.get("eos_token_id", _json(path / "config.json").get("eos_token_id"))
        listed = cast("list[Any]", eos) if isinstance(eos, list) else [] if eos is None else [eos]
        if not all(isinstance(end, int) for end in listed):
            raise CorruptModel(path, f"eos_token_id {eos!r} is no token")
        ends: set[int] = set(listed)
        if (token := backend.token_to_id(special("eos_token"))) is not None:
            ends.add(token)
        source = config.get("chat_template")
        sources: dict[str, object] = {"default": source}
        if isinstance(source, list):  # several, by name
            sources = {str(t.get("name")): t.get("template") for t in cast("list[dict[str, str]]", source)}
        if (separate := path / "chat_template.jinja").exists():
            sources = {"default": separate.read_text(errors="replace")}
        sources |= {more.stem: more.read_text(errors="replace") for more in (path / "additional_chat_templates").glob("*.jinja")}
        bos = backend.token_to_id(special("bos_token"))
        # The post-processor of tokenizer.json adds BOS if the model wants one.
        adds = bos is not None and bos in backend.encode("", add_special_tokens=True).ids
        names = {"bos_token": special("bos_token"), "eos_token": special("eos_token")}
        templates = _templates(sources, names, path, chat_template, marks)
        return cls(backend, bos=bos, add_bos=adds, stop_tokens=frozenset(ends), named=names, marks=marks, templates=templates)

    @property
    def special(self) -> dict[str, int]:
        """Special tokens by name."""
        return {str(self._backend.id_to_token(token)): token for token in self._special}

    @property
    def marks(self) -> dict[str, int]:
        """Tokens for which llguidance recognises no other spelling, by name: special ones, and added ones in angle brackets."""
        added: dict[int, Any] = self._backend.get_added_tokens_decoder()
        return {t.content: i for i, t in added.items() if t.special or (t.content.startswith("<") and t.content.endswith(">"))}

    def for_grammars(self, width: int) -> LLTokenizer:
        """The tokeniser for llguidance, for a model with `width` logits. It takes seconds if there are many merges
        (TinyLlama's: 5), and holds the interpreter's lock meanwhile."""
        ends = sorted(self.stop_tokens)
        return LLTokenizer(without_marks(self._backend), n_vocab=max(width, self.size), eos_token=ends or None)

    @property
    def size(self) -> int:
        return int(self._backend.get_vocab_size())

    def encode(self, text: str, bos: bool = True, control: bool = True) -> list[int]:
        """`bos`: begin with the model's BOS if it wants one. control: recognise control tokens in the text; otherwise they are
        ordinary text.

        Raises InvalidRequest.
        """
        return self.encode_marked(escape(text) if control else self.marked(text), bos)

    def marked(self, text: str) -> str:
        """Prepares text that somebody wrote for `encode_marked`: anything in it that reads like a control token stays text."""
        return escape(text) if self._marks is None else self._marks.text(text)

    def encode_marked(self, text: str, bos: bool = False) -> list[int]:
        """The tokens of a rendered conversation. Raises InvalidRequest."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"the text is not valid Unicode: {error.reason}", "prompt") from error
        ids = self._ids(text)
        return [self._bos, *ids] if bos and self._add_bos and self._bos is not None else ids

    def _ids(self, text: str) -> list[int]:
        """The library releases the interpreter's lock only for lists, and a million characters take a second."""
        if self._pieces is not None:
            return self._pieces.encode(text)
        return self._backend.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def exceeds(self, text: str, limit: int) -> bool:
        """Whether a text has far more tokens than `limit`: the check costs about as much as `limit` tokens, however long the text is."""
        if len(text) <= 4 * limit:
            return False
        tokens = 0
        for at in range(0, len(text), _SLICE):
            tokens += len(self._ids(text[at : at + _SLICE])) - _SLACK
            if tokens > limit:
                return True
        return False

    @property
    def tool_format(self) -> ToolFormat | None:
        """How the model writes tool calls; None if its template has none, or uses an unknown format."""
        return None if self.tool_template is None else self.tool_template.tools

    @property
    def reasoning_format(self) -> ReasoningFormat | None:
        """How the model writes its reasoning; None if its template has none."""
        return None if self.template is None else self.template.reasoning

    @property
    def variables(self) -> frozenset[str]:
        """Names that its chat templates read besides the conversation."""
        return frozenset[str]().union(*(t.variables for t in (self.template, self.tool_template) if t is not None))

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        answer: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """A conversation in the form of the model's template, for `encode_marked` (see marks.py). answer: whether the model's
        answer follows.

        Raises InvalidRequest.
        """
        template = self.tool_template if tools else self.template
        if template is None:
            raise InvalidRequest("this model has no chat template; use /v1/completions, or serve it with --chat-template", "messages")
        return template.render(messages, tools, answer, variables)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The tokens of `render_chat`. Raises InvalidRequest."""
        return self.encode_marked(self.render_chat(messages))

    def decode(self, tokens: Sequence[int], special: bool = False) -> str:
        """special: whether to include special tokens."""
        out, first = list[bytes](), True
        for at, token in enumerate(tokens):
            if at % _TURN == 0:
                sleep(0)  # give other threads a turn
            said = self.token_bytes(token) if special and token in self._special else self.text_bytes(token, first)
            first = first and not self.text_bytes(token, False)
            out.append(said)
        return b"".join(out).decode(errors="replace")

    def text_bytes(self, token: int, first: bool) -> bytes:
        """The bytes that a token adds to a text: none if it is special; SentencePiece's first space is not part of the text."""
        raw = b"" if token in self._special else self.token_bytes(token)
        return raw.removeprefix(b" ") if first and self._strips else raw

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token, which need not be whole characters."""
        if (added := self._added.get(token)) is not None:  # plain text, whatever a vocabulary does to its own tokens
            return added.encode()
        text = self._backend.id_to_token(token)
        if text is None:
            return b""
        if self._byte_level:
            table = _byte_of_character()
            if all(c in table for c in text):
                return bytes(table[c] for c in text)
            return text.encode()
        if match := re.fullmatch(r"<0x([0-9A-F]{2})>", text):
            return bytes([int(match[1], 16)])
        return text.replace("▁", " ").encode()


def _marks(backend: Backend) -> Marks:
    """For the control tokens: those that are special, and those that look like it."""
    added = {t.content: t.special or looks_like_control(t.content) for t in backend.get_added_tokens_decoder().values()}
    return Marks([text for text, controls in added.items() if controls], [text for text, controls in added.items() if not controls])


def _templates(
    sources: Mapping[str, object], special: Mapping[str, str], path: Path, chosen: Path | None, marks: Marks | None
) -> tuple[ChatTemplate | None, ChatTemplate | None]:
    """A model's templates, for conversations without and with tools, if they can be used; or the user's. Raises ConfigError."""
    if chosen is not None:
        try:
            source = chosen.read_text()
        except (OSError, UnicodeError) as error:
            raise _unusable(chosen, f"cannot be read ({error})") from error
        return ChatTemplate(source, special, chosen, _unusable, marks), None

    def own(name: str) -> ChatTemplate | None:
        try:
            return ChatTemplate(source, special, path, marks=marks) if (source := sources.get(name)) else None
        except CorruptModel as error:
            log.warning("the model's chat template cannot be used: give another one with --chat-template", reason=str(error))
            return None

    return own("default"), own("tool_use")


def _unusable(chosen: object, what: str) -> ConfigError:
    return ConfigError(f"--chat-template {chosen}: {what}")


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig", errors="replace"))
    except ValueError as error:
        raise CorruptModel(path, f"not JSON ({error})") from error
    if not isinstance(content, dict):
        raise CorruptModel(path, "not a JSON object")
    return cast("dict[str, Any]", content)


@cache
def _byte_of_character() -> dict[str, int]:
    """The printable characters that stand for bytes in byte-level BPE (Radford et al., 2019, encoder.py)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(b): b for b in printable}
    others = [b for b in range(256) if b not in set(printable)]
    return table | {chr(256 + i): b for i, b in enumerate(others)}
