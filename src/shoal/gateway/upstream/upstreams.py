"""All upstreams of a server: keeps asking which models they have, and knows who may answer a request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from random import Random
from time import monotonic

import httpx2
import structlog

from shoal.config import ApiSettings
from shoal.gateway.upstream.hops import server_id
from shoal.gateway.upstream.listing import Unlisted, listed
from shoal.gateway.upstream.replicas import HERE, ReplicaSet
from shoal.gateway.upstream.upstream import Upstream
from shoal.observed.models import UpstreamView

log = structlog.get_logger()

LOOK = 5.0
"""Seconds between two questions for the models of an upstream."""
_DOUBTS = 2
"""Questions in a row without an answer, after which one that is only slow counts as away."""
_CONNECT = 5.0
_IDLE = 4.0
"""Seconds for which a connection is kept: less than servers keep theirs, so that none is used that is about to be closed."""
_PAUSE = 0.2
"""Seconds after which one that a request could not reach is asked again."""


class Upstreams:
    def __init__(
        self, settings: ApiSettings, keys: Mapping[str, str], told: Callable[[UpstreamView], None], id: str = "", look: float = LOOK
    ) -> None:
        """keys: by URL; '': for all others. told: of each change of one of them. id: this server's in Via headers; '': a new one."""
        self.all = {url: Upstream(url, keys.get(url, keys.get("", ""))) for url in settings.upstreams}
        self.id = id or server_id()
        self._settings, self._told, self._look = settings, told, look
        self._told_last: dict[str, UpstreamView] = {}
        self._sets: dict[tuple[str, str, frozenset[str]], ReplicaSet] = {}
        self._chance = Random()
        self._watchers: list[Callable[[], None]] = []
        self._client: httpx2.AsyncClient | None = None

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Keeps asking them while the context is open. One that does not answer keeps nobody waiting."""
        wait = self._settings.upstream_wait
        pool = httpx2.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=_IDLE)
        timeout = httpx2.Timeout(wait, connect=min(_CONNECT, wait), pool=None)
        no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))  # those of one client's answer are not for another's request
        client = self._client = httpx2.AsyncClient(
            limits=pool, timeout=timeout, cookies=no_cookies, trust_env=False, follow_redirects=False
        )
        async with client, asyncio.TaskGroup() as group:
            asking = [group.create_task(self._ask(client, upstream)) for upstream in self.all.values()]
            try:
                yield
            finally:
                for task in asking:
                    task.cancel()

    @property
    def client(self) -> httpx2.AsyncClient:
        assert self._client is not None, "the upstreams are not running"
        return self._client

    # What they have

    def watch(self, changed: Callable[[], None]) -> None:
        """changed: called when one of them has other models, or another state."""
        self._watchers.append(changed)

    @property
    def views(self) -> Sequence[UpstreamView]:
        return [upstream.view for upstream in self.all.values()]

    @property
    def states(self) -> dict[str, str]:
        """Of each of their models: '' if one of them takes requests for it, otherwise why none does."""
        states: dict[str, str] = {}
        for upstream in self.all.values():
            for model in upstream.models:
                if upstream.away == "":
                    states[model] = ""
                else:
                    states.setdefault(model, f"{upstream.url}: {upstream.away}")
        return states

    def known(self, model: str) -> bool:
        """Whether one of them has it, or had when it was last heard."""
        return any(model in upstream.models for upstream in self.all.values())

    @property
    def complete(self) -> bool:
        """Whether all of them have said which models they have."""
        return all(upstream.heard for upstream in self.all.values())

    # Who answers

    def replicas(self, model: str, path: str, here: bool, passed: Sequence[str]) -> tuple[ReplicaSet, frozenset[str]]:
        """The replicas of a model for a request, and their names. here: whether this server has the model, too. passed: ids of the servers that
        the request has passed through, which do not get it again."""
        without = frozenset(url for url, upstream in self.all.items() if upstream.id in passed and upstream.id)
        able = {url for url, upstream in self.all.items() if url not in without and upstream.offers(model, path)}
        members = frozenset(able | ({HERE} if here else set()))
        key = model, path, without
        if key not in self._sets:
            self._sets[key] = ReplicaSet(model, self.all, self._settings.balance, self._chance, monotonic, self.changed)
        self._sets[key].settle(members)
        return self._sets[key], members

    # Changes

    def changed(self, upstream: Upstream) -> None:
        """Tells of it, if it is not as it was told last."""
        if self._told_last.get(upstream.url) != (view := upstream.view):
            self._told_last[upstream.url] = view
            self._told(view)
            for changed in self._watchers:
                changed()

    async def _ask(self, client: httpx2.AsyncClient, upstream: Upstream) -> None:
        while True:
            upstream.doubted.clear()
            try:
                await self._learn(client, upstream)
            except Exception as error:  # whatever it said, it is asked again
                log.error("an upstream's models cannot be learnt, which is unexpected", upstream=upstream.url, exc_info=error)
                upstream.away = "what it answers cannot be understood; the server's log says more"
            self._forget(upstream)
            self.changed(upstream)
            try:
                async with asyncio.timeout(self._look):
                    await upstream.doubted.wait()
                await asyncio.sleep(_PAUSE)
            except TimeoutError:
                continue

    async def _learn(self, client: httpx2.AsyncClient, upstream: Upstream) -> None:
        try:
            models = await listed(client, upstream, self.id)
        except Unlisted as error:
            upstream.doubts += 1
            if error.sure or upstream.doubts >= _DOUBTS or not upstream.heard:
                upstream.away = str(error)
            return
        if upstream.away:
            upstream.lacking.clear()  # it may be another version of itself
        upstream.models, upstream.away, upstream.heard, upstream.doubts = models, "", True, 0

    def _forget(self, upstream: Upstream) -> None:
        """What concerns an upstream that is away, and models that are gone."""
        for model in [model for model in upstream.ejected if upstream.away or model not in upstream.models]:
            del upstream.ejected[model]
        known = {model for each in self.all.values() for model in each.models}
        for key in [key for key in self._sets if key[0] not in known]:
            del self._sets[key]
