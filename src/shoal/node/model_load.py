"""What is known of a model's load at one moment, from its copies and from what was watched of its requests."""

from __future__ import annotations

from collections.abc import Mapping

from shoal.node.load_watch import LoadWatch
from shoal.node.model_engine import ModelEngine
from shoal.node.pipeline_runner import PipelineRunner
from shoal.serving.scaling.load import ModelLoad, ReplicaLoad, ReplicaPhase


def load_of(
    engine: ModelEngine,
    watch: LoadWatch,
    now: float,
    *,
    roomless: frozenset[int],
    fastest: Mapping[int, float],
    waiting: int,
    load_seconds: float,
    nodes: int,
) -> ModelLoad:
    """now: seconds, by the cluster's clock. roomless: copies that find no room, and so count as not there. fastest: tokens per second that copies
    have reached. waiting: requests that wait for the model beside those in its queues. load_seconds, nodes: that one more copy takes; 0 nodes:
    no number suffices."""
    copies = {number: runner for number, runner in engine.copies.runners.items() if number not in roomless}
    replicas = tuple(
        _replica(number, runner, number in engine.copies.stopping, fastest.get(number, 0.0)) for number, runner in copies.items()
    )
    serving = [replica for replica in replicas if replica.state is ReplicaPhase.SERVING]
    slots = sum(replica.slots for replica in serving)
    queued = waiting + sum(_waiting(runner) for runner in engine.copies)
    return ModelLoad(
        engine.name,
        replicas,
        priority=engine.offer.priority,
        waiting=queued,
        first_token_p95=watch.first_token_p95,
        utilisation=min(sum(replica.running for replica in serving) / slots, 1.0) if slots else 0.0,
        requests_per_second=watch.per_second,
        tokens_per_second=sum(runner.record.tokens_per_second for runner in engine.copies),
        slot_seconds=watch.slot_seconds,
        idle=0.0 if engine.busy or queued else max(now - engine.used, 0.0),
        load_seconds=load_seconds,
        nodes_per_replica=nodes,
        new_slots=engine.offer.engine.slots,
    )


def running(engine: ModelEngine) -> int:
    """Sequences that take a slot."""
    return sum(runner.driver.scheduler.running for runner in engine.copies if runner.driver is not None)


def inside(engine: ModelEngine) -> int:
    """Sequences that take a slot or wait for one."""
    return running(engine) + sum(_waiting(runner) for runner in engine.copies)


def _waiting(runner: PipelineRunner) -> int:
    return runner.driver.scheduler.waiting if runner.driver is not None else len(runner.requests)


def _replica(number: int, runner: PipelineRunner, stopping: bool, fastest: float) -> ReplicaLoad:
    placement = runner.pipeline.placement
    predicted = placement.tokens_per_second if placement is not None else 0.0
    state = ReplicaPhase.STOPPING if stopping else ReplicaPhase.SERVING if runner.serving else ReplicaPhase.LOADING
    return ReplicaLoad(
        number,
        state,
        runner.model.engine.slots,
        runner.driver.scheduler.running if runner.driver is not None else 0,
        max(predicted, fastest) if predicted else 0.0,  # it can do at least what it did
    )
