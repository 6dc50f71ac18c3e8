"""What the autoscaler aims at, and how fast it may change its mind."""

from __future__ import annotations

import dataclasses
import enum
from urllib.parse import urlsplit

from shoal.address import parse_host
from shoal.config import Settings, setting
from shoal.errors import ConfigError


class MoreNodes(enum.StrEnum):
    NONE = "none"
    WEBHOOK = "webhook"
    RAY = "ray"
    KUBERNETES = "kubernetes"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalingSettings(Settings):
    """Of a model, or of all that have none of their own."""

    replicas_min: int = setting(1, "Fewest replicas of a model; 0: none while nobody asks for it.", low=0, high=1024)
    replicas_max: int = setting(1, "Most replicas of a model.", low=1, high=1024)
    queue_target: float = setting(4.0, "Requests that may wait for each replica.", low=0.1, high=1e6)
    first_token_target: float = setting(2.0, "Seconds in which 95 of 100 requests get their first token.", low=0.001, high=3600)
    slots_target: float = setting(
        0.75, "Share of a replica's slots that is taken, and of the tokens per second that it can do.", low=0.05, high=1
    )
    scale_tolerance: float = setting(0.1, "Share by which a figure may miss its target before anything changes.", low=0, high=0.5)
    scale_up_after: float = setting(15.0, "Seconds that load has to ask for more replicas.", low=0, high=86400)
    scale_down_after: float = setting(300.0, "Seconds that load has to be content with fewer replicas.", low=0, high=86400)
    scale_up_cooldown: float = setting(30.0, "Seconds between two additions of replicas.", low=0, high=86400)
    scale_down_cooldown: float = setting(300.0, "Seconds between any change and a removal of replicas.", low=0, high=86400)
    scale_idle: float = setting(
        600.0, "With --replicas-min 0: seconds without a request after which the last replica goes.", low=0, high=1e7
    )
    forecast: bool = setting(False, "Add replicas before the traffic of the day and the week needs them (needs shoal[forecast]).")
    more_nodes: MoreNodes = setting(MoreNodes.NONE, "Whom to ask for nodes where replicas do not fit on those that are there.")
    webhook: str = setting("", "With --more-nodes webhook: where the wish for nodes is sent, like https://HOST/PATH.")
    webhook_secret_file: str = setting("", "File with the secret that webhooks are signed with; empty: SHOAL_WEBHOOK_SECRET holds it.")

    def check(self) -> None:
        if self.replicas_min > self.replicas_max:
            raise ConfigError(f"--replicas-min {self.replicas_min} is more than --replicas-max {self.replicas_max}")
        if (self.more_nodes is MoreNodes.WEBHOOK) != bool(self.webhook):
            raise ConfigError("--more-nodes webhook and --webhook URL belong together; give both, or none")
        if self.webhook_secret_file and not self.webhook:
            raise ConfigError("--webhook-secret-file is of no use without --webhook URL")
        if self.webhook:
            check_webhook(self.webhook)


def check_webhook(url: str) -> None:
    """Raises ConfigError. The message has no more of it than its host: the rest may hold a token."""
    how = "write https://HOST/PATH, or http://HOST/PATH where nobody else listens"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:  # a port that is none, or a bracket too few
        raise ConfigError(f"--webhook: {error}; {how}") from None
    if parts.scheme not in ("http", "https") or not host or port == 0 or parts.fragment or not url.isascii() or not url.isprintable():
        raise ConfigError(f"--webhook is no place for webhooks; {how}")
    if "@" in parts.netloc:
        raise ConfigError("--webhook takes no password: the receiver knows the sender by the signature")
    try:
        parse_host(host)
    except ConfigError as error:
        raise ConfigError(f"--webhook: {error}; {how}") from None
