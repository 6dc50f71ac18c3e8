"""The autoscaler of a head, from its settings."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import structlog

from shoal.config import HeadSettings, MoreNodes
from shoal.errors import ConfigError
from shoal.node.forecaster import Forecaster
from shoal.node.head import Head
from shoal.node.kubernetes_pool import KubernetesPool
from shoal.node.model_keeper import ModelKeeper
from shoal.node.node_source import NodeSource, PoolSource, WebhookSource
from shoal.node.ray_pool import RayPool
from shoal.node.scaler import Scaler
from shoal.observed.event import EventKind
from shoal.service_account import ServiceAccount
from shoal.serving.forecast import check_installed
from shoal.serving.webhook import NodeWebhook
from shoal.serving.webhook_secret import found_secret

log = structlog.get_logger()


def check_scaling(settings: HeadSettings) -> None:
    """Before anything is loaded. Raises ConfigError for what cannot work on this machine."""
    if settings.scaling.forecast:
        check_installed()
    node_source(settings)


def node_source(settings: HeadSettings, told: Callable[[str], object] = log.info) -> NodeSource | None:
    """Whom to ask for nodes; None: nobody. told: of what is done about it, in words. Raises ConfigError."""
    scaling = settings.scaling
    match scaling.more_nodes:
        case MoreNodes.NONE:
            return None
        case MoreNodes.WEBHOOK:
            return WebhookSource(NodeWebhook(scaling.webhook, found_secret(scaling.webhook_secret_file)))
        case MoreNodes.KUBERNETES:
            return PoolSource(
                KubernetesPool(scaling.stateful_set, ServiceAccount.of_pod("--more-nodes kubernetes")), settings.max_nodes, told
            )
        case MoreNodes.RAY:
            if find_spec("ray") is None:
                raise ConfigError("--more-nodes ray needs Ray, which is not installed; pip install 'shoal[ray]'")
            return PoolSource(RayPool(settings.cluster), settings.max_nodes, told)


def scaler_of(head: Head, keeper: ModelKeeper, settings: HeadSettings) -> Scaler:
    """Of this head, whose operator may ask it. Raises ConfigError."""
    recorder = head.coordinator.recorder
    scaler = Scaler(head, keeper, settings, node_source(settings, lambda words: recorder.events.add(EventKind.SCALED, words)))
    if settings.scaling.on:
        scaler.forecaster = Forecaster(
            settings.api.data_folder,
            scaler.counts,
            lambda: recorder.at,
            told=lambda words: recorder.events.add(EventKind.FAULT, words),
        )
    head.operator.fleet = scaler.plan
    return scaler
