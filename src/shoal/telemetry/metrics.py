"""The head's metrics, for Prometheus. docs/metrics.md says what each is for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from shoal.observed.event import EventKind
from shoal.pipeline.timing import StepTiming
from shoal.pipeline_id import PipelineId
from shoal.telemetry.distribution import Distribution, Distributions
from shoal.telemetry.expert_use import ExpertUse
from shoal.telemetry.token_times import TokenTimes
from shoal.telemetry.values import Values

OUTCOMES = ("complete", "failed", "left")
"""How an answer ends: whole, with an error, or because its client left."""
CAUSES = ("lost", "left", "failed", "broken", "moved")
"""Of an interruption: a node was lost, left at once, or could not do its part; the route broke for another reason; layers were moved."""
ENDINGS = ("served", "failed", "busy", "cancelled")
"""How a request to an upstream ends: see serving.balancing.inquiry.Ending."""
PARTS = ("fence", "load", "link", "refill", "resume")
"""Of an interruption, in order: see node.interruption."""


class _Stage(NamedTuple):
    hop: Distribution
    wait: Distribution
    compute: Distribution


class _Group:
    """Metrics with some labels in common."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self.collectors: list[Collector] = []
        self._labels = labels
        self._by_node: list[Values | Distributions] = []

    def _values(self, name: str, help: str, *labels: str) -> Values:
        made = Values(f"shoal_{name}", help, labels, self._labels)
        self._keep(made, labels)
        return made

    def _seconds(self, name: str, help: str, *labels: str) -> Distributions:
        made = Distributions(f"shoal_{name}_seconds", help, labels, self._labels)
        self._keep(made, labels)
        return made

    def _keep(self, made: Values | Distributions, labels: tuple[str, ...]) -> None:
        self.collectors.append(made)
        if "node" in labels:
            self._by_node.append(made)

    def forget(self, node: str) -> None:
        """Drops the figures of a node that is gone."""
        for one in self._by_node:
            one.forget("node", node)


class NodeMetrics(_Group):
    """Of the head and its machines, whatever they serve."""

    def __init__(self) -> None:
        super().__init__({})
        values = self._values
        self.events = values("events_total", "What happened to the cluster.", "kind")
        self.nodes = values("nodes", "Nodes in the cluster.")
        self.busy = values("node_busy", "Share of the last 10 s in which a node computed.", "node")
        self.resident = values("node_resident_bytes", "Memory that a node's process takes.", "node")
        self.memory = values("node_memory_bytes", "Memory that weights and KV blocks may take on a node.", "node")
        self.silence = values("node_silence_seconds", "Since a node was last heard.", "node")
        self._fetched = values("fetched_bytes_total", "Model files that a node fetched, by where they came from.", "node", "source")
        self.balance = values("worker_balance", "Rows of a worker in the last 10 s, over the mean of all workers; 1: none had any.", "node")
        self.cache_evictions = values("response_cache_evictions_total", "Answers that it gave up for others.")
        self.cache_bytes = values("response_cache_bytes", "Bytes of the answers in it.")
        for kind in EventKind:  # what was never counted would appear with 1, and a rate over that would miss it
            self.events.set(0, kind.value)

    def fetched(self, node: str, peers: int, origin: int) -> None:
        self._fetched.set(peers, node, "peers")
        self._fetched.set(origin, node, "origin")


class ModelMetrics(_Group):
    """Of a model, as its clients see it."""

    def __init__(self, model: str) -> None:
        super().__init__({"model": model})
        values, seconds = self._values, self._seconds
        self.requests = values("requests_total", "Requests: accepted, or refused with a status.", "endpoint", "outcome")
        self.answers = values("answers_total", "Answers that ended: complete, failed, or because their client left.", "outcome")
        self.prompt_tokens = values("prompt_tokens_total", "Prompt tokens of accepted requests.")
        self.first_token = seconds("time_to_first_token", "From a request's acceptance to its first token, at the API.").of()
        self.answer = seconds("answer", "From a request's acceptance to the end of its answer, at the API.").of()
        self.cache_hits = values("response_cache_hits_total", "Requests answered from the response cache.")
        self.cache_misses = values("response_cache_misses_total", "Requests that may be answered from it, and were computed.")
        for outcome in OUTCOMES:
            self.answers.set(0, outcome)


class ScalingMetrics(_Group):
    """Of an autoscaler. By model, which may have no copy now."""

    def __init__(self) -> None:
        super().__init__({})
        values = self._values
        self.replicas = values("replicas", "Copies of a model: loading, serving or stopping.", "model", "state")
        self.wanted = values("replicas_wanted", "Copies that a model should have, by its load.", "model")
        self.nodes = values("nodes_wanted", "Nodes that are missing for them.", "model")
        self.actions = values("scaling_total", "What the autoscaler did: copies started and stopped, nodes asked for.", "model", "action")


