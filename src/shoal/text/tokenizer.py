"""Text to tokens and back, for a model in a GGUF file or a directory."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

from llguidance import LLTokenizer
from tokenizers import Tokenizer as Backend

from shoal.errors import ConfigError, CorruptModel, InvalidRequest, UserError
from shoal.text.chat import ChatTemplate
from shoal.text.tools import ToolFormat
from shoal.text.vocabulary import WHOLE_WORDS, from_gguf

# Tokens that end a turn in the families there are, whether or not the file's metadata says so (llama-vocab.cpp does the same).
_END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<end_of_turn>")


_SLICE, _SLACK = 16 << 10, 64
"""Characters that are counted at once; tokens by which cutting there may miscount."""


class Tokenizer:
    """`stop_tokens`: ids that end an answer. `template`: the chat template, None for a model that has none.
    `tool_template`: the one for conversations with tools. `named`: the texts of bos_token and eos_token, where there are such."""

    def __init__(
        self,
        backend: Backend,
        *,
        bos: int | None,
        add_bos: bool,
        stop_tokens: frozenset[int],
        named: Mapping[str, str],
        template: ChatTemplate | None,
        tool_template: ChatTemplate | None = None,
    ) -> None:
        self._backend = backend
        self._bos = bos
        self._add_bos = add_bos
        self.named = {name: text for name, text in named.items() if text}
        known = {backend.token_to_id(text) for text in _END_OF_TURN}
        self.stop_tokens = stop_tokens | frozenset(i for i in known if i is not None)
        self.template, self.tool_template = template, tool_template or template
        self._special = {i for i, t in backend.get_added_tokens_decoder().items() if t.special}
        self._byte_level = '"ByteLevel"' in json.dumps(json.loads(backend.to_str()).get("decoder"))
        self._strips = '"Strip"' in backend.to_str() and not self._byte_level

    @classmethod
    def open(cls, path: Path, meta: Mapping[str, Any] | None = None, chat_template: Path | None = None) -> Tokenizer:
        """path: a model directory, or a GGUF file whose metadata is `meta`. chat_template: in place of the model's own.

        Raises CorruptModel, UnsupportedModel, UserError.
        """
        return cls._from_directory(path, chat_template) if meta is None else cls._from_gguf(path, meta, chat_template)

    @classmethod
    def _from_gguf(cls, path: Path, meta: Mapping[str, Any], chat_template: Path | None) -> Tokenizer:
        backend = from_gguf(meta, path)

        def token(name: str) -> int | None:
            value = meta.get(f"tokenizer.ggml.{name}_token_id")
            if value is not None and (not isinstance(value, int) or not 0 <= value < backend.get_vocab_size()):
                raise CorruptModel(path, f"the {name} token {value!r} is not in the vocabulary")
            return value

        bos, eos = token("bos"), token("eos")
        ends = [eos, token("eot"), token("eom")]
        sources = {"default": meta.get("tokenizer.chat_template"), "tool_use": meta.get("tokenizer.chat_template.tool_use")}
        begins = meta.get("tokenizer.ggml.model") == "llama" or meta.get("tokenizer.ggml.pre") in WHOLE_WORDS
        special = {
            "bos_token": (backend.id_to_token(bos) or "") if bos is not None else "",
            "eos_token": (backend.id_to_token(eos) or "") if eos is not None else "",
        }
        return cls(
            backend,
            bos=bos,
            add_bos=bool(meta.get("tokenizer.ggml.add_bos_token", begins)),
            stop_tokens=frozenset(int(i) for i in ends if i is not None),
            named=special,
            **_templates(sources, special, path, chat_template),
        )

    @classmethod
    def _from_directory(cls, path: Path, chat_template: Path | None) -> Tokenizer:
        file = path / "tokenizer.json"
        if not file.exists():
            raise UserError(f"{path}: no tokenizer.json; save the model with a fast tokenizer")
        try:
            backend = Backend.from_file(str(file))
        except Exception as error:
            raise CorruptModel(file, f"not a tokenizer ({error})") from error
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
            sources = {"default": separate.read_text()}
        bos = backend.token_to_id(special("bos_token"))
        # The post-processor of tokenizer.json adds BOS where the model wants one.
        adds = bos is not None and bos in backend.encode("", add_special_tokens=True).ids
        names = {"bos_token": special("bos_token"), "eos_token": special("eos_token")}
        templates = _templates(sources, names, path, chat_template)
        return cls(backend, bos=bos, add_bos=adds, stop_tokens=frozenset(ends), named=names, **templates)

    @property
    def special(self) -> dict[str, int]:
        """Special tokens by what they are called."""
        return {str(self._backend.id_to_token(token)): token for token in self._special}

    def for_grammars(self, width: int) -> LLTokenizer:
        """As llguidance sees it, for a model with so many logits. It takes up to a second, and holds the interpreter's lock meanwhile."""
        ends = sorted(self.stop_tokens)
        return LLTokenizer(self._backend.to_str(), n_vocab=max(width, self.size), eos_token=ends or None)

    @property
    def size(self) -> int:
        return int(self._backend.get_vocab_size())

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """`bos`: begin with the model's BOS where it wants one. Special tokens are recognised in the text."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"the text is not valid Unicode: {error.reason}", "prompt") from error
        ids = self._ids(text)
        return [self._bos, *ids] if bos and self._add_bos and self._bos is not None else ids

    def _ids(self, text: str) -> list[int]:
        """The library lets go of the interpreter's lock for lists alone: a million characters take a second."""
        return self._backend.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def exceeds(self, text: str, limit: int) -> bool:
        """Whether a text has far more tokens than that: to find out costs no more than about so many tokens, however long the text is."""
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
        """How the model writes tool calls; None where its template has none, or in a format that is not known."""
        return None if self.tool_template is None else self.tool_template.tools

    def render_chat(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = (), answer: bool = True) -> str:
        """A conversation as the model's template writes it. answer: ready for the model's. Raises InvalidRequest."""
        template = self.tool_template if tools else self.template
        if template is None:
            raise InvalidRequest("this model has no chat template; use /v1/completions, or serve it with --chat-template", "messages")
        return template.render(messages, tools, answer)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The tokens of `render_chat`. Raises InvalidRequest."""
        return self.encode(self.render_chat(messages), bos=False)

    def decode(self, tokens: Sequence[int], special: bool = False) -> str:
        """special: with special tokens."""
        return str(self._backend.decode_batch([list(tokens)], skip_special_tokens=not special)[0])  # lets go of the interpreter's lock

    def text_bytes(self, token: int, first: bool) -> bytes:
        """What a token adds to a text: nothing where it is special; SentencePiece's first space is none of the text."""
        raw = b"" if token in self._special else self.token_bytes(token)
        return raw.removeprefix(b" ") if first and self._strips else raw

    def token_bytes(self, token: int) -> bytes:
        """What a token stands for, which need not be whole characters."""
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


