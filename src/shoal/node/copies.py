"""The copies of a model: which of them takes a request, and where requests go on when one is lost."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from random import Random

import structlog

from shoal.config import Balancing
from shoal.errors import ClusterError, NotReady, ShoalError
from shoal.native import BLOCK_TOKENS
from shoal.node.orders import blocks_of
from shoal.node.pipeline_runner import PipelineRunner
from shoal.request import Request, RequestId, TokenChunk
from shoal.serving.balancing.balancer import Balancer
from shoal.serving.balancing.inquiry import Ending, Inquiry, block_names
from shoal.serving.balancing.replica_state import Flight, Traits
from shoal.serving.balancing.reports import HealthChange

log = structlog.get_logger()

_LOOK = 5.0  # seconds between looks for copies that are out of line


class Copies:
    """By their numbers, from 1. It is asked once for each answer, and told what becomes of it."""

    def __init__(
        self,
        strategy: Balancing,
        now: Callable[[], float],
        chance: Random,
        moved: Callable[[RequestId, PipelineRunner], None],
        told: Callable[[str], None] = log.info,
    ) -> None:
        """now: the head's clock. moved: is told of a request that goes on at another copy. told: of the health of copies, in words."""
        self.runners: dict[int, PipelineRunner] = {}
        self.stopping: set[int] = set()
        """Copies that get no more requests: each goes when it has finished what it has."""
        self._balancer = Balancer[int](strategy, chance)
        self._now, self._moved, self._told = now, moved, told
        self._flights: dict[str, tuple[Flight[int], list[RequestId]]] = {}
        """By answer, with its requests."""
        self._flying: dict[RequestId, Flight[int]] = {}
        """By request."""
        self._unspoken: dict[RequestId, Flight[int]] = {}
        """Those that have no token yet."""
        self._odd: set[tuple[int, type]] = set()
        """Copies that are out of line with the others, as was told."""
        self._look_at = 0.0

    def __iter__(self) -> Iterator[PipelineRunner]:
        return iter([*self.runners.values()])

    # Which one

    def chosen(self, requests: Sequence[Request], tried: Collection[int] = ()) -> tuple[int, Inquiry]:
        """The copy for an answer, and what was asked about. tried: copies that refused it. Raises NotReady."""
        self._settle()
        serving = [number for number, runner in self._staying.items() if runner.serving and number not in tried]
        prompt = requests[0].prompt if requests else []
        inquiry = Inquiry(sum(len(request.prompt) for request in requests), block_names(prompt, BLOCK_TOKENS) if len(serving) > 1 else ())
        if len(serving) > 1 and (found := self._balancer.choose(inquiry, self._now(), tried)) is not None:
            return found, inquiry
        runner = self.least_loaded(tried)
        return runner.pipeline.id.replica, inquiry

    def least_loaded(self, tried: Collection[int] = ()) -> PipelineRunner:
        """Of those that serve, or else will again in moments. Raises NotReady."""
        left = [runner for number, runner in self._staying.items() if number not in tried]
        able = [runner for runner in left if runner.serving] or [runner for runner in left if runner.able]
        if not able:
            raise NotReady(f"no model is served now: {self.progress}")
        return min(able, key=lambda runner: len(runner.requests))

    @property
    def _staying(self) -> Mapping[int, PipelineRunner]:
        """Copies that may take requests: one that is to stop only where no other can."""
        if not self.stopping:
            return self.runners
        staying = {number: runner for number, runner in self.runners.items() if number not in self.stopping}
        return staying if any(runner.able for runner in staying.values()) else self.runners

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
            flight, ids = self._balancer.began(number, inquiry, self._now()), [request.id for request in requests]
            self._flights[answer] = flight, ids
            self._flying |= dict.fromkeys(ids, flight)
            self._unspoken |= dict.fromkeys(ids, flight)

    def sampled(self, chunks: Sequence[TokenChunk]) -> None:
        if self._unspoken:
            for chunk in chunks:
                if (flight := self._unspoken.pop(chunk.request, None)) is not None:
                    self._balancer.first_token(flight, self._now())

    def ended(self, answer: str, ending: Ending = Ending.SERVED) -> None:
        """Nobody waits for it any more."""
        if (known := self._flights.pop(answer, None)) is not None:
            flight, requests = known
            for request in requests:
                self._flying.pop(request, None)
                self._unspoken.pop(request, None)
            unheard = ending is Ending.SERVED and flight.first is None
            self._balancer.ended(flight, Ending.CANCELLED if unheard else ending, self._now())

    def failed(self, request: RequestId, error: ShoalError) -> None:
        """A request ended with an error. Only those that the cluster is to blame for count against its copy."""
        if isinstance(error, ClusterError) and (flight := self._flying.get(request)) is not None:
            self._balancer.ended(flight, Ending.FAILED, self._now())

    def _settle(self) -> None:
        """Those that serve may be chosen, and no others."""
        now, staying = self._now(), self._staying
        for number, runner in self.runners.items():
            serving = runner.serving and number in staying
            if serving and number not in self._balancer and (placement := runner.pipeline.placement) is not None:
                blocks = blocks_of(placement.kv_tokens)
                self._balancer.add(number, now, Traits(speed=placement.tokens_per_second, slots=runner.model.engine.slots, blocks=blocks))
            elif not serving and number in self._balancer:
                self._balancer.remove(number, now)
        for change in self._balancer.changes():
            self._tell(change)

    def _tell(self, change: HealthChange[int]) -> None:
        if (runner := self.runners.get(change.replica)) is not None:
            self._told(f"{runner.pipeline.id} is {change.move}: {change.reason}")

    def look(self) -> None:
        """Tells of copies that have come to be out of line with the others; a look every few seconds."""
        if (now := self._now()) < self._look_at:
            return
        self._look_at = now + _LOOK
        found = {(odd.replica, type(odd)): odd.reason for odd in self._balancer.anomalies(now)}
        for (number, kind), reason in found.items():
            if (number, kind) not in self._odd and (runner := self.runners.get(number)) is not None:
                self._told(f"{runner.pipeline.id} is out of line with the other copies: {reason}")
        self._odd = set(found)

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
        runner.failed = self.failed

    def remove(self, number: int) -> PipelineRunner:
        """Its requests go on at other copies, as far as they can."""
        runner = self.runners.pop(number)
        self.stopping.discard(number)
        if number in self._balancer:
            self._balancer.remove(number, self._now())
        self._move(runner)
        return runner

    def clear(self) -> list[PipelineRunner]:
        """Removes all. Their requests stay where they are."""
        gone = [*self]
        self.runners.clear()
        self.stopping.clear()
        return gone

    # When one is to stop

    def stop(self, number: int) -> None:
        """A copy gets no more requests from now on."""
        self.stopping.add(number)
        self._settle()

    @property
    def finished(self) -> list[int]:
        """Copies that are to stop, and have nothing left to do. None of them goes while no other serves."""
        if not self.stopping or not any(self.runners[number].serving for number in self.kept):
            return []
        return [number for number in self.stopping if not self.runners[number].requests]

    @property
    def kept(self) -> list[int]:
        """Numbers of the copies that are not to stop, the lowest first."""
        return sorted(number for number in self.runners if number not in self.stopping)

    # When one is lost

    def rescue(self) -> None:
        """Requests of copies for which no route is in sight go on at copies that serve."""
        for runner in self:
            if runner.lost and runner.requests:
                self._move(runner)

    def _move(self, runner: PipelineRunner) -> None:
        others = [other for other in self._staying.values() if other is not runner and other.serving]
        if not others:
            return
        for stream in runner.requests.hand_over():
            target = min(others, key=lambda other: len(other.requests))
            target.requests.take_up(stream)
            self._moved(stream.request.id, target)
            log.info("a request goes on at another copy", request=stream.request.id, copy=str(target.pipeline.id))
