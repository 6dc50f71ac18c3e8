"""Where a cluster is announced and found, and how one is chosen among those that answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from shoal.discovery.advert import Advert
from shoal.errors import ClusterError, LocalProtocolError

MOST = 256  # adverts that one search looks at; more is a flood


class Registry(Protocol):
    """One party's end of it: a head announces, a node finds."""

    async def announce(self, advert: Advert) -> None:
        """The cluster can be found once this returns. Raises ClusterError where that is impossible, ConfigError."""
        ...

    async def update(self, advert: Advert) -> None:
        """The cluster as it is now, seen soon; the same name as announced. Raises LocalProtocolError before `announce`."""
        ...

    async def withdraw(self) -> None:
        """The cluster is no longer found; without an announcement this does nothing."""
        ...

    async def find(self, cluster: str | None, timeout: float) -> Advert:
        """The cluster of that name, or the only one there is, within `timeout` seconds.

        Raises ClusterError where none answers in that time, and where several do; it says what to do. Raises ConfigError for
        what cannot be a name.
        """
        ...

    async def close(self) -> None:
        """Withdraws, and lets go of everything."""
        ...


def matching(adverts: Iterable[Advert], cluster: str | None) -> list[Advert]:
    """The adverts of that name, or all; sorted, each address once."""
    wanted = {(a.cluster, a.address): a for a in adverts if cluster is None or a.cluster == cluster}
    return [wanted[key] for key in sorted(wanted)]


def choose(adverts: Iterable[Advert], cluster: str | None) -> Advert | None:
    """The one that is meant; None where none is there. Raises ClusterError where it is not clear which."""
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
    """The error of a search in vain; `known` are clusters of other names."""
    wanted = f"no cluster called {cluster}" if cluster is not None else "no cluster"
    others = sorted({a.cluster for a in known})
    answered = f" ({', '.join(others)} did)" if others else ""
    return ClusterError(
        f"{wanted} answered {where} within {timeout:g} s{answered}; is `shoal serve` running, with the same --discovery? "
        "Otherwise give the head's address: `shoal join HOST:PORT`"
    )


def check_update(announced: Advert | None, advert: Advert) -> None:
    """Raises LocalProtocolError where `advert` does not follow `announced`."""
    if announced is None:
        raise LocalProtocolError(f"cluster {advert.cluster} is updated and was never announced")
    if announced.cluster != advert.cluster:
        raise LocalProtocolError(f"cluster {announced.cluster} cannot become {advert.cluster}: withdraw it first")
