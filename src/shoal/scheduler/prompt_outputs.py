"""Queries about prompt tokens and their answers in results: scores, and the mean of hidden states."""

from __future__ import annotations

from shoal.request import Score, TokenChunk
from shoal.scheduler.plan import PromptOutputs, PromptQuery
from shoal.scheduler.sequence import Sequence


def query(sequence: Sequence, at: int) -> PromptQuery | None:
    """The query about the tokens from `at` to the last scheduled one."""
    if not sequence.asking or at < sequence.asked:
        return None
    request = sequence.request
    sequence.asked = min(sequence.scheduled, sequence.prompt_length)
    followers = request.prompt[at + 1 : sequence.scheduled + 1] if request.prompt_logprobs is not None else []
    return PromptQuery(followers, request.prompt_logprobs or 0, request.embed)


def answered(found: PromptOutputs | None, asked: PromptQuery) -> bool:
    """Whether it answers everything that was asked, or says why it cannot."""
    return found is not None and (bool(found.fault) or (len(found.scores) == len(asked.followers) and bool(found.total) == asked.total))


def outputs(sequence: Sequence, upto: int, found: PromptOutputs) -> list[TokenChunk]:
    """What a result says about a prompt up to token `upto`: each token once, in order."""
    request, out = sequence.request, list[TokenChunk]()
    first = [] if sequence.examined or request.prompt_logprobs is None else [Score(request.prompt[0], None)]
    if scores := (*first, *found.scores):
        out.append(TokenChunk(request.id, 0, None, cached=sequence.cached, scores=scores))
    sequence.examined = min(upto, sequence.prompt_length)
    if request.embed:
        sequence.mean.add(found.total)
        if not sequence.examining:
            mean = sequence.mean.over(sequence.prompt_length)
            out.append(TokenChunk(request.id, 0, None, cached=sequence.cached, embedding=mean))
    return out
