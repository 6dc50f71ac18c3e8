"""The JSON of a completion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shoal.gateway.answers.writer import Event, Piece, Usage
from shoal.gateway.engine import Engine
from shoal.gateway.http.faults import Fault
from shoal.request import Score, TokenChunk
from shoal.text.detokenizer import Detokenizer

if TYPE_CHECKING:
    from shoal.gateway.endpoints.completions.job import CompletionJob


@dataclass(frozen=True)
class _Prompt:
    tokens: list[int]
    echo: str | None
    """Its text, if it precedes the answer."""
    choices: int


class _Logprobs:
    """Of one choice: each token, its alternatives, and the character of the text at which it begins."""

    def __init__(self, engine: Engine, prompt: _Prompt) -> None:
        self._tokenizer = engine.tokenizer
        self._detokenizer = Detokenizer(engine.tokenizer, () if prompt.echo is not None else prompt.tokens)
        self._offset = 0

    def of(self, piece: Piece) -> dict[str, list[Any]]:
        out: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for scored in (*piece.scores, *piece.chunks):
            if scored.token is None:
                continue
            out["tokens"].append(self._text(scored.token))
            out["token_logprobs"].append(scored.logprob)
            out["top_logprobs"].append(self._tops(scored) or None)
            out["text_offset"].append(self._offset)
            self._offset += len(self._detokenizer.push(scored.token))
        return out

    def _tops(self, scored: Score | TokenChunk) -> dict[str, float]:
        """The alternatives by text, and the token itself. If several have the same text, the likeliest is kept, but the token
        itself always."""
        likely = {a.token: a.logprob for a in scored.alternatives}
        if scored.token is None or scored.logprob is None:
            own = None
        else:
            own, likely = self._text(scored.token), {**likely, scored.token: scored.logprob}
        tops: dict[str, float] = {}
        for token, logprob in likely.items():
            text = self._text(token)
            taken = text in tops or (text == own and token != scored.token)
            tops[f"token_id:{token}" if taken else text] = logprob
        return tops

    def _text(self, token: int) -> str:
        """A token's text, in OpenAI's form if it is only part of a character."""
        raw = self._tokenizer.token_bytes(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


class CompletionWriter:
    def __init__(self, engine: Engine, job: CompletionJob) -> None:
        self._engine, self._job = engine, job
        prompts = [_Prompt(r.prompt, job.echo[i] if job.echo else None, r.n) for i, r in enumerate(job.requests)]
        self._prompts = [prompt for prompt in prompts for _ in range(prompt.choices)]
        self._logprobs = [_Logprobs(engine, prompt) for prompt in self._prompts] if job.logprobs else None
        self._begun: set[int] = set()

    def _frame(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._job.id,
            "object": "text_completion",
            "created": self._job.created,
            "model": self._engine.name,
            "service_tier": self._job.service_tier,
            "system_fingerprint": f"shoal-{self._engine.created}",
            "choices": choices,
        }

    def _chunk(self, choices: list[dict[str, Any]], usage: Usage | None = None) -> Event:
        told = {"usage": None if usage is None else usage.wire()} if self._job.include_usage else {}
        return Event({**self._frame(choices), **told})

    def opening(self) -> Sequence[Event]:
        return ()

    def piece(self, piece: Piece) -> Sequence[Event]:
        return [self._chunk([self._choice(piece)])]

    def ending(self, usage: Usage) -> Sequence[Event]:
        return [*([self._chunk([], usage)] if self._job.include_usage else []), Event("[DONE]")]

    def failed(self, what: Fault) -> Sequence[Event]:
        return [Event(what.body)]

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> dict[str, Any]:
        choices: list[dict[str, Any]] = []
        at = 0
        while at < len(self._prompts):
            beside = self._prompts[at].choices
            merged = [_merged(index, [p for p in pieces if p.choice == index]) for index in range(at, at + beside)]
            best = sorted(merged, key=_likelihood, reverse=True)[: self._job.kept] if beside > self._job.kept else merged
            choices += [{**self._choice(piece), "index": len(choices) + i} for i, piece in enumerate(best)]
            at += beside
        return {**self._frame(choices), "usage": usage.wire()}

    def _choice(self, piece: Piece) -> dict[str, Any]:
        echo = self._prompts[piece.choice].echo if piece.choice not in self._begun else None
        self._begun.add(piece.choice)
        return {
            "index": piece.choice,
            "text": (echo or "") + piece.text,
            "logprobs": self._logprobs[piece.choice].of(piece) if self._logprobs is not None else None,
            "finish_reason": None if piece.finish is None else str(piece.finish),
            **({"degraded_tokens": piece.degraded} if piece.degraded else {}),
        }


def _merged(index: int, pieces: Sequence[Piece]) -> Piece:
    """Merges all pieces of a choice into one."""
    return Piece(
        index,
        "".join(p.text for p in pieces),
        [chunk for p in pieces for chunk in p.chunks],
        next((p.finish for p in pieces if p.finish is not None), None),
        max((p.upto for p in pieces), default=0),
        next((p.scores for p in pieces if p.scores), ()),
        degraded=max((p.degraded for p in pieces), default=0),
    )


def _likelihood(piece: Piece) -> float:
    """Mean log-probability of a choice's tokens, including its end."""
    known = [chunk.logprob for chunk in piece.chunks if chunk.logprob is not None]
    return sum(known) / len(known) if known else 0.0
