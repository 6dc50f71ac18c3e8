"""The autoscaler of a head, from its settings."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from shoal.config import HeadSettings, MoreNodes
from shoal.errors import ConfigError
from shoal.node.forecaster import Forecaster
from shoal.node.head import Head
from shoal.node.model_keeper import ModelKeeper
from shoal.node.node_source import NodePool, NodeSource, PoolSource
from shoal.node.scaler import Scaler
from shoal.observed.event import EventKind
from shoal.serving.forecast import check_installed

NodeSources = Callable[[Head], NodeSource | None]
"""Whom a head asks for nodes; None: nobody."""


def checked_scaling(settings: HeadSettings) -> NodeSources:
    """Before anything is loaded. Raises ConfigError for what cannot work on this machine."""
    scaling = settings.scaling
    if scaling.forecast:
        check_installed()
    match scaling.more_nodes:
        case MoreNodes.NONE:
            return lambda head: None
        case MoreNodes.WEBHOOK:
            from shoal.serving.webhook import NodeWebhook
            from shoal.serving.webhook_secret import found_secret

            secret = found_secret(scaling.webhook_secret_file)
            return lambda head: NodeWebhook(scaling.webhook, secret)
        case MoreNodes.KUBERNETES:
            from shoal.node.kubernetes_pool import KubernetesPool
            from shoal.service_account import ServiceAccount

            pool: NodePool = KubernetesPool(scaling.stateful_set, ServiceAccount.of_pod("--more-nodes kubernetes"))
        case MoreNodes.RAY:
            if find_spec("ray") is None:
                raise ConfigError("--more-nodes ray needs Ray, which is not installed; pip install 'shoal[ray]'")
            from shoal.node.ray_pool import RayPool

            pool = RayPool(settings.cluster)

    def source(head: Head) -> NodeSource:
        events = head.coordinator.recorder.events
        return PoolSource(pool, head.settings.max_nodes, lambda: head.members, lambda words: events.add(EventKind.SCALED, words))

    return source


def scaler_of(head: Head, keeper: ModelKeeper, settings: HeadSettings, sources: NodeSources) -> Scaler:
    """Of this head, whose operator may ask it. Raises ConfigError."""
    recorder = head.coordinator.recorder
    scaler = Scaler(head, keeper, settings, sources(head))
    if settings.scaling.on:
        scaler.forecaster = Forecaster(
            settings.api.data_folder,
            scaler.counts,
            lambda: recorder.at,
            told=lambda words: recorder.events.add(EventKind.FAULT, words),
        )
    head.operator.fleet = scaler.plan
    return scaler
