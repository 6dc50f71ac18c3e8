"""The head as the gateway sees it: one model, served by the nodes that join."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from time import time

import structlog

from shoal import __version__
from shoal.config import HeadSettings
from shoal.control import messages as control
from shoal.discovery.topology import Topology
from shoal.errors import InvalidRequest, ShoalError
from shoal.executor.cost import model_cost
from shoal.models.description import Description, facts
from shoal.models.spec import Experts
from shoal.models.stamp import stamps
from shoal.node.coordinator import Coordinator
from shoal.node.gauges import gauge
from shoal.node.host_environment import HostEnvironment
from shoal.node.interruption import Interruption
from shoal.node.observer import Served
from shoal.node.operations import Operations
from shoal.observed.trace_span import TraceSpan
from shoal.pipeline.request_log import RequestLog
from shoal.pipeline.timing import StepTiming
from shoal.pipeline.token_stream import TokenStream
from shoal.placement.expectation import Expectation
from shoal.placement.partition import Placement
from shoal.request import Request, TokenChunk
from shoal.telemetry.metrics import Metrics
from shoal.telemetry.traces import Traces, export_to
from shoal.text.tokenizer import Tokenizer

log = structlog.get_logger()

_REFUSED = {
    "429": "too many",
    "500": "an unexpected error",
    "503": "no model was served, or the server was ending",
}
"""Outcomes of requests that the cluster is to blame for."""


@dataclass(frozen=True)
class ResumedAnswer:
    """An answer that another head began: see gateway.engine.Resumed."""

    id: str
    note: bytes
    requests: list[Request]
    streams: list[TokenStream]
    said: int


class Head:
    def __init__(self, settings: HeadSettings, model: Description, machine: HostEnvironment | None = None) -> None:
        self.settings = settings
        self.model = model
        self.tokenizer = Tokenizer.open(model.path, model.gguf, settings.engine.chat_template_file, settings.api.trust_text)
        parts = {layer: spec.feed_forward for layer, spec in enumerate(model.spec.layers)}
        self.metrics = Metrics(model.name, {layer: part.count for layer, part in parts.items() if isinstance(part, Experts)})
        self.created = int(time())
        self.facts = facts(model)
        self.identity = identity_of(settings, model)
        context = min(settings.engine.context, model.spec.context)
        cost = model_cost(model.spec, model.weights, settings.engine.precision, settings.engine.kv_type, settings.engine.step_tokens)
        self._machine = machine or HostEnvironment()
        self._log: RequestLog | None = None
        self.coordinator = Coordinator(settings, Served(model.name, model.reference, cost, context), self._machine, self)
        traces = settings.api.traces
        self._traces = Traces(export_to(traces), self.coordinator.recorder.timelines) if traces else None
        self.operator = Operations(self.coordinator, model, time())
        if model.manifest is not None:
            self.coordinator.offer(model.manifest, model.files)

    async def start(self) -> None:
        """Reads the answers that a previous head left unfinished, and listens for nodes. Raises ConfigError."""
        settings = self.settings
        if settings.state_folder is not None:
            self._log = RequestLog(settings.state_folder, f"{self.model.reference} {settings.engine.precision} {settings.engine.kv_type}")
        await self.coordinator.start()

    async def stop(self, reason: str = "the head shut down") -> None:
        """Sends the nodes home and ends every request."""
        await self.coordinator.stop(reason)
        if self._log is not None:
            await self._log.close()
        if self._traces is not None:
            await asyncio.to_thread(self._traces.close)
        self._machine.close()

    def refuse(self, reason: str) -> None:
        """Ends every request with that reason, and accepts no more."""
        self.coordinator.runner.requests.refuse(reason)

    async def until_ready(self) -> None:
        """Waits until the model is served. Raises ClusterError if the nodes that joined cannot serve it."""
        await self.coordinator.until_ready()

    @property
    def control_port(self) -> int:
        return self.coordinator.control_port

    @property
    def members(self) -> set[str]:
        """Names of the nodes in the cluster."""
        return {member.name for member in self.coordinator.cluster.members.values()}

    @property
    def placement(self) -> Placement | None:
        return self.coordinator.pipeline.placement

    def expectation(self) -> Expectation | None:
        """What the placement is expected to give; None if there is none."""
        return self.coordinator.expectation()

    def topology(self) -> Topology:
        """What is published of the cluster."""
        return self.coordinator.topology()

    # The gateway's interface

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def vocabulary(self) -> int:
        return self.model.spec.vocabulary

    @property
    def state(self) -> str:
        """Why no model is served, for people; '' if one is."""
        coordinator = self.coordinator
        return "" if coordinator.serving else coordinator.pipeline.progress or "the model is being loaded"

    @property
    def activities(self) -> list[str]:
        """What nodes do, or did last, that takes long, for people."""
        return self.coordinator.activities

    def longest(self) -> int:
        """Tokens of the longest sequence that can run now."""
        return self.coordinator.runner.open_driver().scheduler.limits.longest

    def submit(self, request: Request) -> TokenStream:
        """Raises NotReady, InvalidRequest, QueueFull."""
        return self.coordinator.runner.submit(request)

    async def begin(self, answer: str, note: bytes, requests: Sequence[Request], named: bool) -> list[TokenStream]:
        """Submits all requests or none; returns when they are kept. Raises NotReady, InvalidRequest, QueueFull."""
        admissible(requests, self.vocabulary, self.coordinator.runner.open_driver().scheduler.limits.queue)
        streams: list[TokenStream] = []
        self.coordinator.recorder.timelines.begun(answer, requests, self._machine.now())
        self.metrics.tokens.begun(answer, (request.id for request in requests), self._machine.now())
        try:
            for request in requests:
                streams.append(self.submit(request))
            if self._log is not None and note:
                await self._log.accepted(answer, note, requests)  # in the same turn of the loop: what is sampled from now on is kept too
        except BaseException as error:
            if isinstance(error, ShoalError):
                self.coordinator.recorder.timelines.failed(requests[0].id, str(error), self._machine.now())
            for stream in streams:
                stream.close()
            self.forget(answer)
            raise
        return streams

    @property
    def resume(self) -> float:
        return self.settings.resume

    def forget(self, answer: str) -> None:
        self.metrics.tokens.ended(answer)
        self.coordinator.recorder.timelines.ended(answer, self._machine.now())
        if self._log is not None:
            self._log.gone(answer)

    def resumed(self) -> list[ResumedAnswer]:
        """The answers that a previous head left unfinished; returned once. They go on when the model is served."""
        if self._log is None:
            return []
        kept, self._log.kept = self._log.kept, []
        out: list[ResumedAnswer] = []
        for answer in kept:
            self.coordinator.recorder.timelines.begun(answer.answer, answer.requests, self._machine.now())
            streams = [TokenStream(request, said) for request, said in zip(answer.requests, answer.said, strict=True)]
            for stream in streams:
                self.coordinator.runner.requests.take_up(stream)
            out.append(
                ResumedAnswer(
                    answer.answer, answer.note, answer.requests, streams, sum(chunk.counts for said in answer.said for chunk in said)
                )
            )
        return out

    async def find(self, answer: str, owner: str) -> None:
        """Does nothing: every answer is begun in this process, which knows it."""

    def timings(self, rows: int | None = None) -> dict[str, object]:
        driver = self.coordinator.runner.driver
        return {} if driver is None else driver.timings.summary(rows)

    def forget_timings(self) -> None:
        if self.coordinator.runner.driver is not None:
            self.coordinator.runner.driver.timings.clear()

    # Metrics

    def observe_first_token(self, seconds: float) -> None:
        self.metrics.first_token.observe(seconds)
        self.coordinator.recorder.day.first_token(seconds, self.coordinator.recorder.at)

    def observe_request(self, endpoint: str, outcome: str, prompt_tokens: int) -> None:
        self.metrics.requests.add(1, endpoint, outcome)
        self.metrics.prompt_tokens.add(prompt_tokens)
        if outcome in _REFUSED:
            self.coordinator.recorder.rejected.add(f"{_REFUSED[outcome]} (status {outcome}, {endpoint})")

    def observe_reuse(self, hit: bool) -> None:
        (self.metrics.cache_hits if hit else self.metrics.cache_misses).add(1)

    def observe_cache(self, taken: int, evicted: int) -> None:
        self.metrics.cache_bytes.set(taken)
        self.metrics.cache_evictions.add(evicted)

    def traced(self, spans: Sequence[TraceSpan]) -> None:
        if self._traces is not None:
            self._traces.send(spans)

    def observe_answer(self, outcome: str, seconds: float) -> None:
        self.metrics.answers.add(1, outcome)
        self.metrics.answer.observe(seconds)

    def route(self, nodes: Sequence[str]) -> None:
        self.metrics.route(nodes)

    def step(self, timing: StepTiming, hops: tuple[float, ...]) -> None:
        self.metrics.step(timing, hops)

    def interruption(self, ended: Interruption, cause: str) -> None:
        self.metrics.interruption(ended.resumed - ended.began, cause, ended.parts(), ended.tokens)

    def heartbeat(self, node: str, heartbeat: control.Heartbeat) -> None:
        self.metrics.resident.set(heartbeat.resident, node)
        self.metrics.journal(
            node, heartbeat.journal_bytes, heartbeat.journal_spilled, heartbeat.journal_given_up, heartbeat.journal_replayed
        )
        self.metrics.fetched(node, heartbeat.fetched_from_peers, heartbeat.fetched_from_origin)
        for counted in heartbeat.expert_rows:
            if not self.metrics.experts.add(counted.layer, counted.rows):
                log.warning("a count of rows by expert does not fit the model", node=node, layer=counted.layer, experts=len(counted.rows))
        for reads in heartbeat.expert_reads:
            self.metrics.experts.add_reads(asdict(reads))
        for asks in heartbeat.expert_asks:
            self.metrics.asks(node, asdict(asks))
        for work in heartbeat.expert_work:
            self.metrics.work(node, asdict(work))
        for decoding, prompts in zip(heartbeat.decoding, heartbeat.prompts, strict=False):
            self.metrics.computing(node, asdict(decoding), asdict(prompts))

    def sampled(self, chunks: list[TokenChunk]) -> None:
        self.metrics.tokens.sampled(chunks, self._machine.now())
        if self._log is not None:
            self._log.sampled(chunks)

    def gone(self, node: str) -> None:
        self.metrics.forget(node)

    async def scrape(self) -> bytes:
        """The metrics in Prometheus' format."""
        gauge(self.metrics, self.coordinator)
        return await asyncio.to_thread(self.metrics.text)  # of thousands of experts it takes as long as several steps


def identity_of(settings: HeadSettings, model: Description) -> str:
    """What answers depend on besides their requests: see gateway.engine.Engine.identity."""
    engine = settings.engine
    files = ", ".join(f"{stamp.name} {stamp.size} {stamp.modified}" for stamp in stamps(model.path))
    return f"shoal {__version__}: {model.reference} ({files}) {engine.precision} {engine.kv_type} {engine.activations}"


def admissible(requests: Sequence[Request], vocabulary: int, queue: int) -> None:
    """Raises InvalidRequest for requests that can never run: more than the queue takes at once, or tokens that the model does
    not have."""
    if len(requests) > 1 and (choices := sum(request.n for request in requests)) > queue:
        message = f"{len(requests)} prompts with {requests[0].n} choices each make {choices} sequences; the queue takes {queue} at once"
        raise InvalidRequest(f"{message}: send them in parts", "prompt")
    for request in requests:
        if request.prompt and not (min(request.prompt) >= 0 and max(request.prompt) < vocabulary):
            raise InvalidRequest(f"the prompt has a token outside the vocabulary of {vocabulary}", "prompt")