def _templates(
    sources: Mapping[str, object], special: Mapping[str, str], path: Path, chosen: Path | None
) -> dict[str, ChatTemplate | None]:
    """A model's templates, by what `Tokenizer` calls them; or the user's. Raises CorruptModel, ConfigError."""
    if chosen is not None:
        try:
            source = chosen.read_text()
        except (OSError, UnicodeError) as error:
            raise _unusable(chosen, f"cannot be read ({error})") from error
        return {"template": ChatTemplate(source, special, chosen, _unusable)}
    names = {"template": "default", "tool_template": "tool_use"}
    return {name: ChatTemplate(source, special, path) if (source := sources.get(key)) else None for name, key in names.items()}


def _unusable(chosen: object, what: str) -> ConfigError:
    return ConfigError(f"--chat-template {chosen}: {what}")


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise CorruptModel(path, f"not JSON ({error})") from error
    if not isinstance(content, dict):
        raise CorruptModel(path, "not a JSON object")
    return cast("dict[str, Any]", content)


@cache
def _byte_of_character() -> dict[str, int]:
    """The printable characters that byte-level BPE writes bytes as (Radford et al., 2019, encoder.py)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(b): b for b in printable}
    others = [b for b in range(256) if b not in set(printable)]
    return table | {chr(256 + i): b for i, b in enumerate(others)}