class PipelineMetrics(_Group):
    """Of one copy of a model."""

    def __init__(self, id: PipelineId, experts: Mapping[int, int]) -> None:
        """experts: how many each layer of the model has, of layers that have any."""
        labels = {"model": id.model, "replica": str(id.replica)}
        super().__init__(labels)
        values, seconds = self._values, self._seconds
        self.generated_tokens = values("generated_tokens_total", "Tokens sampled.")
        queued = seconds("queue", "From a request's acceptance to its first step.")
        between = seconds("inter_token", "From a token of a choice to the next, at the head.")
        self.tokens = TokenTimes(queued.of(), between.of())
        self.slots = values("slots", "Sequences that may run at once.")
        self.queue = values("queue_capacity", "Sequences that may wait; more are refused.")
        self.running = values("sequences_running", "Sequences that hold KV blocks.")
        self.waiting = values("sequences_waiting", "Sequences that wait for a slot.")
        self.waiting_of = values(
            "sequences_waiting_by_class", "Sequences that wait for a slot, by the class that they wait in.", "priority"
        )
        self.blocks = values("kv_blocks", "KV blocks of the pool, of 32 tokens each.")
        self.blocks_used = values("kv_blocks_used", "KV blocks held by sequences.")
        self.preemptions = values("preemptions_total", "Sequences preempted for want of KV blocks.")
        self.cached_tokens = values("prefix_cache_tokens_total", "Prompt tokens found in the prefix cache.")
        self.evicted = values("prefix_cache_evicted_blocks_total", "KV blocks of kept prompts that were given up for new ones.")
        self.drafted_tokens = values("drafted_tokens_total", "Guesses at coming tokens that steps verified.")
        self.accepted_tokens = values("accepted_tokens_total", "Of these, guesses that were right.")
        self.degraded_tokens = values("degraded_tokens_total", "Tokens computed without an expert that nobody had.")
        self.ready = values("ready", "1 while the model is served.")
        self.epoch = values("epoch", "The route's epoch: grows with every route that is tried.")
        self.predicted = values("predicted_tokens_per_second", "What placement predicts for full slots.")
        self._flight = seconds("step_flight", "From sending a step to its result.").of()
        self._head = seconds("step_head", "Scheduling, encoding, sending and applying at the head, per step.").of()
        self._hop = seconds("hop", "The way of a step to the stage on a node, from the stage before or from the head.", "node")
        self._wait = seconds("stage_wait", "A step waiting in a stage for the one before.", "node")
        self._compute = seconds("stage_compute", "Computing in a stage, per step.", "node")
        self._sample = seconds("sample", "Choosing tokens in the last stage, per step.").of()
        self._back = seconds("hop_back", "The way of a step from the last stage to the head.").of()
        self._stages: list[_Stage] = []
        self.stage_layers = values("stage_layers", "Layers of a stage of the route.", "node", "stage")
        self.slowdown = values("stage_slowdown", "Times by which a stage is slower than its node measured.", "node")
        self.weights = values("node_weights_bytes", "Weights that a node holds for the route, in memory.", "node")
        self._computing = values("node_compute_seconds_total", "What computing in a node's stages was made of.", "node", "part")
        self.kv = values("node_kv_bytes", "Memory that KV blocks take on a node.", "node")
        self.interruptions = seconds("interruption", "From noticing that a route is lost, or pausing it, to the next token.", "cause")
        self.interruption_parts = values("interruption_part_seconds_total", "What interruptions were made of.", "cause", "part")
        self.refilled = values("refilled_tokens_total", "Tokens whose keys and values were filled anew.")
        self._journals = (
            values("journal_bytes", "Journals in a node's memory.", "node"),
            values("journal_spilled_rows_total", "Journal rows that a node wrote to disk.", "node"),
            values("journal_given_up_rows_total", "Journal rows that found no room on a node.", "node"),
            values("journal_replayed_rows_total", "Journal rows that a node replayed.", "node"),
        )
        self._asks = {
            name: values(f"dispatch_{metric}_total", help, "node")
            for name, metric, help in (
                ("frames", "frames", "Frames with rows that a stage sent to workers."),
                ("hedged", "hedged", "Of these, sent because another worker was late."),
                ("repeated_frames", "repeated", "Of these, sent because another worker was lost."),
                ("taken_back", "taken_back", "Questions about experts that a stage ran itself, since nobody else did soon."),
                ("dropped", "dropped", "Experts that a layer went on without."),
                ("answers", "answers", "Answers of workers that a stage took."),
                ("sent", "sent_bytes", "Bytes of frames to workers."),
                ("received", "received_bytes", "Bytes of workers' answers."),
                ("waited", "waited_seconds", "In which a stage had nothing else to do."),
                ("round_trips", "round_trip_seconds", "From frames to their answers, all together."),
                ("queued", "queued_seconds", "Of these, in which rows waited at a worker."),
                ("computed", "computed_seconds", "Of these, in which a worker computed."),
            )
        }
        self._work = {
            "frames": values("worker_frames_total", "Frames that a worker answered.", "node"),
            "rows": values("worker_rows_total", "Rows of these.", "node"),
            "calls": values("worker_calls_total", "Calls of the kernels for them: frames for one layer run together.", "node"),
            "queued": values("worker_queued_frames", "Frames that wait at a worker.", "node"),
            "computed": values("worker_computed_seconds_total", "Computing at a worker.", "node"),
        }
        self.experts = ExpertUse(experts, labels)
        self.collectors.append(self.experts)
        for cause in CAUSES:
            self.interruptions.of(cause)
            for part in PARTS:
                self.interruption_parts.set(0, cause, part)

    def interruption(self, seconds: float, cause: str, parts: Mapping[str, float], refilled: int) -> None:
        """cause: one of CAUSES. parts: by PARTS."""
        self.interruptions.of(cause).observe(seconds)
        self.refilled.add(refilled)
        for part, value in parts.items():
            self.interruption_parts.add(value, cause, part)

    def journal(self, node: str, *values: int) -> None:
        """Records a heartbeat's journal figures: bytes; rows spilled, given up, replayed."""
        for journal, value in zip(self._journals, values, strict=True):
            journal.set(value, node)

    def asks(self, node: str, counts: Mapping[str, float]) -> None:
        """counts: of control.messages.ExpertAsks."""
        for name, asks in self._asks.items():
            asks.set(counts[name], node)

    def work(self, node: str, counts: Mapping[str, float]) -> None:
        """counts: of control.messages.ExpertWork."""
        for name, work in self._work.items():
            work.set(counts[name], node)

    def computing(self, node: str, *seconds: Mapping[str, float]) -> None:
        """seconds: by part, of control.messages.ComputeParts, of several kinds of steps."""
        for part in seconds[0]:
            self._computing.set(sum(each[part] for each in seconds), node, part)

    def route(self, nodes: Sequence[str]) -> None:
        """The steps that follow run on these nodes' stages."""
        self._stages = [_Stage(self._hop.of(node), self._wait.of(node), self._compute.of(node)) for node in nodes]

    def step(self, timing: StepTiming, hops: Sequence[float]) -> None:
        """hops: seconds of the way to each stage, and of the way back."""
        self._flight.observe(timing.flight)
        self._head.observe(timing.schedule + timing.encode + timing.send + timing.apply)
        self.generated_tokens.add(timing.sampled)
        for (way, wait, compute), hop, trace in zip(self._stages, hops, timing.traces, strict=False):
            way.observe(hop)
            wait.observe(trace.wait)
            compute.observe(trace.compute)
        if timing.traces:
            self._sample.observe(timing.traces[-1].sample)
            self._back.observe(hops[-1])
        self.tokens.step(timing.parts, timing.sent)


