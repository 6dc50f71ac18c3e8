"""Runs one pipeline: opens its routes, drives its requests over them, and tells what came of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog

from shoal import __version__
from shoal.config import HeadSettings, Speculation
from shoal.control import messages as control
from shoal.discovery.topology import RequestLoad
from shoal.errors import NotReady, ProtocolError, ShoalError, StageLost
from shoal.membership import events, instructions
from shoal.membership.route_machine import SERVING, WAITING, RouteMachine
from shoal.native import BLOCK_TOKENS
from shoal.node.environment import Environment
from shoal.node.interruption import Interruption, Interruptions
from shoal.node.links import Links, accept_link
from shoal.node.loads import Loads
from shoal.node.observer import PipelineObserver, Served
from shoal.node.opening import Opening
from shoal.node.orders import Orders, blocks_of
from shoal.node.requests import Requests
from shoal.node.roster import Roster
from shoal.node.share import Share
from shoal.node.step_guess import step_guess
from shoal.observed.event import EventKind
from shoal.pipeline.driver import Driver
from shoal.pipeline.route import Route
from shoal.pipeline.stragglers import StragglerDetector
from shoal.pipeline.timing import StepTiming
from shoal.pipeline.token_stream import TokenStream
from shoal.placement.expectation import Expectation, expect
from shoal.placement.moves import Moves
from shoal.placement.partition import Placement
from shoal.placement.profile import LinkSpeeds
from shoal.placement.roles import RoleMoves
from shoal.request import Request, RequestId, TokenChunk
from shoal.scheduler.drafting.drafting import LONGEST
from shoal.scheduler.limits import Limits
from shoal.telemetry.recorder import Recorder, RouteRecorder
from shoal.transport.base import FrameStream
from shoal.wire.frame import Frame
from shoal.wire.messages import Hello

log = structlog.get_logger()

_OPENING = 10.0  # seconds within which the last stage must have connected


@dataclass(frozen=True)
class Planning:
    """How a pipeline is placed."""

    moves: Moves
    planner: RoleMoves
    use: dict[int, list[int]]
    """Rows that each expert has computed, by layer."""


@dataclass(frozen=True)
class HeadContext:
    """What the pipelines of a head have in common."""

    name: str
    """Of the cluster; links greet with it."""
    settings: HeadSettings
    environment: Environment
    recorder: Recorder
    roster: Roster
    loads: Loads
    share: Share
    spawn: Callable[[Coroutine[Any, Any, None]], None]
    hand_out: Callable[[Callable[[], None]], None]
    """See Driver."""


class PipelineRunner:
    def __init__(
        self,
        head: HeadContext,
        pipeline: RouteMachine,
        model: Served,
        planning: Planning,
        observer: PipelineObserver,
        happened: Callable[[events.Event], None],
    ) -> None:
        """happened: is told what becomes of the routes."""
        self.pipeline, self.model, self.planning = pipeline, model, planning
        self.record = RouteRecorder(head.recorder, str(pipeline.id))
        self.orders = Orders(pipeline.id, head.settings.host, model, head.environment, head.share, pipeline.members, head.roster.machines)
        now = head.environment.now
        self.requests = Requests(
            lambda scheduler: Driver(scheduler, self._step, self._sampled, now, self._request_failed, self._choice_ended, head.hand_out)
        )
        self._head, self.observer, self._happened = head, observer, happened
        self.failed: Callable[[RequestId, ShoalError], None] = lambda request, error: None
        """Is told of requests that end with an error."""
        self._links = Links(head.environment)
        self._opening: Opening | None = None
        self._closed = False
        self._pace = StragglerDetector()
        self._stranded: float | None = None  # since when requests wait with no route in sight
        self._interruptions = Interruptions(now, self._went_on)

    # Requests

    @property
    def driver(self) -> Driver | None:
        """None before the first route."""
        return self.requests.driver

    @property
    def able(self) -> bool:
        """Whether a model is served, or will be again in moments."""
        return self.driver is not None and (self.pipeline.state != WAITING or self.pipeline.confirming)

    @property
    def serving(self) -> bool:
        return self.pipeline.state == SERVING

    @property
    def lost(self) -> bool:
        """Whether no route is in sight, be it that it never had one."""
        return self.pipeline.state == WAITING and not self.pipeline.confirming

    def expectation(self) -> Expectation | None:
        """What the placement is expected to give; None if there is none."""
        placement = self.pipeline.placement
        nodes = {member.name: member.profile for member in self.pipeline.members.values()}
        if placement is None or any(part.node not in nodes for part in (*placement.stages, *placement.workers)):
            return None
        moves = self.planning.moves
        return expect(placement, nodes, self.model.cost, moves.links, moves.demand)

    def submit(self, request: Request) -> TokenStream:
        """Raises NotReady, InvalidRequest, QueueFull."""
        return self.open_driver().submit(request)

    def open_driver(self) -> Driver:
        """Raises NotReady."""
        if self.driver is None or not self.able:
            raise NotReady(f"no model is served now: {self.pipeline.progress}")
        return self.driver

    @property
    def load_of_requests(self) -> RequestLoad:
        slots = self.model.engine.slots
        return RequestLoad(0, 0, slots) if (d := self.driver) is None else RequestLoad(d.scheduler.running, d.scheduler.waiting, slots)

    # What nodes tell

    def reported(self, node: str, report: control.PipelineReport) -> None:
        """node: its name."""
        self.observer.report(node, report)
        for counted in report.expert_rows:
            known = self.planning.use.get(counted.layer, [0] * len(counted.rows))
            if len(known) == len(counted.rows):  # otherwise the observer has something to say about it
                self.planning.use[counted.layer] = [a + b for a, b in zip(known, counted.rows, strict=True)]

    def renamed(self) -> None:
        """Nodes of the route have other names."""
        if (path := self.pipeline.serving) is not None:
            names = [stage.node for stage in path.placement.stages]
            self._head.recorder.timelines.route(path.epoch, names)
            self.observer.route(names)

    # Time

    def sample(self) -> None:
        """Once a second."""
        if self.driver is not None:
            self.record.counted(self.driver.scheduler.counters.preemptions, self.driver.scheduler.pool.evicted)

    def tick(self) -> None:
        """Ends what has waited for too long."""
        self._strand()
        if self.driver is not None and self.driver.stalled() > self._head.settings.step_timeout:
            self.driver.cut(f"no result came for {self._head.settings.step_timeout:g} s")

    def _strand(self) -> None:
        """Lets requests wait for nodes to come, but not for ever."""
        now = self._head.environment.now()
        if not self.requests or self.pipeline.state != WAITING or self.pipeline.confirming:
            self._stranded = None
            return
        self._stranded = now if self._stranded is None else self._stranded
        if now - self._stranded > self._head.settings.wait:
            self._stranded = None
            self.requests.end_all(StageLost(f"no nodes came for {self._head.settings.wait:g} s: {self.pipeline.why}"))

    async def keep_pace(self) -> None:
        """Tells the cluster about stages that are slower than their nodes measured."""
        while not self._closed:
            await asyncio.sleep(self._head.settings.pace)
            if (path := self.pipeline.serving) is None:
                continue
            slower = self._pace.judge(len(path.nodes), partial(self._promised, path.nodes, path.placement))
            for node, times in zip(path.nodes, slower or (), strict=False):
                self._happened(events.SpeedSeen(node, times))

    def _promised(self, nodes: Sequence[int], placement: Placement, rows: int) -> list[float]:
        """Seconds in which each stage reads the weights for a step with so many rows, if its node is as fast as it measured."""
        return [
            stage.seconds
            if stage.memory
            else self.planning.planner.cost(placement).read_bytes(stage.first, stage.end, rows)
            / self.pipeline.members[node].joined.profile.bytes_per_second
            for node, stage in zip(nodes, placement.stages, strict=True)
        ]

    # Orders

    def carry_out(self, order: instructions.OfRoute) -> None:
        match order:
            case instructions.LoadStage():
                self._head.roster.tell(order.node, self.orders.load(order))
                self.load()
            case instructions.HoldExperts():
                self._head.roster.tell(order.node, self.orders.hold(order))
            case instructions.LinkStage():
                self.link(order.epoch)
                self._head.roster.tell(order.node, self.orders.link(order))
            case instructions.RestStage():
                self._head.roster.tell(order.node, self.orders.rest(order))
            case instructions.Serve():
                self._head.spawn(self.serve(order))
            case instructions.Pause():
                self.pause()
            case instructions.Cut(epoch, reason):
                self.cut(epoch, reason)

    def close(self, reason: str) -> None:
        """The pipeline is no more: ends its requests."""
        self._closed = True
        self.requests.refuse(reason)
        self._close_opening()

    def load(self) -> None:
        """A node is told to load its part."""
        self._interruptions.placed()

    def link(self, epoch: int) -> None:
        """The stages of an epoch are told to connect: takes the last one's link from now on."""
        if self._opening is None or self._opening.epoch != epoch:
            self._close_opening()
            self._opening = Opening(epoch)
            self._interrupted("layers are moved", moved=True)
            self._interruptions.loaded()

    def pause(self) -> None:
        self._interrupted("layers are moved", moved=True)
        if self.driver is not None:
            self.driver.pause()

    def cut(self, epoch: int, reason: str) -> None:
        self._interrupted(reason)
        if self._opening is not None and self._opening.epoch == epoch:
            self._close_opening()
            if self.driver is not None:
                self.driver.cut(reason)

    def _interrupted(self, reason: str, moved: bool = False) -> None:
        if self.driver is not None:
            self._interruptions.begin(reason, moved)

    def _close_opening(self) -> None:
        if self._opening is not None:
            self._opening.over.set()
            self._opening.results.cancel()
            self._opening = None

    # The route

    def opening(self, epoch: int) -> bool:
        """Whether the last stage of that epoch is to connect now."""
        return self._opening is not None and self._opening.epoch == epoch

    async def accept(self, stream: FrameStream, greeting: Frame) -> None:
        """Takes the last stage's link to the head. Raises OSError, EOFError, ProtocolError."""
        opening, placement = self._opening, self.pipeline.placement
        wanted = opening is not None and placement is not None and not opening.results.done()
        stages = len(placement.stages) if wanted and placement is not None else -1
        await accept_link(stream, greeting, opening.epoch if opening else 0, self._head.name, stages, "head")
        assert opening is not None  # no greeting fits stage -1
        if opening.results.done():
            return  # the route was given up meanwhile
        opening.results.set_result(stream)
        await opening.over.wait()

    async def serve(self, order: instructions.Serve) -> None:
        """Opens the route and drives it until it breaks or is paused."""
        opening = self._opening
        if opening is None or opening.epoch != order.epoch:
            return  # the route was given up already
        joined = self.pipeline.members[order.first].joined
        first: FrameStream | None = None
        try:
            first = await self._links.open(joined.host, joined.tensor_port, order.epoch, Hello(__version__, self._head.name, "head", 0))
            async with asyncio.timeout(_OPENING):
                await asyncio.wait({opening.results})
            if opening.over.is_set():
                raise StageLost("it was abandoned while it was being opened")
            driver = self._fit_driver(order.placement)
            names = [stage.node for stage in order.placement.stages]
            self.record.route(order.epoch, names)
            self.observer.route(names)
            self._interruptions.linked()
            route = Route(order.epoch, first, opening.results.result())
            await driver.drive(route, list(order.spans), lambda tokens: self._filled(order.epoch, tokens))
            self._happened(events.RoutePaused(order.epoch))
        except (StageLost, OSError, EOFError, ProtocolError) as error:
            self._happened(events.RouteBroken(order.epoch, str(error) or type(error).__name__))
        except Exception as error:
            log.error("the route failed unexpectedly", exc_info=error)
            self._happened(events.RouteBroken(order.epoch, f"unexpected: {error!r}"))
        finally:
            opening.over.set()
            if first is not None:
                first.abort()

    def _fit_driver(self, placement: Placement) -> Driver:
        """The driver, with its scheduler fitted to a route."""
        engine, depth = self.model.engine, len(placement.stages)
        limits = Limits(
            blocks=blocks_of(placement.kv_tokens),
            block_tokens=BLOCK_TOKENS,
            context=self.model.context,
            slots=engine.slots,
            step_tokens=engine.step_tokens,
            queue=engine.queue,
            depth=depth,
            wait=engine.prompt_wait,
            prefixes=engine.prefix_cache,
            batching=self.model.batching,
            drafts=LONGEST if engine.speculation is Speculation.LOOKUP else 0,
        )
        driver = self.requests.fitted(limits)
        driver.scheduler.cost = step_guess(self.model.cost, placement, LinkSpeeds(self._head.roster.reached))
        return driver

    def _filled(self, epoch: int, tokens: int) -> None:
        self._pace = StragglerDetector()
        self._interruptions.filled(tokens, bool(self.requests))
        if tokens:
            self._head.recorder.events.add(
                EventKind.REFILLED, f"keys and values of {tokens} tokens were filled anew", figures={"tokens": tokens}
            )
        self._happened(events.RouteFilled(epoch))

    def _step(self, timing: StepTiming) -> None:
        self.observer.step(timing, self.record.step(timing))
        self._pace.add(timing)
        for node, trace in zip(self.pipeline.route, timing.traces, strict=False):
            if (member := self.pipeline.members.get(node)) is not None:
                self._head.loads.ran(member.name, trace.compute + trace.sample)
        if timing.sampled:
            self._interruptions.token_came()

    def _sampled(self, chunks: list[TokenChunk]) -> None:
        self._head.recorder.sampled(chunks)
        self.observer.sampled(chunks)

    def _choice_ended(self, request: RequestId, choice: int) -> None:
        self._head.recorder.timelines.finished(request, choice, self._head.environment.now())

    def _request_failed(self, request: RequestId, error: ShoalError) -> None:
        self.failed(request, error)
        self._head.recorder.timelines.failed(request, str(error), self._head.environment.now())

    def _went_on(self, ended: Interruption) -> None:
        cause = self.record.resumed(ended.reason, ended.began, ended.resumed, ended.parts(), ended.tokens)
        self.observer.interruption(ended, "moved" if ended.moved else cause or "broken")
        parts = {name: round(seconds, 3) for name, seconds in ended.parts().items()}
        log.info("streams go on", seconds=round(ended.resumed - ended.began, 3), refilled=ended.tokens, **parts)
