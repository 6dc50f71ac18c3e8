"""`up` and `serve`: clusters and their API."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from shoal.address import http_url, is_loopback, join_host_port
from shoal.cli.api import Api, api_of
from shoal.cli.credentials import pairing_desk
from shoal.cli.discover import announced, check_announcing
from shoal.cli.finishing import finished
from shoal.cli.loop import run
from shoal.cli.open_api import check_open
from shoal.cli.relocation import move_in
from shoal.cli.show import described, err, expected, line, split
from shoal.cli.waiting import stop_signal, until
from shoal.config import HeadSettings, NodeSettings
from shoal.discovery.addresses import of_this_machine, reachable, reached_at
from shoal.errors import ConfigError
from shoal.gateway.auth.keyring import Keyring
from shoal.gateway.server import listening
from shoal.launch.keys import head_credentials
from shoal.launch.local import local_cluster
from shoal.launch.scaling import NodeSources, checked_scaling, scaler_of
from shoal.launch.upstream_keys import upstream_keys
from shoal.leadership.keepers import NO_KEEPER, parse
from shoal.models.description import Description, listed
from shoal.models.sections import section_of, unserved
from shoal.node.daemon_thread import in_daemon_thread
from shoal.node.head import Head
from shoal.node.host_environment import HostEnvironment
from shoal.node.model_engine import ModelOffer
from shoal.node.model_keeper import ModelKeeper
from shoal.node.scaler import Scaler
from shoal.serving.registry_store import RegistryStore
from shoal.telemetry.traces import check_installed


async def serve_api(head: Head, api: Api, stop: asyncio.Event, reporting: Coroutine[Any, Any, None], grace: float) -> None:
    """Serves the API and reports the cluster's state, until told to stop.

    Unfinished answers then have `grace` seconds to end, unless told to stop again; the rest end with an error that says so.
    """
    tasks = serving, stopping, telling = [asyncio.ensure_future(work) for work in (api.serve(), stop.wait(), reporting)]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    if stop.is_set() and not serving.done():
        await finished(api, stop, grace)
    head.refuse("the server is shutting down")
    await asyncio.sleep(0)
    api.stop()
    for task in (stopping, telling):
        task.cancel()
    await asyncio.gather(stopping, telling, return_exceptions=True)
    await serving


async def fetched(model: str, stop: asyncio.Event, host: str = "") -> Description | None:
    """The model, fetched in a thread that is abandoned if told to stop; None after a stop.

    host: where nodes on other machines may reach the head. Nodes on this machine have its files under the same paths, so
    nothing is hashed for them; if it is empty there are no others, and no files are listed.
    """

    def work() -> Description:
        found = described(model)
        return listed(found, not is_loopback(host)) if host else found

    done = asyncio.ensure_future(in_daemon_thread(work))
    try:
        return done.result() if await until(stop, asyncio.wait({done})) else None
    finally:
        done.cancel()


async def offered(settings: HeadSettings, stop: asyncio.Event) -> list[ModelOffer] | None:
    """The models that a head is to serve, fetched; None after a stop. Raises ConfigError for two of one name."""
    for words in unserved(settings.sections, settings.models):
        line(words, "yellow")
    offers: list[ModelOffer] = []
    for name in settings.models:
        own = settings.of_model(section_of(settings.sections, name))
        if (model := await fetched(name, stop, settings.host)) is None:
            return None
        if any(model.name == other.model.name for other in offers):
            raise ConfigError(f"--model names {model.name} twice; for several copies of it use --replicas")
        offers.append(ModelOffer.of(model, name, own))
    return offers


def model_keeper(head: Head, settings: HeadSettings) -> ModelKeeper:
    """Raises ConfigError."""
    keeper = ModelKeeper(head, settings, RegistryStore(settings.api.data_folder))
    keeper.look()
    head.operator.keeper = keeper
    return keeper


async def reported(head: Head, keeper: ModelKeeper, scaler: Scaler) -> None:
    """Reports what happens at a head without nodes of its own, and keeps and scales its models, until it is cancelled."""
    await _told(keeper, scaler, _report(head))


async def _told(keeper: ModelKeeper, scaler: Scaler, reporting: Coroutine[Any, Any, None]) -> None:
    """Reports, and keeps models loaded, unloaded and scaled, until it is cancelled."""
    async with asyncio.TaskGroup() as group:
        group.create_task(keeper.run())
        if scaler.on:
            group.create_task(scaler.run())
        group.create_task(reporting)


def _check_lease(settings: HeadSettings) -> None:
    """Raises ConfigError."""
    if settings.lease:
        parse(settings.lease)
    elif settings.standby:
        raise ConfigError(NO_KEEPER)


def _check_open(settings: HeadSettings) -> None:
    """Warns about what is open to the network. Raises ConfigError if that was not requested."""
    keyring = Keyring(settings.api.data_folder)
    if settings.unprotected and not is_loopback(settings.host):
        _warn_unprotected(settings, keyring.required)
    check_open(settings.served_api, keyring.usable)


def _warn_unprotected(settings: HeadSettings, keys: bool) -> None:
    """keys: whether the API requires one. Raises ConfigError."""
    may = "join this cluster and read all that is said in it"
    if settings.gateway_port:
        if keys:
            raise ConfigError(
                f"the API has keys, and with --unprotected whoever reaches --gateway-port on {settings.host} would do what operators may "
                "without one; leave out --unprotected or --gateway-port, or name another --data folder, without keys"
            )
        may = "join this cluster, read all that is said in it, and do what operators may"
    err.print(f"[yellow]unprotected:[/yellow] whoever reaches {settings.host} can {may}")


async def _up(settings: HeadSettings, node: NodeSettings, nodes: int, sources: NodeSources) -> None:
    stop = stop_signal()
    with listening(settings.api.api_host, settings.api.port) as address:
        if (offers := await offered(settings, stop)) is not None:
            await _up_with(settings, node, nodes, offers, address, stop, sources)


async def _up_with(
    settings: HeadSettings,
    node: NodeSettings,
    nodes: int,
    offers: Sequence[ModelOffer],
    address: socket.socket,
    stop: asyncio.Event,
    sources: NodeSources,
) -> None:
    async with local_cluster(settings, node, offers, nodes) as cluster:
        keeper = model_keeper(cluster.head, settings)
        scaler = scaler_of(cluster.head, keeper, settings, sources)
        api = api_of(cluster.head, keeper, settings, address)
        if offers:
            with err.status("loading the model" if len(offers) == 1 else "loading the models"):
                if not await until(stop, cluster.until_ready()):
                    return
        head = cluster.head
        joining = f"shoal join {join_host_port(reached_at(settings.host), head.control_port)}"
        line(f"API on {http_url(reached_at(settings.api.api_host), api.port)}/v1")
        line(f"more nodes: {joining}{_elsewhere(settings)}")
        _tell_gateways(settings, head)
        line("Ctrl-C ends all")
        async with pairing_desk(settings, head, joining):
            await serve_api(head, api, stop, _told(keeper, scaler, _report(head, cluster.endings)), settings.api.grace)


async def _serve(settings: HeadSettings, sources: NodeSources) -> None:
    stop = stop_signal()
    with listening(settings.api.api_host, settings.api.port) as address:
        if (offers := await offered(settings, stop)) is not None:
            await _serve_models(settings, offers, address, stop, sources)


async def _serve_models(
    settings: HeadSettings, offers: Sequence[ModelOffer], address: socket.socket, stop: asyncio.Event, sources: NodeSources
) -> None:
    head = Head(settings, offers, HostEnvironment(head_credentials(settings)))
    await head.start()
    try:
        keeper = model_keeper(head, settings)
        scaler = scaler_of(head, keeper, settings, sources)
        api = api_of(head, keeper, settings, address)
        joining = f"shoal join {join_host_port(reached_at(settings.host), head.control_port)}"
        line(f"API on {http_url(reached_at(settings.api.api_host), api.port)}/v1")
        _tell_gateways(settings, head)
        line(f"{_awaited(settings)}: {joining}{_elsewhere(settings)}")
        async with (
            pairing_desk(settings, head, joining) as pairing_port,
            announced(head, pairing_port),
        ):
            await serve_api(head, api, stop, reported(head, keeper, scaler), settings.api.grace)
    finally:
        await head.stop()


def _tell_gateways(settings: HeadSettings, head: Head) -> None:
    if settings.gateway_port:
        line(f"gateways: shoal gateway {join_host_port(reached_at(settings.host), head.control_port)}{_elsewhere(settings)}")


def _awaited(settings: HeadSettings) -> str:
    """What the head is for while no node has joined, before the command that joins one."""
    if not settings.models:
        return f"answers come from {', '.join(settings.api.upstreams)}; nodes for models of its own join with"
    return f"waiting for {settings.min_nodes} node{'s' * (settings.min_nodes > 1)}"


def _elsewhere(settings: HeadSettings) -> str:
    """What to add to a command that only works on this machine."""
    if not is_loopback(settings.host):
        return ""
    here = [address for address in reachable(i.ip for i in of_this_machine()) if not address.is_loopback]
    example = f", like --host {here[0]}" if here else ""
    return f" (on this machine; for others start with --host ADDRESS{example})"


async def _report(head: Head, endings: Callable[[], list[str]] = list) -> None:
    """Reports changes of the cluster's state or split, what nodes do that takes long, and how nodes on this machine ended."""
    state, said = (None if head.state else ""), set[str]()
    roomless: list[str] = []
    shown: dict[str, list[tuple[str, int, int]]] = {}
    while True:
        for ending in endings():
            line(ending)
        for activity in [activity for activity in head.activities if activity not in said]:
            said.add(activity)
            line(activity)
        now = head.state
        for name, (placement, expectation) in head.placements.items():
            split_now = [(s.node, s.first, s.end) for s in placement.stages]
            if split_now != shown.get(name):
                shown[name] = split_now
                err.print(split(placement, name))
                if expectation is not None and placement.streams:
                    line(expected(expectation, placement.slots))
        if now != state:
            state = now
            line(now or "ready")
        for copy in [copy for copy in head.roomless if copy not in roomless]:
            line(copy)
        roomless = head.roomless
        await asyncio.sleep(0.2)


def up(settings: HeadSettings, node: NodeSettings, nodes: int) -> None:
    if settings.lease or settings.standby:
        raise ConfigError("`shoal up` is a cluster with one head; of several heads, start each with `shoal serve`")
    move_in()
    check_installed(settings.api.traces)
    sources = checked_scaling(settings)
    _check_open(settings)
    upstream_keys(settings.api)
    run(_up(settings, node, nodes, sources))


def serve(settings: HeadSettings) -> None:
    _check_lease(settings)
    move_in()
    check_announcing(settings)
    check_installed(settings.api.traces)
    sources = checked_scaling(settings)
    _check_open(settings)
    upstream_keys(settings.api)
    if settings.lease:
        from shoal.cli.succession import serve_in_turn

        run(serve_in_turn(settings.kept_by_default(), sources))
    else:
        run(_serve(settings.kept_by_default(), sources))
