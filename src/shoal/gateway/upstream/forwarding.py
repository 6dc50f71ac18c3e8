"""ASGI middleware: requests for models that upstreams have are answered by one of these, or by this server where it has the model, too.

A request goes to the replica that the balancer chooses. As long as nothing of an answer has been passed on, one that cannot be reached,
breaks off, is busy or has no such endpoint is followed by the next. After that, a stream that breaks off ends with an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shoal.errors import InvalidRequest, Looped, NotCached, NotReady, ShoalError, UnknownEndpoint, UnknownModel
from shoal.gateway.auth.caller import CALLER
from shoal.gateway.http.dialect import refusal
from shoal.gateway.http.faults import fault
from shoal.gateway.http.request_span import SPAN
from shoal.gateway.http.reuse import REUSE
from shoal.gateway.http.work import LARGE, work
from shoal.gateway.service import parsed, raw_body, unless_left
from shoal.gateway.upstream.asked import Asked
from shoal.gateway.upstream.engines import EnginesAndUpstreams
from shoal.gateway.upstream.hops import passed
from shoal.gateway.upstream.local import LocalAttempt, replayed
from shoal.gateway.upstream.no_answer import NoAnswer, most_useful
from shoal.gateway.upstream.remote import RemoteAttempt
from shoal.gateway.upstream.replicas import HERE, ReplicaSet
from shoal.gateway.upstream.upstreams import Upstreams
from shoal.serving.balancing.inquiry import Inquiry
from shoal.serving.balancing.text_pieces import TOKEN, inquiry_of

PATHS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
}
"""The endpoints whose requests go to upstreams, with their names in metrics."""


class _Exchange:
    """What a client says and is told. receive: gives the body again, and then what follows it."""

    def __init__(self, request: Request, raw: bytes, send: Send) -> None:
        self.request, self.raw, self.scope, self.send = request, raw, request.scope, send

    @property
    def receive(self) -> Receive:
        return replayed(self.raw, self.request.receive)


class Forwarding:
    def __init__(self, app: ASGIApp, upstreams: Upstreams, engines: EnginesAndUpstreams) -> None:
        self._app, self._upstreams, self._engines = app, upstreams, engines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in PATHS:
            return await self._app(scope, receive, send)
        try:
            request = Request(scope, receive)
            exchange = _Exchange(request, bytes(await raw_body(request)), send)
            if (asked := await self._for_others(exchange)) is None:
                await self._app(scope, exchange.receive, send)
            else:
                await self._try(exchange, *asked)
        except ClientDisconnect:
            return None  # before its request was complete
        except ShoalError as error:
            what = fault(error)
            self._engines.observe_request(PATHS[scope["path"]], str(what.status), 0)
            await refusal(scope["path"], Headers(scope=scope), what)(scope, receive, send)

    async def _for_others(self, exchange: _Exchange) -> tuple[Asked, ReplicaSet] | None:
        """The request as others get it, and its replicas; None: this server alone can answer it, or say what is wrong with it. Raises
        ShoalError."""
        scope, raw, here = exchange.scope, exchange.raw, self._engines.here
        try:
            body = await parsed(raw)
            given = body.get("model")
            model = self._engines.resolve(given if isinstance(given, str) else None)
        except (InvalidRequest, UnknownModel):
            return None
        if not isinstance(given, str | None) or not self._upstreams.known(model):
            return None
        if _only_kept():
            if model in here.names:
                return None
            raise NotCached(f"answers of the servers that have the model '{model}' are not kept")
        served, headers = not here.states.get(model, "it has no engine"), Headers(scope=scope)
        try:
            asked = Asked(scope["path"], headers, raw, body, model, CALLER.get(), self._upstreams.id)
        except Looped:
            if served:
                return None
            raise
        replicas, members = self._upstreams.replicas(model, asked.path, served, passed(headers.getlist("via")))
        if not members - {HERE}:
            if model in here.names:
                return None
            raise self._nobody(asked)
        if len(members) > 1:
            asked.inquiry = await _inquiry(raw, body, replicas)
        return asked, replicas

    def _nobody(self, asked: Asked) -> ShoalError:
        """Why no replica may be asked."""
        if any(not each.away and asked.model in each.models and each.lacks(asked.path) for each in self._upstreams.all.values()):
            return UnknownEndpoint(asked.path, asked.model)
        return NotReady(f"no server that has the model '{asked.model}' answers now")

    async def _try(self, exchange: _Exchange, asked: Asked, replicas: ReplicaSet) -> None:
        """Asks one replica after another. Raises ShoalError."""
        unanswered: dict[str, NoAnswer] = {}
        while (replica := replicas.choose(asked.inquiry, [*unanswered])) is not None:
            refused = await (self._local if replica == HERE else self._remote)(exchange, asked, replicas, replica)
            if refused is None:
                return
            unanswered[replica] = refused
        if not unanswered:
            raise replicas.refusal
        await most_useful([*unanswered.values()]).send(asked, exchange.send)

    async def _local(self, exchange: _Exchange, asked: Asked, replicas: ReplicaSet, replica: str) -> NoAnswer | None:
        flight, refused = replicas.began(replica, asked.inquiry), None
        attempt = LocalAttempt(self._app, exchange.scope, exchange.receive, exchange.send, lambda: replicas.answered(flight))
        try:
            refused = await attempt.run()
        finally:
            replicas.ended(flight, attempt.ending, pause=None if refused is None else refused.pause)
        return refused

    async def _remote(self, exchange: _Exchange, asked: Asked, replicas: ReplicaSet, replica: str) -> NoAnswer | None:
        upstream, told, refused = self._upstreams.all[replica], False, None
        flight = replicas.began(replica, asked.inquiry)

        def tell() -> None:
            """What the request came to, once, and before its client knows that it is over."""
            nonlocal told
            if not told:
                told = True
                replicas.ended(flight, attempt.ending, attempt.meter.completion, None if refused is None else refused.pause)
                self._count(asked, upstream.url, attempt)

        async def send(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                tell()
            await exchange.send(message)

        attempt = RemoteAttempt(self._upstreams.client, upstream, asked, send, lambda: replicas.answered(flight))
        try:
            refused = await unless_left(exchange.request, attempt.run())
        finally:
            tell()
        return refused

    def _count(self, asked: Asked, url: str, attempt: RemoteAttempt) -> None:
        meter = attempt.meter
        prompt, completion = (meter.prompt, meter.completion) if attempt.charged else (0, 0)
        asked.caller.spend(prompt=prompt, completion=completion)
        self._engines.observe_upstream(url, attempt.ending.value, attempt.first, attempt.whole, prompt, completion)
        if (span := SPAN.get()) is not None:
            used = {"gen_ai.usage.input_tokens": prompt, "gen_ai.usage.output_tokens": completion}
            span.attributes |= {"gen_ai.request.model": asked.model, "shoal.upstream": url, **used}


async def _inquiry(raw: bytes, body: Mapping[str, Any], replicas: ReplicaSet) -> Inquiry:
    """raw, body: the request's body, and what it says."""
    if not replicas.reads_pieces:
        return Inquiry(len(raw) // TOKEN)
    return await work(len(raw), inquiry_of, body) if len(raw) >= LARGE else inquiry_of(body)


def _only_kept() -> bool:
    """Whether the client wants an answer from the response cache or none, which no upstream knows of."""
    return (reuse := REUSE.get()) is not None and reuse.control.only_if_cached
