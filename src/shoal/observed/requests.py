"""Requests, and the way of their tokens through the stages."""

from __future__ import annotations

import msgspec


class RequestView(msgspec.Struct, frozen=True):
    """id: as the API names it. began, first, ended: moments; 0: not yet. key: the name of its key; '': none was needed.
    state: 'waiting', 'running', 'ended', 'failed' or 'left' (its client did)."""

    id: str
    began: float
    key: str = ""
    state: str = "waiting"
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated: int = 0
    first: float = 0.0
    ended: float = 0.0
    tokens_per_second: float = 0.0
    reason: str = ""


class HopSpan(msgspec.Struct, frozen=True, array_like=True):
    """A step in one stage: where its parts begin follows from their order. hop: the way to it; the others as in StageTrace."""

    hop: float
    wait: float
    prepare: float
    compute: float
    sample: float
    encode: float


class StepSpan(msgspec.Struct, frozen=True):
    """A step with rows of the request. at: when its scheduling began. Then come schedule, encode and send at the head, each stage, `back`,
    the way of the result, and apply. rows: of all requests; own: of this one. tokens: that it sampled for this request."""

    number: int
    epoch: int
    at: float
    rows: int
    own: int
    tokens: int
    schedule: float
    encode: float
    send: float
    stages: list[HopSpan]
    back: float
    apply: float


class RecoverySpan(msgspec.Struct, frozen=True):
    """An interruption in which the request waited. at: when the loss was noticed. parts: 'fence', 'load', 'link', 'refill', 'resume', in
    this order, those that have happened. silence: for how long the lost node had not been heard when it was noticed. refilled: tokens
    whose keys and values were filled anew. kept: tokens of the request that had been sampled before, none of which is lost."""

    at: float
    ended: float
    reason: str
    node: str
    silence: float
    parts: dict[str, float]
    refilled: int
    kept: int


class Timeline(msgspec.Struct, frozen=True):
    """epochs: names of the nodes of the stages, by epoch. next: give it as `after` for what comes later. lost: steps that are not kept
    any more."""

    request: RequestView
    epochs: dict[int, list[str]]
    steps: list[StepSpan]
    recoveries: list[RecoverySpan]
    next: int
    lost: int = 0
