"""A multipart/form-data body: bytes in, parts out; only short fields are kept."""

from __future__ import annotations

from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from shoal.errors import InvalidRequest

_MOST_PARTS, _LONGEST_FIELD = 16, 4096


@dataclass(frozen=True)
class Field:
    name: str
    value: str


@dataclass(frozen=True)
class FileBegun:
    name: str
    filename: str


@dataclass(frozen=True)
class FileData:
    data: bytes


Part = Field | FileBegun | FileData


class Multipart:
    def __init__(self, content_type: str) -> None:
        """Raises InvalidRequest."""
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not boundary:
            raise InvalidRequest("the body must be multipart/form-data with a boundary", "Content-Type")
        self._out: list[Part] = []
        self._header: list[bytearray] = []
        self._disposition = ""
        self._name, self._value, self._in_file = "", bytearray(), False
        self._parts, self._ended = 0, False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_begin": self._on_header_begin,
                    "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_part_end": self._on_part_end,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise InvalidRequest(f"the body is not a valid form: {error}", "Content-Type") from None

    def feed(self, data: bytes) -> list[Part]:
        """Raises InvalidRequest."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise InvalidRequest(f"the body is not a valid form: {error}") from None
        out, self._out = self._out, []
        return out

    def finish(self) -> None:
        """Ends the body. Raises InvalidRequest if the form is incomplete."""
        if not self._ended:
            raise InvalidRequest("the form is cut short")

    def _on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > _MOST_PARTS:
            raise InvalidRequest(f"the form has more than {_MOST_PARTS} parts")
        self._disposition, self._value, self._in_file = "", bytearray(), False

    def _on_header_begin(self) -> None:
        self._header = [bytearray(), bytearray()]

    def _on_header_end(self) -> None:
        if bytes(self._header[0]).lower() == b"content-disposition":
            self._disposition = self._header[1].decode("latin-1")

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode(errors="replace")
        if b"filename" in options:
            self._in_file = True
            self._out.append(FileBegun(self._name, options[b"filename"].decode(errors="replace")))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._out.append(FileData(bytes(data[start:end])))
            return
        self._value += data[start:end]
        if len(self._value) > _LONGEST_FIELD:
            raise InvalidRequest(f"the field has more than {_LONGEST_FIELD} bytes", self._name[:64])

    def _on_part_end(self) -> None:
        if not self._in_file:
            self._out.append(Field(self._name, self._value.decode(errors="replace")))

    def _on_end(self) -> None:
        self._ended = True
