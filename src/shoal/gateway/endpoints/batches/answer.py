"""The shapes of batches, for the OpenAPI document."""

from __future__ import annotations

from typing import Literal

from shoal.gateway.endpoints.batches.state import BatchStatus
from shoal.gateway.schema.wire import Shape


class BatchProblem(Shape):
    code: str
    message: str
    line: int | None
    param: str | None


class BatchProblems(Shape):
    object: Literal["list"]
    data: list[BatchProblem]


class BatchCounts(Shape):
    total: int
    completed: int
    failed: int


class BatchAnswer(Shape):
    id: str
    object: Literal["batch"]
    endpoint: str
    model: str
    errors: BatchProblems | None
    input_file_id: str
    completion_window: Literal["24h"]
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    expires_at: int
    in_progress_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: BatchCounts
    metadata: dict[str, str] | None


class BatchList(Shape):
    object: Literal["list"]
    data: list[BatchAnswer]
    first_id: str | None
    last_id: str | None
    has_more: bool
