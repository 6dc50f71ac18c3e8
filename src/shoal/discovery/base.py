"""Where a cluster is announced and found, and how one is chosen among those that answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from shoal.discovery.advert import Advert
from shoal.discovery.topology import Topology
from shoal.errors import ClusterError, LocalProtocolError

MOST = 256  # most adverts that one search examines; more is a flood


class Registry(Protocol):
    """One end of discovery: a head announces, a node finds."""

    async def announce(self, advert: Advert) -> None:
        """The cluster can be found once this returns. Raises ClusterError if that is impossible, ConfigError."""
        ...

    async def update(self, advert: Advert) -> None:
        """Publishes the cluster's current state, soon; the name must be the announced one. Raises LocalProtocolError before
        `announce`."""
        ...

    def show(self, look: Callable[[], Topology]) -> None:
        """While the cluster is announced, publishes what `look` sees of it whenever that changes, if the registry can hold it."""
        ...

    async def withdraw(self) -> None:
        """Withdraws the announcement; without one this does nothing."""
        ...

    async def find(self, cluster: str | None, timeout: float) -> Advert:
        """The cluster of that name, or the only one there is, within `timeout` seconds.

        Raises ClusterError if none answers in that time, or if several do; it says what to do. Raises ConfigError for an
        invalid name.
        """
        ...

    async def close(self) -> None:
        """Withdraws and releases everything."""
        ...


def matching(adverts: Iterable[Advert], cluster: str | None) -> list[Advert]:
    """The adverts of that name, or all; sorted, each address once."""
    wanted = {(a.cluster, a.address): a for a in adverts if cluster is None or a.cluster == cluster}
    return [wanted[key] for key in sorted(wanted)]


def choose(adverts: Iterable[Advert], cluster: str | None) -> Advert | None:
    """The cluster that is meant; None if there is none. Raises ClusterError if the choice is ambiguous."""
    found = matching(adverts, cluster)
    if len(found) <= 1:
        return found[0] if found else None
    listing = "".join(f"\n  {a.cluster} at {a.address}{f', {a.model}' if a.model else ''}, {a.nodes} nodes" for a in found)
    if len({a.cluster for a in found}) == 1:
        raise ClusterError(
            f"{len(found)} clusters are called {found[0].cluster}; give the address of the one that is meant, "
            f"or start one of them under another name:{listing}"
        )
    raise ClusterError(f"{len(found)} clusters answer; choose one with --cluster NAME, or give its address:{listing}")


def nothing_found(cluster: str | None, where: str, timeout: float, known: Iterable[Advert] = ()) -> ClusterError:
    """The error of a search that found nothing; `known` are clusters with other names."""
    wanted = f"no cluster called {cluster}" if cluster is not None else "no cluster"
    others = sorted({a.cluster for a in known})
    answered = f" ({', '.join(others)} did)" if others else ""
    return ClusterError(
        f"{wanted} answered {where} within {timeout:g} s{answered}; is `shoal serve` running, with the same --discovery? "
        "Otherwise give the head's address: `shoal join HOST:PORT`"
    )


def check_update(announced: Advert | None, advert: Advert) -> None:
    """Raises LocalProtocolError if `advert` is not an update of `announced`."""
    if announced is None:
        raise LocalProtocolError(f"cluster {advert.cluster} is updated and was never announced")
    if announced.cluster != advert.cluster:
        raise LocalProtocolError(f"cluster {announced.cluster} cannot become {advert.cluster}: withdraw it first")
