"""The lines of a batch's output: how to write one, and what an output that was broken off anywhere contains."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from shoal.errors import ConfigError
from shoal.gateway.endpoints.batches.line import BatchItem, Invalid


def _written(custom_id: str | None, response: dict[str, Any] | None, error: dict[str, Any] | None, id: str) -> bytes:
    return json.dumps({"id": f"batch_req_{id}", "custom_id": custom_id, "response": response, "error": error}).encode() + b"\n"


def answered(asked: BatchItem, id: str, status: int, request_id: str, body: bytes) -> bytes:
    """An answer, whatever its status. id: unique among the results."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):  # from a proxy, for example
        value = {"error": {"message": body[:1000].decode(errors="replace"), "type": "server_error", "param": None, "code": None}}
    return _written(asked.custom_id, {"status_code": status, "request_id": request_id, "body": value}, None, id)


def unanswered(asked: BatchItem, id: str, code: str, message: str) -> bytes:
    return _written(asked.custom_id, None, {"code": code, "message": message}, id)


def refused(line: Invalid, id: str) -> bytes:
    """The result of a line that was not a request."""
    error = {"code": line.code, "message": f"line {line.line}: {line.message}", "param": line.param, "line": line.line}
    return _written(line.custom_id, None, error, id)


@dataclass
class Done:
    """What an output already contains."""

    ids: set[str] = field(default_factory=set[str])
    """custom_ids of requests that have a result."""
    lines: set[int] = field(default_factory=set[int])
    """Lines of the input that were not requests."""
    completed: int = 0
    """Results with status 200."""
    failed: int = 0
    """Results with any other status."""
    end: int = 0
    """Bytes up to which it is whole: an incomplete last line does not count."""

    def covers(self, line: BatchItem | Invalid) -> bool:
        return line.custom_id in self.ids if isinstance(line, BatchItem) else line.line in self.lines

    def take(self, line: bytes) -> None:
        """Adds one whole line. Raises ValueError if it is not a result."""
        match json.loads(line):
            case {"custom_id": None | str(), "response": None, "error": {"line": int(number)}}:
                self.lines.add(number)
            case {"custom_id": str(id), "response": {"status_code": int(status)}, "error": None}:
                self.ids.add(id)
                self.completed += status == 200
                self.failed += status != 200
            case {"custom_id": str(id), "response": None, "error": {"code": str()}}:
                self.ids.add(id)
                self.failed += 1
            case _:
                raise ValueError("no result")
        self.end += len(line)


def read(lines: Iterable[bytes], name: object) -> Done:
    """What the lines of an output, including their ends, contain. Raises ConfigError if it is not an output.

    name: of the file, for the message
    """
    done = Done()
    for number, raw in enumerate(lines, 1):
        if not raw.endswith(b"\n"):
            break
        try:
            done.take(raw)
        except (ValueError, RecursionError):
            raise ConfigError(f"{name}, line {number}: this is not a batch result; fix the line, or choose another file") from None
    return done
