"""One upstream is asked, and what it says passed on as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any

import httpx2
import msgspec
import structlog
from starlette.responses import Response
from starlette.types import Message, Send

from shoal.errors import UpstreamFailed
from shoal.gateway.http.request_span import part
from shoal.gateway.upstream.asked import Asked
from shoal.gateway.upstream.broken import broken
from shoal.gateway.upstream.event_stream import EventStream, Garbled
from shoal.gateway.upstream.meter import Meter
from shoal.gateway.upstream.no_answer import NoAnswer, code_of, messages_of
from shoal.gateway.upstream.reading import LARGEST, LARGEST_ERROR, read_whole
from shoal.gateway.upstream.upstream import Upstream
from shoal.serving.balancing.inquiry import Ending
from shoal.serving.verdict import Cause, verdict

log = structlog.get_logger()

_SAID = 400
"""Characters of what an upstream says that are logged."""
_LEAVING = 1.0
"""Seconds in which an upstream ends its answer after the last event; otherwise the connection is closed."""
_HELD = 64 << 10
"""Bytes of comments before the first event that are passed on with it."""
_IDS = ("x-request-id", "request-id")
_ALSO_KEPT = ("retry-after", "openai-processing-ms", "openai-version")


class RemoteAttempt:
    """One request at one upstream. `run` sends the answer, or says why there is none; what it came to is known before the last message is
    sent."""

    def __init__(self, client: httpx2.AsyncClient, upstream: Upstream, asked: Asked, send: Send, answered: Callable[[], None]) -> None:
        """answered: called when the first byte of the answer is here."""
        self._client, self._upstream, self._asked, self._send, self._answered = client, upstream, asked, send, answered
        self._began = perf_counter()
        self._started = False
        """Whether the client has got something."""
        self.meter = Meter(len(asked.body), asked.choices)
        self.ending = Ending.CANCELLED
        self.first = 0.0
        """Seconds to the first byte; 0: there was none."""
        self.charged = False
        """Whether the client got an answer, or a part of it."""

    @property
    def whole(self) -> float:
        """Seconds until now."""
        return perf_counter() - self._began

    async def run(self) -> NoAnswer | None:
        """None: the client has its answer."""
        asked, upstream = self._asked, self._upstream
        try:
            with part("upstream"):  # until its answer begins
                request = self._client.build_request("POST", upstream.at(asked.path), content=asked.body, headers=asked.headers(upstream))
                response = await self._client.send(request, stream=True)
            try:
                if response.is_success and "text/event-stream" in response.headers.get("content-type", ""):
                    return await self._pass_on(response)
                return await self._answer(response)
            finally:
                await response.aclose()
        except httpx2.ConnectError as error:
            upstream.doubted.set()
            return await self._failed(f"it cannot be reached: {error or type(error).__name__}", "it cannot be reached")
        except httpx2.TimeoutException:
            upstream.doubted.set()
            return await self._failed("it was silent for too long")
        except httpx2.HTTPError as error:
            upstream.doubted.set()
            return await self._failed(f"it broke off: {error or type(error).__name__}", "it broke off")
        except Garbled as error:
            return await self._failed(str(error))

    async def _failed(self, why: str, told: str = "") -> NoAnswer | None:
        """why: for the log. told: for the client. Once something was said, the stream ends with an error."""
        self.ending = Ending.FAILED
        log.warning("an upstream failed", upstream=self._upstream.url, model=self._asked.model, path=self._asked.path, reason=why[:_SAID])
        if not self._started:
            return NoAnswer(Cause.BROKEN, told or why)
        error = UpstreamFailed(f"the server that has the model '{self._asked.model}' failed within its answer: {told or why}")
        await self._say(broken(self._asked.path, error, self.meter))
        await self._say(b"", more=False)
        return None

    # An answer at once

    async def _answer(self, response: httpx2.Response) -> NoAnswer | None:
        body = await read_whole(response, LARGEST if response.is_success else LARGEST_ERROR)
        read = _object(body)
        kind = response.headers.get("content-type", "application/json")
        answer = messages_of(Response(body, response.status_code, self._headers(response), kind))
        if response.is_success:
            if read is None:
                raise Garbled("its answer is not a JSON object")
            self.charged, self.ending = True, Ending.SERVED
            self.meter.answer(read, len(body))
        else:
            judged = verdict(response.status_code, code_of(read, self._asked.model), response.headers.get("retry-after"))
            self.ending = judged.ending
            if judged.cause is not None:
                return self._refused(judged.cause, judged.pause, response.status_code, body, answer)
        self._came()
        for message in answer:
            await self._send(message)
        return None

    def _refused(self, cause: Cause, pause: float | None, status: int, body: bytes, answer: Sequence[Message]) -> NoAnswer:
        said = self._upstream.without_key(body.decode(errors="replace"))[:_SAID]
        told: Sequence[Message] = []
        if cause is Cause.WITHOUT_ENDPOINT and status == 404 and self._asked.names_stored:
            told = answer  # what is missing may be that
        elif cause is Cause.WITHOUT_ENDPOINT:
            self._upstream.without(self._asked.path)
        elif cause is Cause.WITHOUT_MODEL:
            self._upstream.doubted.set()
        log.warning(
            "an upstream refused a request",
            upstream=self._upstream.url,
            model=self._asked.model,
            path=self._asked.path,
            status=status,
            said=said,
        )
        return NoAnswer(cause, f"it answered {status}", pause, told)

    def _headers(self, response: httpx2.Response) -> dict[str, str]:
        kept = {name: response.headers[name] for name in _ALSO_KEPT if name in response.headers}
        id = self._asked.id or next((response.headers[name] for name in _IDS if name in response.headers), None)
        if id is None:
            return kept
        return {**kept, "X-Request-Id": id, **({"Request-Id": id} if self._asked.path == "/v1/messages" else {})}

    # A stream

    async def _pass_on(self, response: httpx2.Response) -> NoAnswer | None:
        """The answer begins with the first event that has data; until then another replica may be asked. Raises httpx2.HTTPError,
        Garbled."""
        events, pieces = EventStream(), response.aiter_bytes()
        begun, shown = False, bytearray()
        async for piece in pieces:
            try:
                for event in events.feed(piece):
                    hidden = self.meter.event(event) and self._asked.adds_usage
                    if not begun and self.meter.failed:
                        said = self._upstream.without_key(event.raw.decode(errors="replace"))
                        return await self._failed(f"its stream begins with an error: {said}", "its stream began with an error")
                    begun = begun or event.data is not None or event.done
                    if not hidden and (begun or len(shown) < _HELD):
                        shown += event.raw
            finally:
                if begun and shown:  # also what came before something that makes no sense
                    await self._start(response)
                    await self._say(bytes(shown))
                    shown.clear()
            if self.meter.done:
                break
        if not self.meter.whole or events.unfinished:
            raise Garbled("its stream ended before the answer did")
        self.ending = Ending.FAILED if self.meter.failed else Ending.SERVED
        with suppress(TimeoutError, httpx2.HTTPError):  # the client has every event; a connection that is read to its end is used again
            async with asyncio.timeout(_LEAVING):
                async for _ in pieces:
                    pass
        await self._say(b"", more=False)
        return None

    async def _start(self, response: httpx2.Response) -> None:
        if self._started:
            return
        self._started = self.charged = True
        self._came()
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **self._headers(response)}
        start = Response(None, response.status_code, headers, response.headers["content-type"])
        del start.headers["content-length"]
        await self._send({"type": "http.response.start", "status": response.status_code, "headers": start.raw_headers})

    def _came(self) -> None:
        self.first = self.whole
        self._answered()

    async def _say(self, body: bytes, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": more})


class _Answer(msgspec.Struct):
    """What is looked at of an answer or an error. The rest is passed over, which takes 2 ms for a MiB."""

    object: Any = None
    usage: Any = None
    error: Any = None
    type: Any = None
    code: Any = None
    param: Any = None
    message: Any = None


def _object(body: bytes) -> Mapping[str, Any] | None:
    """None: it is no JSON object."""
    try:
        read = msgspec.structs.asdict(msgspec.json.decode(body, type=_Answer))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return {name: value for name, value in read.items() if value is not None}