class UpstreamMetrics(_Group):
    """Of other servers that answer for some models, by their URLs."""

    def __init__(self) -> None:
        super().__init__({})
        values, seconds = self._values, self._seconds
        self._ready = values("upstream_ready", "1 while it takes requests.", "upstream")
        self._requests = values("upstream_requests_total", "Requests sent to it: served, failed, busy, or cancelled.", "upstream", "ending")
        self._tokens = values("upstream_tokens_total", "Tokens of its answers and their prompts.", "upstream", "kind")
        self._first = seconds("upstream_first_byte", "From sending it a request to the first byte of the answer.", "upstream")
        self._whole = seconds("upstream_answer", "From sending it a request to the end of the answer that it served.", "upstream")

    def state(self, url: str, ready: bool) -> None:
        self._ready.set(ready, url)
        for ending in ENDINGS:
            self._requests.add(0, url, ending)

    def request(self, url: str, ending: str, first: float, whole: float, prompt: int, completion: int) -> None:
        """ending: one of ENDINGS. first: seconds to the first byte; 0: none came. whole: seconds to the end."""
        self._requests.add(1, url, ending)
        self._tokens.add(prompt, url, "prompt")
        self._tokens.add(completion, url, "completion")
        if first:
            self._first.of(url).observe(first)
        if ending == "served":
            self._whole.of(url).observe(whole)


class Metrics(Collector):
    """All of a head: one registry per head, so that several can live in one process."""

    def __init__(self) -> None:
        self.nodes = NodeMetrics()
        self.upstreams = UpstreamMetrics()
        self.models: dict[str, ModelMetrics] = {}
        self.pipelines: dict[PipelineId, PipelineMetrics] = {}
        self.scaling: ScalingMetrics | None = None
        """None: nothing is scaled."""
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def forget(self, node: str) -> None:
        """Drops the figures of a node that is gone."""
        for group in (self.nodes, *self.pipelines.values()):
            group.forget(node)

    def collect(self) -> Iterator[Metric]:
        """Each metric once, with the values of all models and pipelines. May run in another thread than what counts."""
        families: dict[str, Metric] = {}
        scaling = [] if self.scaling is None else [self.scaling]
        for group in (*self.models.values(), *self.pipelines.values(), self.nodes, self.upstreams, *scaling):
            for collector in group.collectors:
                for family in collector.collect():
                    if (known := families.setdefault(family.name, family)) is not family:
                        known.samples += family.samples
        yield from families.values()

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self._registry)
