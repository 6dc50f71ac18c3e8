"""The span of the request under way, and the parts of it that take place in the gateway."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from time import perf_counter, time

from shoal.gateway.http.faults import Fault
from shoal.observed.trace_span import Attribute, SpanKind, TraceSpan
from shoal.trace_context import TRACE, TraceContext


class RequestSpan:
    """Of a request that is sampled."""

    def __init__(self, name: str, context: TraceContext, parent: TraceContext | None) -> None:
        self.name, self.context = name, context
        self.attributes: dict[str, Attribute] = {}
        self.error: str | None = None
        """Why the request failed, if it did."""
        self.outcome: Callable[[], None] | None = None
        """Called when the request is over: adds what is known only then."""
        self._parent = "" if parent is None else parent.span
        self._began, self._started = time(), perf_counter()
        self._parts: list[TraceSpan] = []

    def now(self) -> float:
        """Seconds since 1970, by a clock that never goes back during the request."""
        return self._began + perf_counter() - self._started

    def failed(self, kind: str, reason: str = "") -> None:
        self.error, self.attributes["error.type"] = reason or kind, kind

    @contextmanager
    def part(self, name: str) -> Generator[None]:
        context, began, error = self.context.below(), self.now(), None
        token = TRACE.set(context)
        try:
            yield
        except BaseException as raised:
            error = type(raised).__name__
            raise
        finally:
            TRACE.reset(token)
            self._parts.append(TraceSpan(name, context, self.context.span, began, self.now(), error=error))

    def over(self) -> list[TraceSpan]:
        """The span and its parts."""
        if self.outcome is not None:
            self.outcome()
        span = TraceSpan(
            self.name,
            self.context,
            self._parent,
            self._began,
            self.now(),
            SpanKind.SERVER,
            self.attributes,
            error=self.error,
        )
        return [span, *self._parts]


SPAN: ContextVar[RequestSpan | None] = ContextVar("span", default=None)
"""None: the request under way is not traced."""


@contextmanager
def part(name: str) -> Generator[None]:
    """A part of the request under way."""
    if (span := SPAN.get()) is None:
        yield
    else:
        with span.part(name):
            yield


def refused(what: Fault) -> None:
    """The request under way was refused, or its stream broke off."""
    if (span := SPAN.get()) is not None:
        span.attributes["shoal.refusal"] = what.code or what.type
        if what.status >= 500:
            span.failed(str(what.status), what.message)
