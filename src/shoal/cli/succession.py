"""A head of several: it leads while it holds the lease, and otherwise stands by for the one that does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Coroutine, Sequence
from typing import Any

from shoal.address import http_url, join_host_port
from shoal.cli.api import Api, api_of
from shoal.cli.cluster import model_keeper, offered, reported
from shoal.cli.credentials import pairing_desk, standby_credentials
from shoal.cli.discover import announced
from shoal.cli.finishing import finished
from shoal.cli.show import line
from shoal.cli.waiting import stop_signal
from shoal.config import HeadSettings, Replicate
from shoal.discovery.addresses import reached_at
from shoal.errors import ConfigError, ShoalError
from shoal.gateway.server import listening
from shoal.gateway.standing_by import StandbyServer
from shoal.launch.keys import authority
from shoal.launch.scaling import NodeSources, scaler_of
from shoal.leadership.candidate import Candidate
from shoal.leadership.clock import elapsed
from shoal.leadership.keepers import lease_of, parse
from shoal.leadership.lease import Grant
from shoal.node.changing_databases import ChangingDatabases
from shoal.node.copied_files import CopiedFiles, held
from shoal.node.follower import Follower
from shoal.node.followers import Leadership
from shoal.node.head import Head
from shoal.node.head_machine import HeadMachine
from shoal.node.led_mark import led, mark_copied, mark_led
from shoal.node.model_engine import ModelOffer
from shoal.node.standby import Standby
from shoal.node.standing_by import StandingBy
from shoal.node.successor import Successor
from shoal.security.authority import Authority
from shoal.security.credentials import Credentials

_FILES = ("keys.sqlite", "models.sqlite")
"""Of the API's folder, that a successor needs."""


