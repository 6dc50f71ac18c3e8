"""The best policy for a model on one machine, found by trying all of a grid, and what it will give."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from shoal.errors import NotEnoughMemory
from shoal.placement.cost import ModelCost
from shoal.placement.hardware import Hardware
from shoal.placement.room import Room
from shoal.placement.steps import Steps, StepTime
from shoal.placement.workload import Policy, Workload


@dataclass(frozen=True)
class Grid:
    """What is tried. The held weights are not in it: the most that fit are never slower than fewer."""

    micro: tuple[int, ...]
    """Sizes of micro-batches, rising."""
    batches: tuple[int, ...]
    """Numbers of micro-batches, rising."""
    kv_shares: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25, 0.0)

    @classmethod
    def of(cls, streams: int) -> Grid:
        """1, 2, 3, then steps of about a sixth, up to `streams` itself."""
        sizes = [1]
        while sizes[-1] < streams:
            sizes.append(min(max(sizes[-1] + 1, round(sizes[-1] * 1.17)), streams))
        return cls(tuple(sizes), tuple(sizes))


@dataclass(frozen=True)
class Prediction:
    decode: StepTime
    prefill: StepTime
    tokens_per_second: float
    """Of the batch: tokens of the answers over the time of prompts and answers."""
    decode_tokens_per_second: float
    """Of the batch, while it decodes."""
    stream_tokens_per_second: float
    """Of one request that runs alone, while it decodes, with the same weights held."""

    @property
    def limit(self) -> str:
        return self.decode.limit


@dataclass(frozen=True)
class Plan:
    policy: Policy
    prediction: Prediction


def predict(steps: Steps, policy: Policy) -> Prediction:
    """policy: one that fits, with its weights."""
    work = steps.workload
    decode, prefill = steps.decode(policy), steps.prefill(policy)
    alone = replace(policy, batch=1, micro=1)
    one = min(steps.decode(replace(alone, ahead=ahead)).seconds for ahead in (False, True))
    return Prediction(
        decode,
        prefill,
        policy.batch * work.answer / (prefill.seconds + work.answer * decode.seconds),
        policy.batch / decode.seconds,
        1 / one,
    )


def search(model: ModelCost, hardware: Hardware, workload: Workload, grid: Grid | None = None) -> Plan:
    """The policy with the most tokens per second for the batch; of equal ones, that with the smallest batch, then the first tried.

    Raises NotEnoughMemory, with what the policy that comes nearest lacks.
    """
    steps = Steps(model, hardware, workload)
    room = Room(steps)
    best: tuple[float, Policy] | None = None
    nearest: NotEnoughMemory | None = None
    for policy in _tried(room, grid or Grid.of(workload.streams)):
        if isinstance(policy, NotEnoughMemory):
            if nearest is None or policy.needed - policy.available < nearest.needed - nearest.available:
                nearest = policy
            continue
        seconds = steps.prefill(policy).seconds + workload.answer * steps.decode(policy).seconds
        speed = policy.batch * workload.answer / seconds
        if best is None or (speed, -policy.batch) > (best[0], -best[1].batch):
            best = speed, policy
    if best is None:
        assert nearest is not None
        raise nearest
    return Plan(best[1], predict(steps, best[1]))


def _tried(room: Room, grid: Grid) -> Iterator[Policy | NotEnoughMemory]:
    """All policies of the grid that fit, and why others do not."""
    hardware, workload = room.hardware, room.steps.workload
    nothing = (0,) * len(hardware.tiers)
    kinds = (True, False) if any(layer.experts for layer in room.model.layers) else (True,)
    for kv_type in workload.kv_types:
        for feeding in hardware.devices:
            for attending in hardware.devices:
                for share in grid.kv_shares if attending.tier else (1.0,):
                    for ahead in kinds:
                        for micro in grid.micro:
                            first = Policy(micro, micro, attending.name, feeding.name, share, kv_type, nothing, ahead)
                            yield from _batches(first, grid.batches, room)


def _batches(first: Policy, batches: Sequence[int], room: Room) -> Iterator[Policy | NotEnoughMemory]:
    for count in batches:
        if count * first.micro > room.steps.workload.streams:
            return
        if not first.ahead and room.steps.streaming.chooses_nearly_all(count * first.micro):
            return
        policy = replace(first, batch=count * first.micro)
        held = room.weights(policy)
        if isinstance(held, NotEnoughMemory):
            yield held
            return  # a larger batch needs more
        yield replace(policy, weight_bytes=held)


@dataclass(frozen=True)
class Outlook:
    """What a larger tier brings."""

    size: int
    """Bytes of the tier, about the least with which the limit is another one."""
    plan: Plan


def more_memory(model: ModelCost, hardware: Hardware, workload: Workload, tier: str, grid: Grid | None = None) -> Outlook | None:
    """The next size of a tier at which the limit is no longer the same, to 3 %; None if up to 32 times the size it stays."""
    now = hardware.tiers[[t.name for t in hardware.tiers].index(tier)].size
    limit = search(model, hardware, workload, grid).prediction.limit

    def planned(size: int) -> Plan:
        tiers = tuple(replace(t, size=size) if t.name == tier else t for t in hardware.tiers)
        return search(model, replace(hardware, tiers=tiers), workload, grid)

    low, high = now, now
    for _ in range(10):
        low, high = high, high * 3 // 2 if high < 32 * now else high
        found = planned(high)
        if found.prediction.limit != limit:
            break
        if high >= 32 * now:
            return None
    else:
        return None
    while high > low * 1.03:
        middle = (low + high) // 2
        tried = planned(middle)
        if tried.prediction.limit != limit:
            high, found = middle, tried
        else:
            low = middle
    return Outlook(high, found)
