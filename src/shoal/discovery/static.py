"""A given address, or none; then there is nothing to search."""

from __future__ import annotations

from collections.abc import Callable

from shoal.address import parse_address
from shoal.discovery.advert import Advert, check_name
from shoal.discovery.topology import Topology
from shoal.errors import ClusterError


class StaticRegistry:
    """Announces nothing, and finds the given address, whether or not a head is there."""

    def __init__(self, address: str | None = None) -> None:
        """address: HOST:PORT of a head, an IPv6 host in brackets. Raises ConfigError."""
        self._head = None if address is None else parse_address(address)

    def __repr__(self) -> str:
        return f"StaticRegistry({self._head})"

    async def announce(self, advert: Advert) -> None:
        """Does nothing: a node that knows the address needs no advert."""

    async def update(self, advert: Advert) -> None:
        """Does nothing."""

    def show(self, look: Callable[[], Topology]) -> None:
        """Does nothing."""

    async def withdraw(self) -> None:
        """Does nothing."""

    async def find(self, cluster: str | None, timeout: float) -> Advert:
        """An advert with only the address; its cluster name is the requested one, or `given`."""
        if self._head is None:
            raise ClusterError("discovery is off; give the head's address, `shoal join HOST:PORT`, or choose a --discovery")
        host, port = self._head
        return Advert(cluster=check_name(cluster) if cluster is not None else "given", host=host, control_port=port)

    async def close(self) -> None:
        """Does nothing."""
