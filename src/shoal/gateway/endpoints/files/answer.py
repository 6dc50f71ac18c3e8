"""The shapes of files, for the OpenAPI document."""

from __future__ import annotations

from typing import Literal

from shoal.gateway.schema.wire import Shape


class FileAnswer(Shape):
    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"]
    status_details: None
    expires_at: None


class FileList(Shape):
    object: Literal["list"]
    data: list[FileAnswer]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedFile(Shape):
    id: str
    object: Literal["file"]
    deleted: Literal[True]
