"""The lines of a batch's input: bytes in, requests or faults out."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

LONGEST_LINE = 4 << 20
"""Bytes; the same limit as for any request body."""
_LONGEST_ID = 512
_FIELDS = {"custom_id", "method", "url", "body"}


@dataclass(frozen=True)
class BatchItem:
    """A request of a batch. line: its number, from 1."""

    line: int
    custom_id: str
    url: str
    body: bytes
    """JSON."""
    model: str | None = None
    """The name that the body gives its model; None: none, or none that is a text."""


@dataclass(frozen=True)
class Invalid:
    """An invalid line. custom_id: as far as it could be read."""

    line: int
    code: str
    message: str
    param: str | None = None
    custom_id: str | None = None


Line = BatchItem | Invalid


def lines_of(file: BinaryIO) -> Iterator[bytes]:
    """A file's lines without their ends; of a line that is too long, one byte more than the limit."""
    while raw := file.readline(LONGEST_LINE + 1):
        if not raw.endswith(b"\n"):
            rest = raw
            while rest and not rest.endswith(b"\n"):
                rest = file.readline(LONGEST_LINE)
        yield raw.removesuffix(b"\n")


def parsed(lines: Iterable[bytes], urls: Collection[str]) -> Iterator[Line]:
    """Every line that is not blank. A repeated custom_id is an Invalid with the code duplicate_custom_id.

    urls: the endpoints that may be used
    """
    seen: dict[str, int] = {}
    for number, raw in enumerate(lines, 1):
        if number == 1:
            raw = raw.removeprefix(BOM_UTF8)
        if not raw.strip():
            continue
        line = _parse(number, raw, urls)
        if isinstance(line, BatchItem):
            first = seen.setdefault(line.custom_id, number)
            if first != number:
                message = f"custom_id '{line.custom_id[:64]}' is that of line {first} already"
                line = Invalid(number, "duplicate_custom_id", message, "custom_id", line.custom_id)
        yield line


def _parse(number: int, raw: bytes, urls: Collection[str]) -> Line:
    if len(raw) > LONGEST_LINE:
        return Invalid(number, "line_too_long", f"the line is longer than {LONGEST_LINE} bytes")
    try:
        value = json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        return Invalid(number, "invalid_json_line", f"the line is not valid JSON: {error}")
    if not isinstance(value, dict):
        return Invalid(number, "invalid_json_line", "the line must be a JSON object")
    fields = cast("dict[str, Any]", value)
    id = fields.get("custom_id")
    if not (isinstance(id, str) and 1 <= len(id) <= _LONGEST_ID and _is_text(id)):
        return Invalid(number, "invalid_custom_id", f"custom_id must be text of 1 to {_LONGEST_ID} characters", "custom_id")

    def invalid(code: str, message: str, param: str) -> Invalid:
        return Invalid(number, code, message, param, id)

    if unknown := {name for name in fields if name not in _FIELDS}:
        name = min(unknown).encode(errors="replace").decode()[:64]
        return invalid("unknown_parameter", f"unknown parameter '{name}'", name)
    if fields.get("method") != "POST":
        return invalid("invalid_method", "method must be POST", "method")
    url, body = fields.get("url"), fields.get("body")
    if not isinstance(url, str) or url not in urls:
        return invalid("invalid_url", f"url must be {' or '.join(sorted(urls))}", "url")
    if not isinstance(body, dict):
        return invalid("invalid_body", "body must be a JSON object", "body")
    if cast("dict[str, Any]", body).get("stream"):
        return invalid("unsupported_parameter", "the answers of a batch are not streamed; leave stream out", "body.stream")
    try:
        model = cast("dict[str, Any]", body).get("model")
        return BatchItem(number, id, url, json.dumps(body).encode(), model if isinstance(model, str) else None)
    except (ValueError, RecursionError) as error:
        return invalid("invalid_body", f"the body cannot be written as JSON: {error}", "body")


def _is_text(id: str) -> bool:
    """Whether it has no lone surrogates."""
    return id.encode(errors="replace").decode() == id
