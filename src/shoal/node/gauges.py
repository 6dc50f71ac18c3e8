"""What is measured when somebody asks for the metrics: the state of the cluster, its requests and its nodes."""

from __future__ import annotations

from shoal.node.coordinator import Coordinator
from shoal.node.pipeline_runner import PipelineRunner
from shoal.node.roster import Roster
from shoal.request import Priority
from shoal.telemetry.metrics import Metrics, NodeMetrics, PipelineMetrics


def gauge(metrics: Metrics, coordinator: Coordinator) -> None:
    _nodes(metrics.nodes, coordinator)
    for id, runner in coordinator.runners.items():
        of = metrics.pipelines[id]
        of.ready.set(runner.serving)
        of.epoch.set(runner.pipeline.epoch)
        of.predicted.set(runner.pipeline.placement.tokens_per_second if runner.pipeline.placement else 0.0)
        of.slots.set(runner.model.engine.slots)
        of.queue.set(runner.model.engine.queue)
        _route(of, runner, coordinator.roster)
        _requests(of, runner)


def _nodes(metrics: NodeMetrics, coordinator: Coordinator) -> None:
    now, members = coordinator.recorder.now(), coordinator.cluster.members
    metrics.nodes.set(len(members))
    for kind, count in coordinator.recorder.events.counts.items():
        metrics.events.set(count, kind.value)
    for member in members.values():
        metrics.busy.set(coordinator.loads.of(member.name).busy, member.name)
        metrics.memory.set(member.profile.memory, member.name)
        metrics.silence.set(max(now - member.heard, 0.0), member.name)
    names = (member.name for member in members.values())
    metrics.balance.only({(name,): share for name, share in coordinator.loads.balance(names).items()})


def _route(metrics: PipelineMetrics, runner: PipelineRunner, roster: Roster) -> None:
    pipeline, cost = runner.pipeline, runner.model.cost
    stages = pipeline.placement.stages if pipeline.placement else ()
    tokens = pipeline.placement.kv_tokens if pipeline.placement else 0
    members = {member.name: member for member in pipeline.members.values()}
    streamed = {stage.node: stage.memory for stage in stages}
    held = {
        member.name: streamed.get(member.name, 0) or roster.held(member, pipeline)
        for node, member in pipeline.members.items()
        if member.name in streamed or node in pipeline.workers
    }
    metrics.weights.only({(node,): size for node, size in held.items()})
    metrics.stage_layers.only({(stage.node, str(i)): stage.layers for i, stage in enumerate(stages)})
    metrics.slowdown.only({(stage.node,): members[stage.node].slower for stage in stages if stage.node in members})
    metrics.kv.only({(stage.node,): tokens * sum(layer.kv_bytes for layer in cost.layers[stage.first : stage.end]) for stage in stages})


def _requests(metrics: PipelineMetrics, runner: PipelineRunner) -> None:
    if runner.driver is None:
        return
    scheduler = runner.driver.scheduler
    metrics.running.set(scheduler.running)
    metrics.waiting.set(scheduler.waiting)
    for priority in Priority:
        metrics.waiting_of.set(scheduler.waiting_of(priority), priority.name.lower())
    metrics.blocks.set(scheduler.pool.size)
    metrics.blocks_used.set(scheduler.pool.used)
    metrics.evicted.set(scheduler.pool.evicted)
    metrics.preemptions.set(scheduler.counters.preemptions)
    metrics.cached_tokens.set(scheduler.counters.cached_tokens)
    metrics.drafted_tokens.set(scheduler.counters.drafted_tokens)
    metrics.accepted_tokens.set(scheduler.counters.accepted_tokens)
    metrics.degraded_tokens.set(scheduler.counters.degraded_tokens)
