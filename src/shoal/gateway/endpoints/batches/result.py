"""The lines of a batch's output: how one is written, and what an output holds that was broken off anywhere."""

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
    """An answer, whatever its status. id: no other result's."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):  # of a proxy, say
        value = {"error": {"message": body[:1000].decode(errors="replace"), "type": "server_error", "param": None, "code": None}}
    return _written(asked.custom_id, {"status_code": status, "request_id": request_id, "body": value}, None, id)


def unanswered(asked: BatchItem, id: str, code: str, message: str) -> bytes:
    return _written(asked.custom_id, None, {"code": code, "message": message}, id)


def refused(line: Invalid, id: str) -> bytes:
    """A line that was no request."""
    error = {"code": line.code, "message": f"line {line.line}: {line.message}", "param": line.param, "line": line.line}
    return _written(line.custom_id, None, error, id)


@dataclass
class Done:
    """What an output holds already."""

    ids: set[str] = field(default_factory=set[str])
    """custom_ids of requests that have a result."""
    lines: set[int] = field(default_factory=set[int])
    """Lines of the input that were no requests."""
    completed: int = 0
    """Results with status 200."""
    failed: int = 0
    """Requests with any other."""
    end: int = 0
    """Bytes up to which it is whole: a last line without its end counts for nothing."""

    def covers(self, line: BatchItem | Invalid) -> bool:
        return line.custom_id in self.ids if isinstance(line, BatchItem) else line.line in self.lines

    def take(self, line: bytes) -> None:
        """One more whole line. Raises ValueError where it is no result."""
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
    """What the lines of an output say, their ends included. Raises ConfigError where it is none.

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
