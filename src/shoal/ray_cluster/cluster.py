"""A head and its nodes as Ray actors, kept alive for as long as this process lives."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

from ray.exceptions import RayError

from shoal.address import http_url, is_wildcard, parse_address
from shoal.config import HeadSettings, NodeSettings
from shoal.errors import ClusterError, ConfigError
from shoal.ray_cluster.actors import HeadActor, NodeActor, ScaleOrders
from shoal.ray_cluster.api import come, ray
from shoal.ray_cluster.keeper import Keeper
from shoal.ray_cluster.places import Bundle, Places, RayPlace
from shoal.security.credentials import Credentials
from shoal.settings import parse_bytes

_NAMESPACE = "shoal"
_LOOK = 0.5  # seconds between looks at the actors
_PATIENCE = 10.0  # seconds after which it is said what is waited for
_ANSWER = 10.0  # seconds for an actor that is there
_LEAVING = 120.0  # seconds that a node has to move its layers
_MARGIN = 15.0  # seconds beyond --grace in which a head ends what is left
_HEAD: Bundle = {"CPU": 1}


def connect(address: str) -> None:
    """address: of Ray's cluster; auto: the one that runs on this machine. Raises ConfigError."""
    try:
        ray.init(address=address, namespace=_NAMESPACE, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = "on this machine" if address == "auto" else f"at {address}"
        raise ConfigError(
            f"there is no Ray cluster {where} ({str(error).strip()}): `ray start --head` begins one, `ray start --address=HOST:6379` adds a machine to it"
        ) from error


def order(cluster: str, nodes: int, at_least: bool = False) -> None:
    """Tells the `shoal ray up` of that name how many nodes it is to have; 0 ends it. at_least: and no fewer than it has. Raises ConfigError."""
    try:
        orders = ray.get_actor(cluster, namespace=_NAMESPACE)
    except ValueError:
        raise ConfigError(f"no `shoal ray up` runs a cluster {cluster} on this Ray cluster") from None
    ray.get(orders.post.remote(nodes, at_least), timeout=_ANSWER)


class RayCluster:
    """`connect` comes first."""

    def __init__(self, head: HeadSettings, node: NodeSettings, nodes: int, tell: Callable[[str], None]) -> None:
        """head: without its host. node: with memory and threads, which Ray reserves. Raises ConfigError."""
        if not head.control_port:
            raise ConfigError("--control-port 0 gives a head that Ray starts again another port, where its nodes do not look; name one")
        self._settings = dataclasses.replace(head, min_nodes=nodes, spread=True, discovery="none")
        self._node, self._tell = node, tell
        self._room: Bundle = {"CPU": node.threads, "memory": parse_bytes(node.memory)}
        self._wanted, self._made = nodes, 0
        self._places = Places()
        self._head: Keeper | None = None
        self._nodes: list[Keeper] = []
        self._leaving: dict[Keeper, float] = {}  # until when
        self._joining: tuple[str, Credentials | None] | None = None
        self._orders: Any = None
        self._taking: Any = None

    def run(self, stop: threading.Event) -> None:
        """Starts everything, and keeps it until told to stop, then ends it. Raises ClusterError, ConfigError."""
        self._take_name()
        try:
            here, *others = self._places.take([_HEAD, *[self._room] * self._wanted])
            head = self._head = self._keeper("the head", HeadActor, here, self._settings)
            if not self._until_listening(head, stop):
                return
            for place in others:
                self._add(place)
            while not stop.wait(_LOOK) and self._wanted:
                self._look()
        finally:
            self._end()

    def _take_name(self) -> None:
        """Raises ConfigError."""
        try:
            self._orders = ray.remote(ScaleOrders).options(name=self._settings.cluster, num_cpus=0, max_restarts=-1).remote()
        except ValueError:
            name = self._settings.cluster
            raise ConfigError(
                f"another `shoal ray up` runs a cluster {name} on this Ray cluster; give this one another --cluster"
            ) from None

    def _keeper(self, name: str, kind: type[Any], place: RayPlace, *arguments: Any) -> Keeper:
        return Keeper(name, place, lambda: ray.remote(kind).options(**place.options).remote(*arguments), self._tell)

    def _until_listening(self, head: Keeper, stop: threading.Event) -> bool:
        """False: told to stop. Raises ClusterError if the head ends."""
        placing, late, said = head.place.group.ready(), monotonic() + _PATIENCE, False
        while not stop.wait(_LOOK):
            if not said and monotonic() > late and not come(placing):
                said = True
                self._tell(
                    f"waiting for Ray to have room for a head ({_shown(_HEAD)}) and {self._wanted} nodes ({_shown(self._room)} each)"
                )
            if ending := head.ask("ending") or head.dead:
                raise ClusterError(f"the head {ending}")
            if joining := head.ask("joining"):
                self._joining = joining
                self._tell(f"the head is at {joining[0]}, its API on {self._url()}/v1")
                return True
        return False

    def _url(self) -> str:
        assert self._joining is not None
        api = self._settings.api
        return http_url(parse_address(self._joining[0]).host if is_wildcard(api.api_host) else api.api_host, api.port)

    def _add(self, place: RayPlace) -> None:
        assert self._joining is not None
        self._made += 1
        self._nodes.append(self._keeper(f"node {self._made}", NodeActor, place, self._node, *self._joining))

    def _look(self) -> None:
        now = monotonic()
        for keeper in (self._head, *self._nodes):
            if keeper is not None and (ending := keeper.tend(now)):
                self._tell(ending)
        self._follow_head()
        for node, end in [*self._leaving.items()]:
            if self._ended(node) or now > end:
                self._drop(node)
        if (wanted := self._ordered()) is not None and wanted != self._wanted:
            self._tell(f"{wanted} nodes from now on, not {self._wanted}" if wanted else "told to end")
            self._scale(wanted)

    def _follow_head(self) -> None:
        """Ray may have made the head again on another machine: its nodes then look for it there."""
        assert self._head is not None and self._joining is not None
        if self._head.ask("host") in (None, parse_address(self._joining[0]).host) or not (joining := self._head.ask("joining")):
            return
        self._joining = joining
        self._tell(f"the head is at {joining[0]} now, its API on {self._url()}/v1")
        nodes, self._nodes = self._nodes, []
        for node in nodes:
            node.kill()
            self._add(node.place)

    def _ordered(self) -> int | None:
        self._taking = self._taking or self._orders.take.remote()
        if not come(self._taking):
            return None
        taken, self._taking = self._taking, None
        try:
            nodes, at_least = ray.get(taken) or (None, False)
            return max(nodes, self._wanted) if nodes is not None and at_least else nodes
        except RayError:  # its machine is gone; Ray makes it again
            return None

    def _scale(self, wanted: int) -> None:
        if wanted > self._wanted:
            for place in self._places.take([self._room] * (wanted - self._wanted)):
                self._add(place)
        elif wanted:
            for node in self._nodes[wanted:]:
                node.actor.stop.remote()
                self._leaving[node] = monotonic() + _LEAVING
            del self._nodes[wanted:]
        self._wanted = wanted

    def _drop(self, node: Keeper) -> None:
        self._leaving.pop(node, None)
        node.kill()
        self._places.give_back(node.place)

    def _end(self) -> None:
        """The head finishes its answers and sends the nodes home; then nothing is left."""
        head, nodes = self._head, [*self._nodes, *self._leaving]
        if head is not None and self._joining is not None:
            head.actor.stop.remote()
            end = monotonic() + self._settings.api.grace + _MARGIN
            while monotonic() < end and not self._ended(head):
                threading.Event().wait(0.1)
            end = monotonic() + _ANSWER
            while monotonic() < end and not all(self._ended(node) for node in nodes):
                threading.Event().wait(0.1)
        for keeper in (*nodes, head):
            if keeper is not None:
                keeper.kill()
        if self._orders is not None:
            ray.kill(self._orders)
        self._places.give_all_back()

    def _ended(self, keeper: Keeper) -> bool:
        return bool(keeper.ask("ending") or keeper.dead)


def _shown(bundle: Bundle) -> str:
    return ", ".join(f"{value / 2**30:.3g} GiB of memory" if name == "memory" else f"{value:g} {name}" for name, value in bundle.items())
