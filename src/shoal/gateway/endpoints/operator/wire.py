"""What /operator is asked and answers, where it is not an observed struct."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from pydantic import Field

from shoal.config import MOST_REPLICAS
from shoal.gateway.schema.wire import Wire
from shoal.observed.requests import RequestView


class NodeBody(Wire):
    """name: for rename. memory: for cap, a size like 8GiB; null: no limit."""

    action: Literal["drain", "remove", "rename", "cap"]
    name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    memory: Annotated[str, Field(min_length=1, max_length=40)] | None = None


ModelName = Annotated[str, Field(min_length=1, max_length=500)]


class ModelsBody(Wire):
    """One of: pull fetches a model to the head's machine; load serves one more, with `replicas` copies; unload ends one; alias is another
    name for the model or alias `to`, or no name any more if that is null."""

    pull: ModelName | None = None
    load: ModelName | None = None
    unload: ModelName | None = None
    alias: ModelName | None = None
    to: ModelName | None = None
    replicas: Annotated[int, Field(ge=1, le=MOST_REPLICAS)] | None = None


class KeyBody(Wire):
    """See `shoal keys create`. expires: seconds since 1970."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    role: Literal["user", "operator"] = "user"
    rpm: Annotated[int, Field(ge=0, le=10**9)] = 0
    tokens_per_minute: Annotated[int, Field(ge=0, le=10**12)] = 0
    concurrency: Annotated[int, Field(ge=0, le=10**6)] = 0
    expires: Annotated[int, Field(ge=1, le=2**40)] | None = None
    priority: Literal["urgent", "normal", "flex", "batch"] = "urgent"


class Me(msgspec.Struct, frozen=True):
    """key: its name; '': none was given. needs_key: whether the API requires one."""

    role: str
    key: str
    needs_key: bool


class RequestList(msgspec.Struct, frozen=True):
    requests: list[RequestView]


class KeyView(msgspec.Struct, frozen=True):
    """Times are seconds since 1970; null: never, or not yet. Limits: null: none. token: of a key that was just made; it is kept nowhere."""

    id: str
    name: str
    role: str
    state: str
    created: int
    expires: int | None
    last_used: int | None
    requests: int
    prompt_tokens: int
    completion_tokens: int
    rpm: int | None
    tokens_per_minute: int | None
    concurrency: int | None
    priority: str
    token: str | None = None


class KeyList(msgspec.Struct, frozen=True):
    keys: list[KeyView]
