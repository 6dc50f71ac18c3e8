"""What `plan` shows of one machine whose memory is too small for a model: the policy, what limits it, and what more memory would bring."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from shoal.cli.show import limit_words, rate_words, speed_words
from shoal.config import EngineSettings
from shoal.errors import ConfigError, NotEnoughMemory
from shoal.executor.kept_plans import search_once
from shoal.placement.cost import ModelCost
from shoal.placement.hardware import Hardware
from shoal.placement.partition import place
from shoal.placement.policy import Grid, Outlook, Plan, more_memory
from shoal.placement.profile import Demand, LinkSpeeds, NodeProfile
from shoal.placement.streaming import StreamedWeights
from shoal.placement.workload import Workload
from shoal.sizes import human_bytes

_PROMPT, _ANSWER = 512, 128
"""Tokens of the requests that a plan is made for."""
_MEMORY = "memory"
_PREFILL_ROWS = 64


@dataclass(frozen=True)
class Another:
    """A second machine."""

    streams: bool
    """Whether weights are still read from disk."""
    gain: float
    """Tokens per second of all requests together, as a multiple of those of one machine. Both are those of a cluster's own placement,
    which knows less of a machine than its profile."""


@dataclass(frozen=True)
class StreamedPlan:
    model: ModelCost
    hardware: Hardware
    workload: Workload
    plan: Plan
    more: Outlook | None
    """With more memory."""
    another: Another | None
    """With a second machine like this one; None if that does not suffice, either."""
    measured: str
    """Where the hardware's numbers come from."""


