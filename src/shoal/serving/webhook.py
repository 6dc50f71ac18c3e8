"""Tells somebody outside how many nodes are missing, by a signed webhook (https://www.standardwebhooks.com).

What is told is a state, not a change: the latest wish of a model replaces the one before, a receiver may see one twice, under the same id,
and a wish for 0 nodes takes back what was wished before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from time import time
from urllib.parse import urlsplit
from uuid import uuid4

import httpx2
import msgspec
import structlog

from shoal.retry import Backoff
from shoal.serving.node_wish import NodeWish
from shoal.serving.webhook_secret import WebhookSecret
from shoal.urls import check_webhook

log = structlog.get_logger()

MOST_WAITING = 256
"""Models whose wishes may wait; a further one replaces that which waits longest."""
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_TYPE = "shoal.nodes.wanted"


@dataclass(frozen=True, kw_only=True)
class WebhookPatience:
    """Seconds."""

    attempt: float = 10.0
    """For one attempt, until the receiver's answer begins."""
    deadline: float = 300.0
    """For all attempts of one wish; after it the wish is given up until there is a new one, or it is repeated."""
    first: float = 1.0
    """Before the second attempt; doubles with each, with jitter."""
    most: float = 60.0
    repeat: float = 900.0
    """After which a wish that still holds is told again."""


@dataclass
class _Waiting:
    """A wish under way. due, deadline: by the loop's clock."""

    wish: NodeWish
    id: str
    body: str
    due: float
    deadline: float
    backoff: Backoff
    tries: int = 0


@dataclass
class _Told:
    wish: NodeWish
    until: float
    """When it may be told again."""


@dataclass
class NodeWebhook:
    """`wish` only notes; `run` tells. url: may hold a token, so no more than its host is logged. Raises ConfigError for a bad one."""

    url: str
    secret: WebhookSecret = field(repr=False)
    patience: WebhookPatience = WebhookPatience()
    rng: Random = field(default_factory=Random)
    clock: Callable[[], float] = time
    """Seconds since 1970."""
    trouble: str = ""
    """Why the latest attempt failed; '': it did not, or it was to take back the last wish."""

    def __post_init__(self) -> None:
        check_webhook(self.url)
        self._host = urlsplit(self.url).hostname
        self._waiting: dict[str, _Waiting] = {}
        self._told: dict[str, _Told] = {}
        self._news = asyncio.Event()

    def wish(self, wish: NodeWish) -> None:
        """Takes no time: may be called with every plan, also with what was told already. From the event loop."""
        now = asyncio.get_running_loop().time()
        if (before := self._waiting.get(wish.model)) is not None:
            if before.wish.same(wish):
                return
        elif self._is_known(wish, now):
            return
        elif len(self._waiting) >= MOST_WAITING:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            log.warning("too many wishes for nodes wait for the webhook; the oldest is dropped", host=self._host, model=oldest)
        body = msgspec.json.encode({"type": _TYPE, "timestamp": _moment(self.clock()).isoformat(), "data": wish}).decode()
        backoff = Backoff(self.patience.first, self.patience.most)
        self._waiting[wish.model] = _Waiting(wish, f"msg_{uuid4().hex}", body, now, now + self.patience.deadline, backoff)
        self._news.set()

    def _is_known(self, wish: NodeWish, now: float) -> bool:
        """Whether the receiver was told, not long ago; or it has nothing to take back."""
        told = self._told.get(wish.model)
        return not wish.nodes if told is None else told.wish.same(wish) and now < told.until

    async def run(self) -> None:
        """Until it is cancelled."""
        async with httpx2.AsyncClient(timeout=self.patience.attempt, follow_redirects=False) as client:
            while True:
                waiting = await self._next()
                why, again = await self._tell(client, waiting)
                self._finished(waiting, why, again)

    async def _next(self) -> _Waiting:
        """The wish that is due first, when it is due."""
        loop = asyncio.get_running_loop()
        while True:
            self._news.clear()
            first = min(self._waiting.values(), key=lambda waiting: waiting.due, default=None)
            if first is not None and first.due <= loop.time():
                return first
            try:
                async with asyncio.timeout_at(None if first is None else first.due):
                    await self._news.wait()
            except TimeoutError:
                continue

    async def _tell(self, client: httpx2.AsyncClient, waiting: _Waiting) -> tuple[str, float | None]:
        """Why it failed, or '', and the seconds after which it is worth another attempt: 0: as usual, None: it is not."""
        waiting.tries += 1
        moment = _moment(self.clock())
        headers = {
            "content-type": "application/json",
            "webhook-id": waiting.id,
            "webhook-timestamp": str(int(moment.timestamp())),
            "webhook-signature": self.secret.signature(waiting.id, moment, waiting.body),
        }
        try:
            async with (
                asyncio.timeout(self.patience.attempt),  # httpx limits each read, not all of them
                client.stream("POST", self.url, content=waiting.body, headers=headers) as answer,
            ):
                status, later = answer.status_code, answer.headers.get("retry-after", "")
        except TimeoutError:
            return f"no answer within {self.patience.attempt:g} s", 0.0
        except httpx2.HTTPError as error:
            return f"{type(error).__name__}: {error}".replace(self.url, "URL"), 0.0
        if 200 <= status < 300:
            return "", None
        if 300 <= status < 400:
            return f"status {status}: redirects are not followed; give the final URL", None
        wait = min(float(later), self.patience.most) if later.isascii() and later.isdigit() else 0.0
        return f"status {status}", wait if status in _AGAIN else None

    def _finished(self, waiting: _Waiting, why: str, again: float | None) -> None:
        model = waiting.wish.model
        self._say(why)
        if self._waiting.get(model) is not waiting:  # a newer one has come meanwhile
            return
        now = asyncio.get_running_loop().time()
        if why and again is not None:
            waiting.due = now + max(waiting.backoff.next(self.rng), again)
            if waiting.due < waiting.deadline:
                return
        if why:
            log.warning("a wish for nodes is given up", host=self._host, model=model, tries=waiting.tries, reason=why)
        del self._waiting[model]
        if not waiting.wish.nodes and not self._waiting:
            self.trouble = ""
        if why or waiting.wish.nodes:
            self._told[model] = _Told(waiting.wish, now + self.patience.repeat)
        else:
            self._told.pop(model, None)

    def _say(self, why: str) -> None:
        """Once that it fails, once that it works again."""
        if why and not self.trouble:
            log.warning("the webhook for nodes fails", host=self._host, reason=why)
        elif self.trouble and not why:
            log.info("the webhook for nodes works again", host=self._host)
        self.trouble = why


def _moment(now: float) -> datetime:
    return datetime.fromtimestamp(now, UTC)
