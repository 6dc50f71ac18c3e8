"""The files of one batch: its input, and the two that it writes."""

from __future__ import annotations

import os
import secrets
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from shoal.errors import UnknownObject
from shoal.gateway.endpoints.batches.line import BatchItem, Invalid, Line, lines_of, parsed
from shoal.gateway.endpoints.batches.output import Output
from shoal.gateway.endpoints.batches.result import answered, unanswered
from shoal.gateway.endpoints.batches.state import Batch, Counts, Problem
from shoal.gateway.endpoints.files.store import OUTPUT, File, FileStore
from shoal.gateway.http.in_process import Answered

_MOST_PROBLEMS = 100


def lines(path: Path, urls: Collection[str]) -> Iterator[Line]:
    """A file's lines, read as they are needed. Raises OSError."""
    with path.open("rb") as file:
        yield from parsed(lines_of(file), urls)


@dataclass
class Checked:
    """An input that was read. problems: why it is not a batch, the first hundred reasons. count: its requests. models: that they name;
    None: some name none."""

    problems: list[Problem] = field(default_factory=list[Problem])
    count: int = 0
    models: set[str | None] = field(default_factory=set[str | None])


def checked(batch: Batch, files: FileStore, most: int) -> Checked:
    """most: requests. Raises OSError."""
    done = Checked()
    found, count = done.problems, 0
    try:
        files.find(batch.owner, batch.input_file_id)
        for line in lines(files.path(batch.input_file_id), (batch.endpoint,)):
            count += 1
            if isinstance(line, Invalid):
                found.append(Problem(line.code, line.message, line.line, line.param))
            elif count > most:
                found.append(Problem("too_many_requests", f"a batch has at most {most} requests", line.line))
            else:
                done.models.add(line.model)
            if len(found) >= _MOST_PROBLEMS or count > most:
                break
    except UnknownObject as error:
        found.append(Problem("file_not_found", str(error), param="input_file_id"))
    if not count and not found:
        found.append(Problem("empty_file", "the file has no requests", param="input_file_id"))
    done.count = count
    return done


class BatchOutputs:
    """The outputs stay open as long as this object. They are stored with the files, and become files of the API when the batch ends."""

    def __init__(self, batch: Batch, files: FileStore) -> None:
        """Raises ConfigError, OSError."""
        self._batch, self._files = batch, files
        number = batch.id.removeprefix("batch_")
        self._names = f"file-{number}-output", f"file-{number}-errors"
        self._good = Output(files.path(self._names[0]))
        try:
            self._bad = Output(files.path(self._names[1]))
        except BaseException:
            self._good.close()
            raise
        self.total = batch.counts.total

    @property
    def counts(self) -> Counts:
        done = self._good.done.completed, self._bad.done.failed
        return Counts(max(self.total, sum(done)), *done)

    def left(self) -> Iterator[BatchItem]:
        """Requests that have no result yet. Raises OSError."""
        for line in lines(self._files.path(self._batch.input_file_id), (self._batch.endpoint,)):
            if isinstance(line, BatchItem) and not (self._good.done.covers(line) or self._bad.done.covers(line)):
                yield line

    async def answered(self, asked: BatchItem, answer: Answered) -> None:
        """Returns when the answer is on the disk. Raises OSError."""
        id = secrets.token_hex(12)
        line = answered(asked, id, answer.status, answer.headers.get("x-request-id", f"req_{id}"), answer.body)
        await (self._good if answer.status == 200 else self._bad).append(line)

    def give_up(self, code: str, message: str) -> None:
        """Gives all remaining requests this error. Raises OSError."""
        for asked in self.left():
            self._bad.put(unanswered(asked, secrets.token_hex(12), code, message))

    def hand_over(self, now: float) -> tuple[str | None, str | None]:
        """Stops writing; outputs that are not empty become files. Raises OSError, CapacityError."""
        self.close()
        found: list[str | None] = []
        for id, kind in zip(self._names, ("output", "errors"), strict=True):
            size = self._files.path(id).stat().st_size
            if size:
                self._files.add(File(id, self._batch.owner, OUTPUT, f"{self._batch.id}_{kind}.jsonl", size, int(now)))
            else:
                os.unlink(self._files.path(id))
            found.append(id if size else None)
        return found[0], found[1]

    def close(self) -> None:
        """Raises OSError."""
        try:
            self._good.close()
        finally:
            self._bad.close()

    def abandon(self) -> None:
        """Closes them after a known error."""
        self._good.abandon()
        self._bad.abandon()
