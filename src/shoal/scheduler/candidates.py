"""Which sequences a step is offered, in which order."""

from __future__ import annotations

from collections.abc import Iterator

from shoal.scheduler.sequence import Sequence

_DRAW_LEAD, _PROMPT_LEAD = 8, 64
"""Steps that a sample rested, or that a prompt came, earlier than it did, per class that it is higher."""
_TOTALS = 32  # sums of hidden states that one result brings: 2 MiB where a hidden state is 8,192 wide


def share(running: list[Sequence], depth: int) -> int:
    """Samples of a step where all streams are spread evenly over the stages."""
    return -(-sum(1 for s in running if s.active) // depth)


def too_few(running: list[Sequence], depth: int) -> bool:
    """Where every stage has a step: there is no prompt to go on with, and the samples that are ready are fewer than a step's share: the others are on
    their way. Streams that came one by one thus come to share steps, whose weights are read once for all of them."""
    if any(not s.awaiting and not s.decoding and s.pending > 0 for s in running):
        return False
    return sum(1 for s in running if s.decoding) < share(running, depth)


def candidates(running: list[Sequence], depth: int) -> Iterator[tuple[Sequence, float]]:
    """Sequences that can move: samples that rested longest first, then prompts, oldest first. With a prompt: how much it may take of what the step has left.

    A higher class counts as having rested, or come, some steps longer. Where the oldest prompt is not the shortest of its class, the shortest
    takes up to half before it: so a short one does not wait for all that are ahead of it, and the oldest one always goes on.
    """
    decoding = sorted((s for s in running if s.decoding), key=lambda s: s.last_step + _DRAW_LEAD * s.standing)
    for sequence in decoding[: share(running, depth)]:
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
