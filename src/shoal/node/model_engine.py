"""A model as the gateway sees it: one engine, however many pipelines run copies of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from time import time

import structlog

from shoal import __version__
from shoal.config import EngineSettings, HeadSettings, ModelSettings
from shoal.control import messages as control
from shoal.errors import InvalidRequest, NotReady, QueueFull, ShoalError
from shoal.executor.cost import model_cost
from shoal.models.description import Description, facts
from shoal.models.spec import Experts
from shoal.models.stamp import stamps
from shoal.node.coordinator import Coordinator
from shoal.node.copies import Copies
from shoal.node.interruption import Interruption
from shoal.node.load_watch import LoadWatch
from shoal.node.observer import Served
from shoal.node.pipeline_runner import PipelineRunner
from shoal.observed.event import EventKind
from shoal.pipeline.log_file import log_folder
from shoal.pipeline.request_log import RequestLog
from shoal.pipeline.timing import StepTiming
from shoal.pipeline.token_stream import TokenStream
from shoal.pipeline_id import PipelineId
from shoal.request import Request, RequestId, TokenChunk
from shoal.scheduler.limits import ALONE, Batching
from shoal.telemetry.metrics import Metrics, ModelMetrics, PipelineMetrics
from shoal.text.tokenizer import Tokenizer

log = structlog.get_logger()

_REFUSED = {
    "429": "too many",
    "500": "an unexpected error",
    "503": "no model was served, or the server was ending",
}
"""Outcomes of requests that the cluster is to blame for."""


@dataclass(frozen=True)
class ModelOffer:
    """A model that a head is to serve, and how."""

    model: Description
    engine: EngineSettings
    replicas: int = 1
    pinned: frozenset[str] = frozenset()
    """Names of the nodes that may serve it; empty: all."""
    priority: int = 0
    """Those of a higher one come first where memory is short."""
    batching: Batching = ALONE
    tokenizer: Tokenizer | None = None
    """If it is open already: a large one takes half a second, in which a head that runs would do nothing else."""

    @classmethod
    def of(cls, model: Description, reference: str, settings: ModelSettings) -> ModelOffer:
        """reference: as it was asked for."""
        engine = replace(settings.engine, model=reference)
        batching = Batching(settings.gathered, settings.batch_delay)
        return cls(model, engine, settings.replicas, settings.pinned, settings.priority, batching)


@dataclass(frozen=True)
class ResumedAnswer:
    """An answer that another head began: see gateway.engine.Resumed."""

    id: str
    note: bytes
    requests: list[Request]
    streams: list[TokenStream]
    said: int


class _Watch:
    """Counts what happens to a pipeline: a node.observer.PipelineObserver."""

    def __init__(self, metrics: PipelineMetrics, now: Callable[[], float], kept: Callable[[list[TokenChunk]], None]) -> None:
        """kept: is given what was sampled."""
        self._metrics, self._now, self._kept = metrics, now, kept

    def route(self, nodes: Sequence[str]) -> None:
        self._metrics.route(nodes)

    def step(self, timing: StepTiming, hops: tuple[float, ...]) -> None:
        self._metrics.step(timing, hops)

    def interruption(self, ended: Interruption, cause: str) -> None:
        self._metrics.interruption(ended.resumed - ended.began, cause, ended.parts(), ended.tokens)

    def sampled(self, chunks: list[TokenChunk]) -> None:
        self._metrics.tokens.sampled(chunks, self._now())
        self._kept(chunks)

    def report(self, node: str, report: control.PipelineReport) -> None:
        metrics = self._metrics
        metrics.journal(node, report.journal_bytes, report.journal_spilled, report.journal_given_up, report.journal_replayed)
        for counted in report.expert_rows:
            if not metrics.experts.add(counted.layer, counted.rows):
                log.warning("a count of rows by expert does not fit the model", node=node, layer=counted.layer, experts=len(counted.rows))
        for reads in report.expert_reads:
            metrics.experts.add_reads(asdict(reads))
        for asks in report.expert_asks:
            metrics.asks(node, asdict(asks))
        for work in report.expert_work:
            metrics.work(node, asdict(work))
        for decoding, prompts in zip(report.decoding, report.prompts, strict=False):
            metrics.computing(node, asdict(decoding), asdict(prompts))


class ModelEngine:
    """A gateway.engine.Engine."""

    def __init__(self, offer: ModelOffer, coordinator: Coordinator, metrics: Metrics, settings: HeadSettings, chance: Random) -> None:
        """chance: for the choice among copies. Raises ConfigError."""
        model, engine = offer.model, offer.engine
        self.offer, self.model = offer, model
        self.tokenizer = offer.tokenizer or tokenizer_of(model, engine, settings)
        self.created = int(time())
        self.facts = facts(model)
        self.identity = identity_of(engine, model)
        self.resume = settings.resume
        self.used = coordinator.now()
        """When it was asked for last, or loaded: seconds, by the cluster's clock."""
        self.watch: LoadWatch | None = None
        """Is told what an autoscaler wants to know; None: nobody does."""
        self.copies = Copies(settings.api.balance, coordinator.now, chance, self._moved, self._tell)
        self._coordinator, self._all_metrics = coordinator, metrics
        self._metrics = metrics.models[model.name] = ModelMetrics(model.name)
        parts = {layer: spec.feed_forward for layer, spec in enumerate(model.spec.layers)}
        self._experts = {layer: part.count for layer, part in parts.items() if isinstance(part, Experts)}
        cost = model_cost(model.spec, model.weights, engine.precision, engine.kv_type, engine.step_tokens)
        context = min(engine.context, model.spec.context)
        self.served = Served(
            model.name,
            model.reference,
            cost,
            context,
            engine,
            offer.pinned,
            model.manifest,
            model.files,
            offer.priority,
            offer.batching,
        )
        self._log: RequestLog | None = None
        for number in range(1, offer.replicas + 1):
            self.open(number)

    def keep_requests(self, state: Path) -> None:
        """Keeps requests from now on, and reads the answers that a previous head left unfinished. state: the head's folder. Raises ConfigError."""
        folder = log_folder(state, self.name)
        followers = self._coordinator.followers
        identity = f"{self.model.reference} {self.offer.engine.precision} {self.offer.engine.kv_type}"
        if followers is None:
            self._log = RequestLog(folder, identity)
        else:
            self._log = RequestLog(folder, identity, partial(followers.put, self.name))
            followers.keep(self.name, self._log)

    # Copies

    def open(self, number: int) -> PipelineRunner:
        """One more copy."""
        id = PipelineId(self.name, number)
        metrics = self._all_metrics.pipelines[id] = PipelineMetrics(id, self._experts)
        watch = _Watch(metrics, self._coordinator.now, self._kept)
        runner = self._coordinator.open(id, self.served, watch)
        self.copies.add(number, runner)
        return runner

    def close_copy(self, number: int, reason: str) -> None:
        """Its requests go on elsewhere, if another copy serves; otherwise they end with the reason."""
        id = self.copies.remove(number).pipeline.id
        self._coordinator.close(id, reason)
        del self._all_metrics.pipelines[id]

    def stop_copy(self, number: int) -> None:
        """It gets no more requests, and goes when it has finished those that it has: see `close_finished`."""
        self.copies.stop(number)

    def close_finished(self) -> None:
        """Closes the copies that were to stop and have nothing left to do."""
        for number in self.copies.finished:
            id = PipelineId(self.name, number)
            self.close_copy(number, f"{id} was stopped")
            self._coordinator.recorder.events.add(EventKind.SCALED, f"{id} had nothing left to do, and is gone")

    def scale(self, count: int) -> None:
        """To that many copies; those with the highest numbers go. The requests of one that goes go on at the others."""
        numbers = self.copies.kept
        for number in numbers[count:]:
            self.close_copy(number, f"{self.name} has {count} {'copy' if count == 1 else 'copies'} from now on")
        there = self.copies.runners
        for number in [n for n in range(1, count + len(there) + 1) if n not in there][: max(count - len(numbers), 0)]:
            self.open(number)

    async def close(self, reason: str) -> None:
        """Ends every request with the reason, and frees what the nodes hold."""
        for runner in self.copies.clear():
            id = runner.pipeline.id
            self._coordinator.close(id, reason)
            del self._all_metrics.pipelines[id]
        del self._all_metrics.models[self.name]
        if self._coordinator.followers is not None:
            self._coordinator.followers.drop(self.name)
        await self.end_log()

    def seal_log(self) -> None:
        """Another head goes on with the requests: how they end here is not recorded."""
        if self._log is not None:
            self._log.seal()

    async def end_log(self) -> None:
        if self._log is not None:
            await self._log.close()

    def _tell(self, words: str) -> None:
        log.info(words)
        self._coordinator.recorder.events.add(EventKind.SLOW, words)

    def _moved(self, request: RequestId, target: PipelineRunner) -> None:
        self._coordinator.recorder.timelines.moved(request, str(target.pipeline.id))

    # Its use

    def touch(self) -> None:
        """Somebody asks for it."""
        self.used = self._coordinator.now()

    @property
    def pinned(self) -> frozenset[str]:
        """Names of the nodes that may serve it, as they are called now; empty: all."""
        return self._coordinator.cluster.pinned(self.copies.first.pipeline.id)

    @property
    def awaited(self) -> list[str]:
        """Names of those of them that are not there."""
        return self._coordinator.cluster.awaited(self.copies.first.pipeline.id)

    @property
    def busy(self) -> bool:
        """Whether requests of it are unfinished."""
        return any(runner.requests for runner in self.copies)

    @property
    def short(self) -> bool:
        """Whether it is not served because it finds no room."""
        return bool(self.state) and any(runner.pipeline.short for runner in self.copies)

    @property
    def hopeless(self) -> str:
        """Why it would not be served even if it were the only model; '' if it would."""
        cluster, now = self._coordinator.cluster, self._coordinator.now()
        return cluster.hopeless(self.copies.first.pipeline.id, now)

    @property
    def can(self) -> list[str]:
        """See observed.models.RegisteredModel."""
        tokenizer = self.tokenizer
        having = {
            "chat": tokenizer.template,
            "tools": tokenizer.tool_format,
            "reasoning": tokenizer.reasoning_format,
            "json": True,
            "embeddings": True,
        }
        return [name for name, what in having.items() if what]

    # The gateway's interface

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def vocabulary(self) -> int:
        return self.model.spec.vocabulary

    @property
    def state(self) -> str:
        """Why the model is not served, for people; '' if it is."""
        return "" if any(runner.serving for runner in self.copies) else self.copies.progress or "the model is being loaded"

    def longest(self) -> int:
        """Tokens of the longest sequence that can run now. Raises NotReady."""
        return max(runner.open_driver().scheduler.limits.longest for runner in [r for r in self.copies if r.able] or [self.copies.first])

    def submit(self, request: Request) -> TokenStream:
        """Without the balancer: to the copy with the fewest requests. Raises NotReady, InvalidRequest, QueueFull."""
        return self.copies.least_loaded().submit(request)

    async def begin(self, answer: str, note: bytes, requests: Sequence[Request], named: bool) -> list[TokenStream]:
        """Submits all requests or none; returns when they are kept. Raises NotReady, InvalidRequest, QueueFull."""
        self.touch()
        if self.watch is not None:
            self.watch.arrived += sum(request.n for request in requests)
        streams: list[TokenStream] = []
        try:
            streams = self._submitted(answer, requests)
            if self.watch is not None:
                self.watch.entered += sum(request.n for request in requests)
            if self._log is not None and note:
                await self._log.accepted(answer, note, requests)  # in the same turn of the loop: what is sampled from now on is kept too
            if (followers := self._coordinator.followers) is not None:
                await followers.confirmed()
        except BaseException as error:
            if isinstance(error, ShoalError):
                self._coordinator.recorder.timelines.failed(requests[0].id, str(error), self._coordinator.now())
            for stream in streams:
                stream.close()
            self.forget(answer)
            raise
        return streams

    def _submitted(self, answer: str, requests: Sequence[Request]) -> list[TokenStream]:
        """At the first copy that has room. Raises NotReady, InvalidRequest, QueueFull of the first that was asked."""
        full: QueueFull | None = None
        try:
            for runner in self.copies.offered(answer, requests):
                admissible(requests, self.vocabulary, runner.open_driver().scheduler.limits.queue)
                self._begun(answer, requests, runner)
                streams: list[TokenStream] = []
                try:
                    for request in requests:
                        streams.append(runner.submit(request))
                    return streams
                except QueueFull as error:
                    full = full or error
                    for stream in streams:
                        stream.close()
        except NotReady:
            if full is None:
                raise
        assert full is not None  # the copies were tried until none was left
        raise full

    def _begun(self, answer: str, requests: Sequence[Request], runner: PipelineRunner) -> None:
        now, id = self._coordinator.now(), runner.pipeline.id
        self._coordinator.recorder.timelines.begun(answer, requests, now, str(id))
        self._all_metrics.pipelines[id].tokens.begun(answer, (request.id for request in requests), now)

    def forget(self, answer: str) -> None:
        self.copies.ended(answer)
        for runner in self.copies:
            self._all_metrics.pipelines[runner.pipeline.id].tokens.ended(answer)
        self._coordinator.recorder.timelines.ended(answer, self._coordinator.now())
        if self._log is not None:
            self._log.gone(answer)

    def resumed(self) -> list[ResumedAnswer]:
        """The answers that a previous head left unfinished; returned once. They go on when the model is served."""
        if self._log is None:
            return []
        kept, self._log.kept = self._log.kept, []
        out: list[ResumedAnswer] = []
        for answer in kept:
            runner = min(self.copies, key=lambda runner: len(runner.requests))
            now, id = self._coordinator.now(), runner.pipeline.id
            self._coordinator.recorder.timelines.begun(answer.answer, answer.requests, now, str(id))
            streams = [TokenStream(request, said) for request, said in zip(answer.requests, answer.said, strict=True)]
            for stream in streams:
                runner.requests.take_up(stream)
            said = sum(chunk.counts for said in answer.said for chunk in said)
            out.append(ResumedAnswer(answer.answer, answer.note, answer.requests, streams, said))
        return out

    def timings(self, rows: int | None = None) -> dict[str, object]:
        """Of the steps of the first copy; see Timings.summary."""
        driver = self.copies.first.driver
        return {} if driver is None else driver.timings.summary(rows)

    def forget_timings(self) -> None:
        for runner in self.copies:
            if runner.driver is not None:
                runner.driver.timings.clear()

    async def find(self, answer: str, owner: str) -> None:
        """Does nothing: every answer is begun in this process, which knows it."""

    def _kept(self, chunks: list[TokenChunk]) -> None:
        self.copies.sampled(chunks)
        if self._log is not None:
            self._log.sampled(chunks)

    # Metrics

    def observe_first_token(self, seconds: float) -> None:
        self._metrics.first_token.observe(seconds)
        if self.watch is not None:
            self.watch.first_token(self._coordinator.now(), seconds)
        self._coordinator.recorder.day.first_token(seconds, self._coordinator.recorder.at)

    def observe_request(self, endpoint: str, outcome: str, prompt_tokens: int) -> None:
        self._metrics.requests.add(1, endpoint, outcome)
        self._metrics.prompt_tokens.add(prompt_tokens)
        if outcome in _REFUSED:
            self._coordinator.recorder.rejected.add(f"{_REFUSED[outcome]} (status {outcome}, {endpoint})")

    def observe_reuse(self, hit: bool) -> None:
        (self._metrics.cache_hits if hit else self._metrics.cache_misses).add(1)

    def observe_answer(self, outcome: str, seconds: float) -> None:
        self._metrics.answers.add(1, outcome)
        self._metrics.answer.observe(seconds)


def tokenizer_of(model: Description, engine: EngineSettings, settings: HeadSettings) -> Tokenizer:
    """Raises what Tokenizer.open raises."""
    return Tokenizer.open(model.path, model.gguf, engine.chat_template_file, settings.api.trust_text)


def identity_of(engine: EngineSettings, model: Description) -> str:
    """What answers depend on besides their requests: see gateway.engine.Engine.identity."""
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
