"""Which tokens a grammar allows next, worked out in parallel with the steps: masks are made in separate threads (llguidance
releases the interpreter's lock), from the moment a token is sampled, while the stages compute the next step.

A grammar is compiled once and copied for each sequence. Its cost is limited. If a sequence's grammar exceeds the limit or does
not compile, the sequence ends; if its mask is late, it is sampled in a later step; nothing else waits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shoal.errors import ShoalError
from shoal.request import GRAMMAR_FUEL, GRAMMAR_ITEMS, GRAMMAR_SYMBOLS

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_STEP_FUEL, _STEP_ITEMS = 100_000, 50_000  # about 7 ms of lexer and 3 ms of parser work for a mask
_STATES = 50_000  # of a grammar's lexer, about 1.5 KB each
_KEPT = 32  # compiled grammars
_THREADS = 2
_MOST = 10.0  # seconds for one mask before the sequence ends; waiting for the masks before it does not count


class GrammarFailed(Exception):
    """A sequence cannot be held to its grammar; the message says why. ours: it is not the request's fault."""

    def __init__(self, why: str, ours: bool = False) -> None:
        super().__init__(why)
        self.ours = ours


@dataclass(frozen=True)
class Allowed:
    """Which tokens may come: those listed, or all except those listed, whichever list is shorter. There is always at least one."""

    tokens: NDArray[np.intp]
    but: bool


@dataclass(frozen=True)
class _Place:
    """Where a sequence is in its grammar, and what may come there."""

    matcher: LLMatcher
    allowed: Allowed


@dataclass(frozen=True)
class _Step:
    """From one place to the next, by one token."""

    before: Future[_Place]
    token: int
    width: int
    place: Future[_Place]


class Grammars:
    """A model's compiled grammars.

    vocabulary: makes llguidance's view of the model's tokenizer, which may take a second: called once, when the first grammar comes.
    patience: seconds that the samples of a step, all together, wait for their masks before they are delayed to another step;
    None: no limit.
    """

    def __init__(self, vocabulary: Callable[[], LLTokenizer], patience: float | None = 0.05) -> None:
        self.patience = patience
        self._vocabulary = vocabulary
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = Lock()
        self._openings = ThreadPoolExecutor(1, thread_name_prefix="grammar")  # one thread, because it alone compiles
        self._masks = ThreadPoolExecutor(_THREADS, thread_name_prefix="mask")

    def __len__(self) -> int:
        return len(self._compiled)

    def constrain(self, grammar: str, generated: Sequence[int], width: int) -> Constraint:
        """For a sequence that has sampled `generated` under this grammar. width: logits of a row."""
        if self._tokenizer is None:  # as a separate task, so that it does not count as time of a grammar
            self._openings.submit(self._read)
        return Constraint(self._openings.submit(self._open, grammar, generated, width), width)

    def advance(self, sampled: Sequence[tuple[Constraint, int]]) -> None:
        """Starts to work out what may come after the tokens that a step sampled. For all at once: each hand-over to a thread
        costs as much as a mask."""
        if sampled:
            self._masks.submit(_work, [constraint.sampled(token) for constraint, token in sampled])

    def forget(self) -> None:
        """Frees the compiled grammars, except those in use by sequences."""
        with self._lock:
            self._compiled.clear()

    def close(self) -> None:
        for pool in (self._openings, self._masks):
            pool.shutdown(wait=False, cancel_futures=True)

    def _open(self, grammar: str, generated: Sequence[int], width: int) -> _Place:
        with self._lock:
            found = self._compiled.pop(grammar, None)
        if found is None:
            found = self._compile(grammar)
        with self._lock:
            self._compiled[grammar] = found  # the last one used is the last one dropped
            if len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
        return _follow(found.deep_copy(), generated, width)

    def _read(self) -> None:
        with suppress(ShoalError, OSError, ValueError):  # `_compile` meets the error again and reports it
            self._tokenizer = self._tokenizer or self._vocabulary()

    def _compile(self, grammar: str) -> LLMatcher:
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(
            max_items_in_row=GRAMMAR_ITEMS,
            initial_lexer_fuel=GRAMMAR_FUEL,
            step_lexer_fuel=_STEP_FUEL,
            step_max_items=_STEP_ITEMS,
            max_lexer_states=_STATES,
            max_grammar_size=GRAMMAR_SYMBOLS,
            verbose_errors=False,
        )
        if self._tokenizer is None:
            try:
                self._tokenizer = self._vocabulary()
            except (ShoalError, OSError, ValueError) as error:
                raise GrammarFailed(f"this node cannot read the model's tokenizer ({error})", ours=True) from error
        made = LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
        _check(made)
        return made


class Held(Protocol):
    """One sequence's way through its grammar."""

    def allowed(self, patience: float | None = None) -> Allowed | None:
        """What may come next; None if that is not known within `patience` seconds (None: wait for ever). Raises GrammarFailed."""
        ...


class Holder(Protocol):
    """Holds sequences to grammars: `Grammars` itself, or another process that runs it. See there."""

    @property
    def patience(self) -> float | None: ...
    def constrain(self, grammar: str, generated: Sequence[int], width: int) -> Any: ...
    def advance(self, sampled: Sequence[tuple[Any, int]]) -> None: ...


class Constraint:
    """One sequence's way through its grammar. The next mask is worked out as soon as the token before it is known."""

    def __init__(self, opening: Future[_Place], width: int) -> None:
        self._next, self._width = opening, width
        self._asked = monotonic()

    def allowed(self, patience: float | None = None) -> Allowed | None:
        """What may come next; None if that is not known within `patience` seconds (None: wait for ever). Raises GrammarFailed."""
        try:
            return self._next.result(patience).allowed
        except TimeoutError:
            if not self._next.running():  # others are before it
                self._asked = monotonic()
            elif monotonic() - self._asked > _MOST:
                raise GrammarFailed("it takes too long to find the tokens that may come next; simplify it") from None
            return None

    @property
    def known(self) -> bool:
        """Whether `allowed` would answer at once."""
        return self._next.done()

    def then(self, told: Callable[[], None]) -> None:
        """Calls `told` when `allowed` would answer at once: now, or in the thread that worked it out."""
        self._next.add_done_callback(lambda _: told())

    def sampled(self, token: int) -> _Step:
        """Adds the token that came next. `_work` waits for the place before it, and fails if that failed."""
        step = _Step(self._next, token, self._width, Future())
        self._next, self._asked = step.place, monotonic()
        return step


def _work(steps: Sequence[_Step]) -> None:
    for step in steps:
        step.place.set_running_or_notify_cancel()
        try:
            step.place.set_result(_follow(step.before.result().matcher, [step.token], step.width))
        except BaseException as error:  # noqa: BLE001 - raised when the place is read; a panic of llguidance is not an Exception
            step.place.set_exception(error)


def _follow(matcher: LLMatcher, tokens: Sequence[int], width: int) -> _Place:
    if tokens:
        matcher.consume_tokens(list(tokens))
        _check(matcher)
    bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
    _check(matcher)
    mask = np.unpackbits(bits, count=width, bitorder="little").view(np.bool_)
    count = int(np.count_nonzero(mask))
    if not count:
        raise GrammarFailed("no token of the model can come next")
    but = count > width // 2
    return _Place(matcher, Allowed(np.flatnonzero(~mask if but else mask), but))


def _check(matcher: LLMatcher) -> None:
    if matcher.is_error():
        raise GrammarFailed(" ".join(matcher.get_error().replace("<non-verbose/>", "").split())[:300])
