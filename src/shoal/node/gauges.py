"""What is measured when somebody asks for the metrics: the state of the cluster, its requests and its nodes."""

from __future__ import annotations

from shoal.node.coordinator import Coordinator
from shoal.request import Priority
from shoal.telemetry.metrics import Metrics


def gauge(metrics: Metrics, coordinator: Coordinator) -> None:
    pipeline, engine = coordinator.pipeline, coordinator.settings.engine
    metrics.nodes.set(len(pipeline.members))
    metrics.ready.set(coordinator.serving)
    metrics.epoch.set(pipeline.epoch)
    metrics.predicted.set(pipeline.placement.tokens_per_second if pipeline.placement else 0.0)
    metrics.slots.set(engine.slots)
    metrics.queue.set(engine.queue)
    for kind, count in coordinator.recorder.events.counts.items():
        metrics.events.set(count, kind.value)
    _nodes(metrics, coordinator)
    _route(metrics, coordinator)
    _requests(metrics, coordinator)


def _nodes(metrics: Metrics, coordinator: Coordinator) -> None:
    now = coordinator.recorder.now()
    for member in coordinator.pipeline.members.values():
        metrics.busy.set(coordinator.loads.of(member.name).busy, member.name)
        metrics.memory.set(member.profile.memory, member.name)
        metrics.silence.set(max(now - member.heard, 0.0), member.name)
    names = (member.name for member in coordinator.pipeline.members.values())
    metrics.balance.only({(name,): share for name, share in coordinator.loads.balance(names).items()})


def _route(metrics: Metrics, coordinator: Coordinator) -> None:
    pipeline, roster, cost = coordinator.pipeline, coordinator.roster, coordinator.model.cost
    stages = pipeline.placement.stages if pipeline.placement else ()
    tokens = pipeline.placement.kv_tokens if pipeline.placement else 0
    members = {member.name: member for member in pipeline.members.values()}
    streamed = {stage.node: stage.memory for stage in stages}
    held = {
        member.name: streamed.get(member.name, 0) or roster.held(member, pipeline.holdings[node])
        for node, member in pipeline.members.items()
        if member.name in streamed or node in pipeline.workers
    }
    metrics.weights.only({(node,): size for node, size in held.items()})
    metrics.stage_layers.only({(stage.node, str(i)): stage.layers for i, stage in enumerate(stages)})
    metrics.slowdown.only({(stage.node,): members[stage.node].slower for stage in stages if stage.node in members})
    metrics.kv.only({(stage.node,): tokens * sum(layer.kv_bytes for layer in cost.layers[stage.first : stage.end]) for stage in stages})


def _requests(metrics: Metrics, coordinator: Coordinator) -> None:
    if coordinator.driver is None:
        return
    scheduler = coordinator.driver.scheduler
    metrics.running.set(scheduler.running)
    metrics.waiting.set(scheduler.waiting)
    for priority in Priority:
        metrics.waiting_of.set(scheduler.waiting_of(priority), priority.name.lower())
    metrics.blocks.set(scheduler.pool.size)
    metrics.blocks_used.set(scheduler.pool.used)
    metrics.evicted.set(scheduler.pool.evicted)
    metrics.preemptions.set(scheduler.counters.preemptions)
    metrics.cached_tokens.set(scheduler.counters.cached_tokens)
    metrics.degraded_tokens.set(scheduler.counters.degraded_tokens)
