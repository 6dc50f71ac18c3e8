"""The body that makes a batch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from shoal.gateway.schema.wire import Wire

_Key = Annotated[str, Field(max_length=64)]
_Value = Annotated[str, Field(max_length=512)]


class BatchRequest(Wire):
    inert: ClassVar[dict[str, tuple[Any, ...]]] = {"output_expires_after": (None,)}

    input_file_id: str
    endpoint: str
    completion_window: Literal["24h"]
    metadata: Annotated[dict[_Key, _Value], Field(max_length=16)] | None = None
