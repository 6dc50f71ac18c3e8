"""Which keeper a lease is asked from: one setting, read and checked."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from shoal.address import Address, parse_address
from shoal.discovery import redis_url
from shoal.errors import ConfigError
from shoal.leadership import etcd_url
from shoal.leadership.clock import elapsed
from shoal.leadership.etcd_url import EtcdUrl
from shoal.leadership.lease import DURATION, Lease
from shoal.security.credentials import Credentials
from shoal.service_account import ServiceAccount
from shoal.spelling import suggestion

T = TypeVar("T")
KEEPERS = (
    "redis://HOST:PORT/0, etcd://HOST:2379, kubernetes (in a pod), or witness://HOST:7430 (`shoal witness` on a machine that is none of the "
    "heads')"
)
NO_KEEPER = (
    "--standby needs --lease, the same on every head: without a third party, a head cannot tell one that died from a network that broke, "
    f"and both would lead; give one of {KEEPERS}"
)
_DNS = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SCHEMES = ["redis", "rediss", "etcd", "etcds", "kubernetes", "witness"]


@dataclass(frozen=True)
class KubernetesPlace:
    """namespace: '': the pod's. name: of the Lease; '': after the cluster."""

    namespace: str = ""
    name: str = ""


@dataclass(frozen=True)
class WitnessPlace:
    address: Address


Keeper = redis_url.RedisUrl | EtcdUrl | KubernetesPlace | WitnessPlace


def parse(text: str) -> Keeper:
    """What --lease says. Raises ConfigError, which never quotes a password."""
    scheme, _, rest = text.partition("://")
    if scheme in ("redis", "rediss"):
        return _of_flag(redis_url.parse, text)
    if scheme in ("etcd", "etcds"):
        return _of_flag(etcd_url.parse, text)
    if scheme == "kubernetes":
        return _kubernetes(rest)
    if scheme == "witness":
        return WitnessPlace(_of_flag(parse_address, rest.removesuffix("/")))
    raise ConfigError(f"--lease names no keeper{suggestion(scheme, _SCHEMES)}; give one of {KEEPERS}")


def lease_of(
    keeper: Keeper, cluster: str, duration: float = DURATION, credentials: Credentials | None = None, now: Callable[[], float] = elapsed
) -> Lease:
    """The cluster's lease there, of which nothing is asked yet. credentials: the head's, for a witness. Raises ConfigError."""
    if isinstance(keeper, redis_url.RedisUrl):
        try:
            from shoal.leadership.redis import RedisLease
        except ModuleNotFoundError as error:
            if error.name != "redis":
                raise
            raise ConfigError("a lease in Redis needs its client: pip install 'shoal[redis]'") from None
        return RedisLease(keeper, cluster, duration, now)
    if isinstance(keeper, EtcdUrl):
        from shoal.leadership.etcd import EtcdLease

        return EtcdLease(keeper, cluster, duration, now)
    if isinstance(keeper, KubernetesPlace):
        from shoal.leadership.kubernetes import KubernetesLease

        name = keeper.name or f"shoal-{cluster}"
        if _DNS.fullmatch(name) is None:
            raise ConfigError(f"'{name[:80]}' cannot name a Lease of Kubernetes; write --lease kubernetes://NAMESPACE/NAME")
        account = ServiceAccount.of_pod("--lease kubernetes", "elsewhere use redis://, etcd:// or witness://")
        return KubernetesLease(account, name, keeper.namespace, duration, now)
    from shoal.leadership.witness import WitnessLease

    return WitnessLease(str(keeper.address), cluster, duration, credentials, now)


def _kubernetes(rest: str) -> KubernetesPlace:
    """'', 'NAMESPACE' or 'NAMESPACE/NAME'. Raises ConfigError."""
    namespace, _, name = rest.rstrip("/").partition("/")
    if any(part and _DNS.fullmatch(part) is None for part in (namespace, name)):
        raise ConfigError("--lease kubernetes://NAMESPACE/NAME takes names of lower-case letters, digits and hyphens, at most 63 each")
    return KubernetesPlace(namespace, name)


def _of_flag(read: Callable[[str], T], text: str) -> T:
    """Raises ConfigError."""
    try:
        return read(text)
    except ConfigError as error:
        raise ConfigError(f"--lease: {error}") from None
