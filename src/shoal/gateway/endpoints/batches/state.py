"""A batch and its statuses.

    validating ──▶ in_progress ──▶ finalizing ──▶ completed
     │    │  │       │    │   │        │
     │    │  └───────│────│───┴────────┴───────▶ failed      the input is no batch; what was written cannot be read
     │    └──────────│────┴────────────────────▶ expired     its window is over
     └───────────────┴──▶ cancelling ──────────▶ cancelled   (or failed)

The four on the right are its final statuses. A client's request moves it to cancelling; the runner makes all other moves.
Expired and cancelled batches keep their answers; the unanswered requests are in the error file. Every move is one transaction
on the current batch, so that of two conflicting moves the second is refused.
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from shoal.errors import Conflict

WINDOW = 24 * 3600
"""Seconds in which a batch must be answered: '24h', the only value in the API."""


class BatchStatus(enum.StrEnum):
    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


MOVES: dict[BatchStatus, frozenset[BatchStatus]] = {
    BatchStatus.VALIDATING: frozenset({BatchStatus.IN_PROGRESS, BatchStatus.CANCELLING, BatchStatus.EXPIRED, BatchStatus.FAILED}),
    BatchStatus.IN_PROGRESS: frozenset({BatchStatus.FINALIZING, BatchStatus.CANCELLING, BatchStatus.EXPIRED, BatchStatus.FAILED}),
    BatchStatus.FINALIZING: frozenset({BatchStatus.COMPLETED, BatchStatus.FAILED}),
    BatchStatus.CANCELLING: frozenset({BatchStatus.CANCELLED, BatchStatus.FAILED}),
    BatchStatus.COMPLETED: frozenset(),
    BatchStatus.FAILED: frozenset(),
    BatchStatus.EXPIRED: frozenset(),
    BatchStatus.CANCELLED: frozenset(),
}


class Problem(msgspec.Struct, frozen=True):
    """Why a batch failed. line: of the input, counted from 1; None if no line is at fault."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class Counts(msgspec.Struct, frozen=True):
    total: int = 0
    completed: int = 0
    failed: int = 0


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    owner: str
    model: str
    """The default model when the batch was created: it answers the requests that name none."""
    endpoint: str
    input_file_id: str
    created_at: int
    expires_at: int
    metadata: dict[str, str] | None = None
    models: tuple[str, ...] = ()
    """The models that its requests need; before they are read, all that there were when it was created."""
    status: BatchStatus = BatchStatus.VALIDATING
    reached: dict[BatchStatus, int] = {}
    """When it reached each status, in seconds since 1970."""
    counts: Counts = Counts()
    problems: tuple[Problem, ...] = ()
    output_file_id: str | None = None
    error_file_id: str | None = None

    @property
    def needed(self) -> tuple[str, ...]:
        """The models that it waits for."""
        return self.models or (self.model,)

    @property
    def open(self) -> bool:
        """Whether it has not ended."""
        return bool(MOVES[self.status])

    def wire(self) -> dict[str, Any]:
        """In the form of OpenAI's API."""
        errors = {"object": "list", "data": [msgspec.to_builtins(problem) for problem in self.problems]}
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "model": self.model if self.model in self.needed else self.needed[0],
            "errors": errors if self.problems else None,
            "input_file_id": self.input_file_id,
            "completion_window": f"{WINDOW // 3600}h",
            "status": str(self.status),
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            **{f"{status}_at": self.reached.get(status) for status in BatchStatus if status is not BatchStatus.VALIDATING},
            "request_counts": msgspec.to_builtins(self.counts),
            "metadata": self.metadata,
        }


def moved(batch: Batch, to: BatchStatus, now: float, **changes: Any) -> Batch:
    """The batch in its next status. Raises Conflict if that status cannot follow the current one.

    changes: other fields that change with it
    """
    if to not in MOVES[batch.status]:
        raise Conflict(f"{batch.id} is {batch.status}, and so cannot become {to}", "batch_id")
    return msgspec.structs.replace(batch, status=to, reached={**batch.reached, to: int(now)}, **changes)
