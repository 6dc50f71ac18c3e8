"""The copies of a model: which of them takes a request, and where requests go on when one is lost."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from random import Random

import structlog

from shoal.config import Balancing
from shoal.errors import NotReady
from shoal.native import BLOCK_TOKENS
from shoal.node.orders import blocks_of
from shoal.node.pipeline_runner import PipelineRunner
from shoal.request import Request, RequestId, TokenChunk
from shoal.serving.balancing.anomalies import FailingReplica, SlowReplica
from shoal.serving.balancing.balancer import Balancer
from shoal.serving.balancing.inquiry import Ending, Inquiry, block_names
from shoal.serving.balancing.replica_state import Flight, Traits
from shoal.serving.balancing.reports import HealthChange

log = structlog.get_logger()


class Copies:
    """By their numbers, from 1. It is asked once for each answer, and told what becomes of it."""

    def __init__(
        self, strategy: Balancing, now: Callable[[], float], chance: Random, moved: Callable[[RequestId, PipelineRunner], None]
    ) -> None:
        """now: the head's clock. moved: is told of a request that goes on at another copy."""
        self.runners: dict[int, PipelineRunner] = {}
        self._balancer = Balancer[int](strategy, chance)
        self._now, self._moved = now, moved
        self._flights: dict[str, Flight[int]] = {}
        """By answer."""
        self._unspoken: dict[RequestId, Flight[int]] = {}
        """Of requests that have no token yet."""

    def __iter__(self) -> Iterator[PipelineRunner]:
        return iter([*self.runners.values()])

    # Which one

    def chosen(self, requests: Sequence[Request], tried: Collection[int] = ()) -> tuple[int, Inquiry]:
        """The copy for an answer, and what was asked about. tried: copies that refused it. Raises NotReady."""
        self._settle()
        serving = [number for number, runner in self.runners.items() if runner.serving and number not in tried]
        prompt = requests[0].prompt if requests else []
        inquiry = Inquiry(sum(len(request.prompt) for request in requests), block_names(prompt, BLOCK_TOKENS) if len(serving) > 1 else ())
        if len(serving) > 1 and (found := self._balancer.choose(inquiry, self._now(), tried)) is not None:
            return found, inquiry
        runner = self.least_loaded(tried)
        return runner.pipeline.id.replica, inquiry

    def least_loaded(self, tried: Collection[int] = ()) -> PipelineRunner:
        """Of those that serve, or else will again in moments. Raises NotReady."""
        left = [runner for number, runner in self.runners.items() if number not in tried]
        able = [runner for runner in left if runner.serving] or [runner for runner in left if runner.able]
        if not able:
            raise NotReady(f"no model is served now: {self.progress}")
        return min(able, key=lambda runner: len(runner.requests))

    def offered(self, answer: str, requests: Sequence[Request]) -> Iterator[PipelineRunner]:
        """The copies to try for an answer, best first: the next one is asked for if one has no room. `ended` must follow. Raises NotReady
        when no more are left."""
        tried: list[int] = []
        while True:
            number, inquiry = self.chosen(requests, tried)
            self.ended(answer, Ending.BUSY)
            self._begun(answer, number, requests, inquiry)
            tried.append(number)
            yield self.runners[number]

    def _begun(self, answer: str, number: int, requests: Sequence[Request], inquiry: Inquiry) -> None:
        if number in self._balancer:
            flight = self._flights[answer] = self._balancer.began(number, inquiry, self._now())
            for request in requests:
                self._unspoken[request.id] = flight

    def sampled(self, chunks: Sequence[TokenChunk]) -> None:
        if self._unspoken:
            for chunk in chunks:
                if (flight := self._unspoken.pop(chunk.request, None)) is not None:
                    self._balancer.first_token(flight, self._now())

    def ended(self, answer: str, ending: Ending = Ending.SERVED) -> None:
        """Nobody waits for it any more."""
        if (flight := self._flights.pop(answer, None)) is not None:
            for request in [request for request, other in self._unspoken.items() if other is flight]:
                del self._unspoken[request]
            unheard = ending is Ending.SERVED and flight.first is None
            self._balancer.ended(flight, Ending.CANCELLED if unheard else ending, self._now())

    def _settle(self) -> None:
        """Those that serve may be chosen, and no others."""
        now = self._now()
        for number, runner in self.runners.items():
            if runner.serving and number not in self._balancer and (placement := runner.pipeline.placement) is not None:
                blocks = blocks_of(placement.kv_tokens)
                self._balancer.add(number, now, Traits(speed=placement.tokens_per_second, slots=runner.model.engine.slots, blocks=blocks))
            elif not runner.serving and number in self._balancer:
                self._balancer.remove(number, now)
        for change in self._balancer.changes():
            self._tell(change)

    def _tell(self, change: HealthChange[int]) -> None:
        log.info("a copy of the model is", copy=str(self.runners[change.replica].pipeline.id), move=change.move, reason=change.reason)

    def anomalies(self) -> list[SlowReplica[int] | FailingReplica[int]]:
        return self._balancer.anomalies(self._now())

    # What there is

    @property
    def progress(self) -> str:
        """Why no copy serves, and how far the first has come."""
        return next((runner.pipeline.progress for runner in self), "it has no copy")

    @property
    def first(self) -> PipelineRunner:
        """Raises NotReady if there is none."""
        if (found := next(iter(self), None)) is None:
            raise NotReady(f"no model is served now: {self.progress}")
        return found

    def add(self, number: int, runner: PipelineRunner) -> None:
        self.runners[number] = runner

    def remove(self, number: int) -> PipelineRunner:
        """Its requests go on at other copies, as far as they can."""
        runner = self.runners.pop(number)
        if number in self._balancer:
            self._balancer.remove(number, self._now())
        self._move(runner)
        return runner

    def clear(self) -> list[PipelineRunner]:
        """Removes all. Their requests stay where they are."""
        gone = [*self]
        self.runners.clear()
        return gone

    # When one is lost

    def rescue(self) -> None:
        """Requests of copies for which no route is in sight go on at copies that serve."""
        for runner in self:
            if runner.lost and runner.requests:
                self._move(runner)

    def _move(self, runner: PipelineRunner) -> None:
        others = [other for other in self if other is not runner and other.serving]
        if not others:
            return
        for stream in runner.requests.hand_over():
            target = min(others, key=lambda other: len(other.requests))
            target.requests.take_up(stream)
            self._moved(stream.request.id, target)
            log.info("a request goes on at another copy", request=stream.request.id, copy=str(target.pipeline.id))
