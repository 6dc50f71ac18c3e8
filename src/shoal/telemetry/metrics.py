"""The head's metrics, for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from shoal.pipeline.timing import StepTiming
from shoal.telemetry.expert_use import ExpertUse

_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1, 2, 4, 8, 16, 32)


class Metrics:
    """One registry per head, so that several can live in one process."""

    def __init__(self, experts: Mapping[int, int]) -> None:
        """experts: how many each layer of the model has, of layers that have any."""
        self.registry = CollectorRegistry()

        def counter(name: str, help: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"shoal_{name}", help, labels, registry=self.registry)

        def gauge(name: str, help: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(f"shoal_{name}", help, labels, registry=self.registry)

        def histogram(name: str, help: str, labels: tuple[str, ...] = ()) -> Histogram:
            return Histogram(f"shoal_{name}", help, labels, buckets=_SECONDS, registry=self.registry)

        self.requests = counter("requests_total", "Requests by endpoint and outcome.", ("endpoint", "outcome"))
        self.prompt_tokens = counter("prompt_tokens_total", "Prompt tokens of accepted requests.")
        self.generated_tokens = counter("generated_tokens_total", "Tokens sampled.")
        self.first_token = histogram("time_to_first_token_seconds", "From a request's acceptance to its first token.")
        self.step_flight = histogram("step_flight_seconds", "From sending a step to its result.")
        self.stage_compute = histogram("stage_compute_seconds", "Computing in a stage, per step.", ("stage",))
        self.stage_wait = histogram("stage_wait_seconds", "Steps waiting in a stage for the one before.", ("stage",))
        self.hops = histogram("step_hops_seconds", "Between the processes, per step.")
        self.head = histogram("step_head_seconds", "Scheduling, encoding, sending and applying at the head, per step.")
        self.running = gauge("sequences_running", "Sequences that hold KV blocks.")
        self.waiting = gauge("sequences_waiting", "Sequences that wait for a slot.")
        self.waiting_of = gauge(
            "sequences_waiting_by_class", "Sequences that wait for a slot, by the class that they wait in.", ("priority",)
        )
        self.blocks_used = gauge("kv_blocks_used", "KV blocks held by sequences.")
        self.blocks = gauge("kv_blocks", "KV blocks of the pool.")
        self.preemptions = gauge("preemptions", "Sequences preempted for want of KV blocks, on this route.")
        self.cached_tokens = gauge("prefix_cache_tokens", "Prompt tokens found in the prefix cache, on this route.")
        self.degraded_tokens = gauge("degraded_tokens", "Tokens computed without an expert that nobody had, on this route.")
        self.nodes = gauge("nodes", "Nodes in the cluster.")
        self.ready = gauge("ready", "1 while a model is served.")
        self.predicted = gauge("predicted_tokens_per_second", "What placement predicts for full slots.")

        self.epoch = gauge("epoch", "The route's epoch: grows with every route that is tried.")
        self.interruptions = histogram("interruption_seconds", "From noticing that a route is lost, or pausing it, to the next token.")
        self.interruption_parts = histogram("interruption_part_seconds", "What interruptions were made of.", ("part",))
        self.refilled = counter("refilled_tokens_total", "Tokens whose keys and values were filled anew.")
        self._journals = (
            gauge("journal_bytes", "Journals in a node's memory.", ("node",)),
            gauge("journal_spilled_rows", "Journal rows that a node wrote to disk.", ("node",)),
            gauge("journal_given_up_rows", "Journal rows that found no room on a node.", ("node",)),
            gauge("journal_replayed_rows", "Journal rows that a node replayed.", ("node",)),
        )

        self._fetched = gauge("fetched_bytes", "Model files that a node fetched, by where they came from.", ("node", "source"))
        self._asks = {
            "frames": gauge("dispatch_frames", "Frames with rows that a stage sent to workers, in its epoch.", ("node",)),
            "hedged": gauge("dispatch_hedged", "Of these, sent because another worker was late.", ("node",)),
            "repeated_frames": gauge("dispatch_repeated", "Of these, sent because another worker was lost.", ("node",)),
            "taken_back": gauge(
                "dispatch_taken_back", "Questions about experts that a stage ran itself, since nobody else did soon.", ("node",)
            ),
            "dropped": gauge("dispatch_dropped", "Experts that a layer went on without.", ("node",)),
            "answers": gauge("dispatch_answers", "Answers of workers that a stage took.", ("node",)),
            "sent": gauge("dispatch_sent_bytes", "Bytes of frames to workers.", ("node",)),
            "received": gauge("dispatch_received_bytes", "Bytes of workers' answers.", ("node",)),
            "waited": gauge("dispatch_waited_seconds", "In which a stage had nothing else to do.", ("node",)),
            "round_trips": gauge("dispatch_round_trip_seconds", "From frames to their answers, all together.", ("node",)),
            "queued": gauge("dispatch_queued_seconds", "Of these, in which rows waited at a worker.", ("node",)),
            "computed": gauge("dispatch_computed_seconds", "Of these, in which a worker computed.", ("node",)),
        }
        self._work = {
            "frames": gauge("worker_frames", "Frames that a worker answered.", ("node",)),
            "rows": gauge("worker_rows", "Rows of these.", ("node",)),
            "calls": gauge("worker_calls", "Calls of the kernels for them: frames for one layer run together.", ("node",)),
            "queued": gauge("worker_queued_frames", "Frames that wait at a worker.", ("node",)),
            "computed": gauge("worker_computed_seconds", "Computing at a worker.", ("node",)),
        }
        self.busy = gauge("node_busy", "Share of the last 10 s in which a node computed.", ("node",))
        self.balance = gauge(
            "worker_balance", "Rows of a worker in the last 10 s, over the mean of all workers; 1: none had any.", ("node",)
        )
        self.experts = ExpertUse(experts)
        self.registry.register(self.experts)

    def interruption(self, seconds: float, parts: dict[str, float], refilled: int) -> None:
        self.interruptions.observe(seconds)
        self.refilled.inc(refilled)
        for part, value in parts.items():
            self.interruption_parts.labels(part).observe(value)

    def journal(self, node: str, *values: int) -> None:
        """Records a heartbeat's journal figures: bytes; rows spilled, given up, replayed."""
        for gauge, value in zip(self._journals, values, strict=True):
            gauge.labels(node).set(value)

    def fetched(self, node: str, peers: int, origin: int) -> None:
        self._fetched.labels(node, "peers").set(peers)
        self._fetched.labels(node, "origin").set(origin)

    def asks(self, node: str, counts: Mapping[str, float]) -> None:
        """counts: of control.messages.ExpertAsks."""
        for name, gauge in self._asks.items():
            gauge.labels(node).set(counts[name])

    def work(self, node: str, counts: Mapping[str, float]) -> None:
        """counts: of control.messages.ExpertWork."""
        for name, gauge in self._work.items():
            gauge.labels(node).set(counts[name])

    def forget(self, node: str) -> None:
        """Drops the figures of a node that is gone."""
        for gauge in (self._fetched, *self._journals, *self._asks.values(), *self._work.values(), self.busy, self.balance):
            gauge.remove_by_labels({"node": node})

    def step(self, timing: StepTiming) -> None:
        self.step_flight.observe(timing.flight)
        self.hops.observe(timing.hops)
        self.head.observe(timing.schedule + timing.encode + timing.send + timing.apply)
        self.generated_tokens.inc(timing.sampled)
        for stage, trace in enumerate(timing.traces):
            self.stage_compute.labels(stage).observe(trace.compute)
            self.stage_wait.labels(stage).observe(trace.wait)

    def text(self) -> bytes:
        return generate_latest(self.registry)
