"""Which sequences a step is offered, and in which order."""

from __future__ import annotations

from collections.abc import Iterator

from shoal.scheduler.batching import StepShare
from shoal.scheduler.sequence import Sequence

_DRAW_LEAD, _PROMPT_LEAD = 8, 64
"""Steps per higher class by which a sample counts as having waited longer, or a prompt as having arrived earlier."""
_TOTALS = 32  # most sums of hidden states in one result: 2 MiB with hidden states 8,192 wide


def share(running: list[Sequence], depth: int, per_token: float) -> StepShare:
    """What each of `depth` steps takes of the streams. per_token: see StepShare."""
    return StepShare.of((len(s.tokens) for s in running if s.active), depth, per_token)


def too_few(running: list[Sequence], share: StepShare) -> bool:
    """Whether a step is better delayed when every stage already has one: no prompt can go on, and fewer samples are ready than a step's
    share because the others are on their way. Streams that arrive one by one thus come to share steps, whose weights are read once for
    all of them."""
    if any(not s.awaiting and not s.decoding and s.pending > 0 for s in running):
        return False
    return not share.filled(sum(share.weight(len(s.tokens)) for s in running if s.decoding))


def _samples(running: list[Sequence], share: StepShare) -> Iterator[Sequence]:
    """Those that waited longest first, but none that makes a step much heavier than the others while a lighter one is there."""
    total = 0.0
    for sequence in sorted((s for s in running if s.decoding), key=lambda s: s.last_step + _DRAW_LEAD * s.standing):
        weight = share.weight(len(sequence.tokens))
        if not total or share.holds(total + weight):
            total += weight
            yield sequence


def candidates(running: list[Sequence], share: StepShare) -> Iterator[tuple[Sequence, float]]:
    """The sequences that can move: samples that waited longest first, then prompts, oldest first. With each comes the share of what is
    left of the step that it may take.

    A higher class counts as having waited, or arrived, some steps longer. If the oldest prompt is not the shortest of its class, the
    shortest goes first and takes up to half. So a short prompt does not wait for all those ahead of it, and the oldest always goes on.
    """
    for sequence in _samples(running, share):
        yield sequence, 1.0
    prompts = [s for s in running if not s.awaiting and not s.decoding and s.pending > 0]
    prompts.sort(key=lambda s: s.entered[0] + _PROMPT_LEAD * s.standing)
    if not prompts:
        return
    shortest = min((s for s in prompts if s.standing <= prompts[0].standing), key=lambda s: s.pending)
    totals = _TOTALS
    for sequence in prompts if shortest is prompts[0] else (shortest, *(s for s in prompts if s is not shortest)):
        if totals or not sequence.request.embed:
            totals -= sequence.request.embed
            yield sequence, 0.5 if sequence is shortest and shortest is not prompts[0] else 1.0