class _Turns:
    """One process: what it keeps whether it leads or stands by."""

    def __init__(
        self,
        settings: HeadSettings,
        credentials: Credentials | None,
        address: socket.socket,
        offers: Sequence[ModelOffer],
        stop: asyncio.Event,
        sources: NodeSources,
    ) -> None:
        """settings: with a state folder. offers: to serve if it is the first to lead."""
        assert settings.state_folder is not None
        self._settings, self._state, self._address, self._stop = settings, settings.state_folder, address, stop
        self._sources = sources
        self._standing = StandingBy(lambda: self._leader)
        self._machine = HeadMachine(credentials, self._standing)
        self._lease = lease_of(parse(settings.lease), settings.cluster, settings.lease_seconds, credentials)
        self._successor = Successor(settings, offers)
        self._may_begin = not settings.standby
        """Whether it may lead without ever having followed: then its own models and files are the cluster's."""
        self._standby: Standby | None = None
        self._copied = False
        """Whether it had a copy of what another head kept when it was elected."""
        self._leaves = False
        """Whether it leaves the cluster to a standby."""
        self._ends = False
        """Whether it was told to stop while it led: the event may have been cleared since, to hear whether it is told again."""

    async def run(self) -> None:
        """Until it is told to stop. Raises ConfigError."""
        settings = self._settings
        port = await self._machine.open(settings.host, settings.control_port)
        self._own = join_host_port(reached_at(settings.host), port)
        candidate = Candidate(self._lease, self._own)
        try:
            while (grant := await self._stand_by(candidate)) is not None:
                await self._lead(candidate, grant)
                if self._ends or self._stop.is_set():
                    break
        finally:
            await candidate.close()
            await self._lease.close()
            await self._successor.close()
            await self._machine.shut()
            self._machine.close()

    # Standing by

    async def _stand_by(self, candidate: Candidate) -> Grant | None:
        """Until this head holds the lease; None after a stop."""
        copies = CopiedFiles(self._state, self._settings.api.data_folder, _FILES)
        follower = Follower(self._own, copies, self._successor.learn)
        self._standby = standby = Standby(
            self._lease,
            candidate,
            follower,
            self._machine.control_link,
            leader=self._settings.standby,
            may_begin=self._may_begin,
            own=await asyncio.to_thread(led, self._state) is not None,
            ready=lambda: self._successor.ready,
            tell=line,
        )
        api = StandbyServer(self._address.dup(), lambda: self._standing.state)
        electing = asyncio.ensure_future(standby.until_elected())
        serving, stopping = asyncio.ensure_future(api.serve()), asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({electing, serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            self._copied = follower.whole
            if serving.done():
                serving.result()
            return electing.result() if electing.done() else None
        finally:
            api.stop()
            for task in (electing, stopping):
                task.cancel()
            await asyncio.gather(electing, serving, stopping, return_exceptions=True)
            await asyncio.to_thread(copies.close)

    @property
    def _leader(self) -> str:
        return self._standby.leader if self._standby is not None else ""

    # Leading

    async def _lead(self, candidate: Candidate, grant: Grant) -> None:
        """Serves until the lease is lost, or this head is told to stop."""
        await self._successor.close()
        settings, offers = self._successor.settings, self._successor.offers
        data = settings.api.data_folder
        last = await asyncio.to_thread(led, self._state)
        if not self._copied and (last is None or (last and grant.term > last + 1)):
            line("another head led meanwhile, and this one has no whole copy: requests that it took may not be known here", "yellow")
        await asyncio.to_thread(mark_led, self._state, grant.term)
        mark = await asyncio.to_thread(held, data)
        databases = ChangingDatabases(data, _FILES)
        certifying = self._authority()
        leadership = Leadership(
            grant.term,
            lambda: candidate.leads(elapsed()),
            settings.lease_seconds,
            self._own,
            settings.replicate is Replicate.BEFORE,
        )
        pem = certifying.pem.decode() if certifying is not None else ""
        head = Head(settings, offers, self._machine, leadership, databases, pem)
        await head.start()
        try:
            keeper = model_keeper(head, settings)
            scaler = scaler_of(head, keeper, settings, self._sources)
            api = api_of(head, keeper, settings, self._address.dup())
            joining = f"shoal join {self._own}"
            line(f"leads by term {grant.term}; API on {http_url(reached_at(settings.api.api_host), api.port)}/v1; nodes: {joining}")
            serving = asyncio.ensure_future(self._serve(head, api, candidate, reported(head, keeper, scaler)))
            try:  # announcing takes a second, for which no request is to wait
                async with pairing_desk(settings, head, joining, certifying) as pairing_port, announced(head, pairing_port):
                    await serving
            finally:
                serving.cancel()
                await asyncio.gather(serving, return_exceptions=True)
        finally:
            self._standby = None
            offers = [engine.offer for engine in head.engines.values()]
            if (self._ends or self._stop.is_set()) and not self._leaves:
                await head.stop()
            else:
                await head.stand_down("this head does not lead any more")
            if self._leaves:
                await asyncio.to_thread(mark_copied, self._state)  # the standby has all of it, and goes on
            await asyncio.to_thread(databases.close)
            if mark is not None:
                os.close(mark)
            self._successor = Successor(settings, offers)
            self._may_begin = True

    def _authority(self) -> Authority | None:
        """The cluster's: this machine's own, unless the head that was followed has given another."""
        if not self._settings.protected:
            return None
        return Authority.of(self._successor.authority.encode()) if self._successor.authority else authority()

    async def _serve(self, head: Head, api: Api, candidate: Candidate, reporting: Coroutine[Any, Any, None]) -> None:
        serving, telling = asyncio.ensure_future(api.serve()), asyncio.ensure_future(reporting)
        losing, stopping = asyncio.ensure_future(candidate.until_lost()), asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({serving, telling, losing, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if losing.done():
                why = f"this head does not lead any more ({losing.result()}); ask again, another one leads soon"
                line(f"leads no more: {losing.result()}")
                head.seal()
            elif stopping.done():
                why = await self._stopped(head, api, candidate)
            else:
                why = "the server is shutting down"
            head.refuse(why)
            await asyncio.sleep(0)
        finally:
            api.stop()
            for task in (telling, losing, stopping):
                task.cancel()
            await asyncio.gather(serving, telling, losing, stopping, return_exceptions=True)
        serving.result()

    async def _stopped(self, head: Head, api: Api, candidate: Candidate) -> str:
        """Leaves the cluster to a standby, or ends it. Returns why requests end."""
        self._ends = True
        followers = head.coordinator.followers
        self._leaves = followers is not None and followers.copied
        if self._leaves:
            line("leaving the cluster to a standby")
            head.seal()
        else:
            await finished(api, self._stop, self._settings.api.grace)
        with contextlib.suppress(ShoalError):  # then it ends by itself
            await candidate.resign()
        return "this head is shut down; ask again, another one leads soon" if self._leaves else "the server is shutting down"


async def serve_in_turn(settings: HeadSettings, sources: NodeSources) -> None:
    """settings: with a lease and a state folder. Raises ShoalError."""
    if settings.state_folder is None:
        raise ConfigError("--lease needs a folder for running requests: with --port 0, name one with --state")
    stop = stop_signal()
    credentials = await standby_credentials(settings)
    with listening(settings.api.api_host, settings.api.port) as address:
        offers = [] if settings.standby else await offered(settings, stop)
        if offers is not None:
            await _Turns(settings, credentials, address, offers, stop, sources).run()