def planned(model: ModelCost, hardware: Hardware, engine: EngineSettings, context: int, memory: int, measured: str) -> StreamedPlan:
    """memory: bytes that this machine's memory gives; 0: what the hardware's profile says. context: of the longest request. Raises
    NotEnoughMemory, ConfigError."""
    if all(tier.name != _MEMORY for tier in hardware.tiers):
        raise ConfigError(f"the hardware profile '{hardware.name}' has no tier named '{_MEMORY}'")
    if memory:
        tiers = tuple(replace(tier, size=memory) if tier.name == _MEMORY else tier for tier in hardware.tiers)
        hardware = replace(hardware, tiers=tiers)
    answer = min(_ANSWER, max(context // 2, 1))
    workload = Workload(max(min(_PROMPT, context - answer), 1), answer, engine.slots, engine.step_tokens, (engine.kv_type,))
    grid = None if len(hardware.devices) > 1 else _as_run(engine.slots)
    found = search_once(model, hardware, workload, grid)
    limited = found.prediction.limit in ("disk", _MEMORY) and sum(found.policy.weight_bytes[:1]) > 0 and len(hardware.tiers) > 1
    more = more_memory(model, hardware, workload, _MEMORY, grid) if limited else None
    another = _another(model, hardware, engine, context) if limited else None
    return StreamedPlan(model, hardware, workload, found, more, another, measured)


def _as_run(streams: int) -> Grid:
    """What a node without a GPU does: the whole batch at once, all keys and values in memory."""
    return Grid(Grid.of(streams).micro, (1,), (1.0,))


def _another(model: ModelCost, hardware: Hardware, engine: EngineSettings, context: int) -> Another | None:
    memory = next(tier.size for tier in hardware.tiers if tier.name == _MEMORY)
    processor = hardware.devices[0]
    disk = hardware.links[0].bytes_per_second if hardware.links else 0.0
    nodes = [NodeProfile(f"node-{i}", memory, processor.bytes_per_second, processor.curve("q4").at(_PREFILL_ROWS), disk) for i in (1, 2)]
    demand = Demand.of(engine.slots, engine.kv_tokens, context)
    try:
        one = place(nodes[:1], LinkSpeeds(), model, demand)
        two = place(nodes, LinkSpeeds(), model, demand, at_least=2)
    except NotEnoughMemory:
        return None
    return Another(two.streams, two.tokens_per_second / one.tokens_per_second)


def as_values(found: StreamedPlan) -> dict[str, Any]:
    """For a script."""
    policy, told = found.plan.policy, found.plan.prediction
    always, experts = _held(found)
    return {
        "hardware": found.hardware.name,
        "measured": found.measured,
        "prompt_tokens": found.workload.prompt,
        "answer_tokens": found.workload.answer,
        "batch": policy.batch,
        "micro_batch": policy.micro,
        "attention_on": policy.attention,
        "feed_forward_on": policy.feed_forward,
        "weight_bytes": dict(zip([tier.name for tier in found.hardware.tiers], policy.weight_bytes, strict=True)),
        "constant_share_held": round(always, 4),
        "expert_share_held": round(experts, 4) if experts is not None else None,
        "kv_bytes": _kv(found),
        "kv_share": policy.kv_share,
        "read_ahead": policy.ahead,
        "limit": told.limit,
        "utilisation": {name: round(part, 3) for name, part in told.decode.utilisation.items()},
        "predicted_tokens_per_second_one": round(told.stream_tokens_per_second, 2),
        "predicted_tokens_per_second_batch": round(told.decode_tokens_per_second, 2),
        "predicted_prefill_tokens_per_second": round(policy.batch * found.workload.prompt / told.prefill.seconds, 1),
        "more_memory": None
        if found.more is None
        else {
            "memory_bytes": found.more.size,
            "limit": found.more.plan.prediction.limit,
            "predicted_tokens_per_second_one": round(found.more.plan.prediction.stream_tokens_per_second, 2),
            "predicted_tokens_per_second_batch": round(found.more.plan.prediction.decode_tokens_per_second, 2),
        },
        "another_node": None
        if found.another is None
        else {
            "streams": found.another.streams,
            "predicted_tokens_per_second_batch": round(found.another.gain * told.decode_tokens_per_second, 2),
        },
    }


def as_lines(found: StreamedPlan) -> Iterator[tuple[str, str]]:
    """For people: what, and how much."""
    policy, told, work = found.plan.policy, found.plan.prediction, found.workload
    requests = f"{policy.batch} request{'s' * (policy.batch > 1)} of {work.prompt} + {work.answer} tokens at once"
    yield "batch", requests + (f", in micro-batches of {policy.micro}" if policy.micro < policy.batch else "")
    always, experts = _held(found)
    streamed = StreamedWeights(found.model)
    parts = [f"{always:.0%} of what every token needs ({human_bytes(always * streamed.always)})"]
    if experts is not None:
        every = streamed.total - streamed.always
        parts.append(f"{experts:.0%} of the experts ({human_bytes(experts * every)} of {human_bytes(every)})")
    yield "in memory", ", ".join(parts) + f", {human_bytes(policy.kv_share * _kv(found))} of keys and values"
    below = found.hardware.tiers[0].name
    if policy.weight_bytes[0] and found.hardware.device(policy.feed_forward).tier:
        yield f"from {below}", f"{human_bytes(policy.weight_bytes[0])} of weights stay there and are read when they are needed"
    yield "limit", limit_words(told.limit)
    yield "speed", speed_words(told.stream_tokens_per_second, told.decode_tokens_per_second, policy.batch)
    yield "prompts", f"{policy.batch * work.prompt / told.prefill.seconds:.0f} tokens/s"
    if found.more is not None:
        then = found.more.plan.prediction
        speed = speed_words(then.stream_tokens_per_second, then.decode_tokens_per_second, found.more.plan.policy.batch)
        yield "more memory", f"with {human_bytes(found.more.size)} {limit_words(then.limit)}: {speed}"
    if found.another is not None:
        how = "the model is still read from disk in part" if found.another.streams else "all weights are in memory"
        speed = f"about {rate_words(found.another.gain * told.decode_tokens_per_second)} tokens/s for {policy.batch} at once"
        yield "another node", f"with a second machine like this one {how}: {speed}"
    yield "measured", found.measured


def _held(found: StreamedPlan) -> tuple[float, float | None]:
    """The shares of what every row needs and of the experts that are held by the feed-forward's device; None without experts."""
    policy = found.plan.policy
    held = sum(policy.weight_bytes[found.hardware.device(policy.feed_forward).tier :])
    streamed = StreamedWeights(found.model)
    always, experts = streamed.shares(held)
    return always, experts if streamed.total > streamed.always else None


def _kv(found: StreamedPlan) -> int:
    work = found.workload
    return found.plan.policy.batch * sum(layer.kv_read(work.prompt + work.answer) for layer in found.model.layers)
