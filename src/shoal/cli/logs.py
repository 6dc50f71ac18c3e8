"""What a process of the command line logs, and how: lines for people, or one JSON object per line.

Everything is logged here: shoal's own lines, those of libraries (uvicorn, gRPC, asyncio), and, in JSON, also warnings, uncaught
exceptions and what people would see on stderr, so that a collector can read every line. Anything that looks like a secret is
removed; prompts and answers are never logged.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
from types import TracebackType
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from shoal.cli.log_format import LogFormat
from shoal.trace_context import TRACE

_SECRETS = (
    (re.compile(r"\bsk-[\w-]{8,}"), "sk-***"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}"), r"\1 ***"),
    (re.compile(r"(?<=://)[^/\s@]*:[^/\s@]*@"), "***@"),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|$)", re.DOTALL), "a private key"),
)


def log_to_stderr(level: int = logging.WARNING, format: LogFormat = LogFormat.TEXT) -> None:
    """level: of shoal's own lines; libraries log from warnings on. auto: text on a terminal, otherwise JSON."""
    as_json = format is LogFormat.JSON or (format is LogFormat.AUTO and not sys.stderr.isatty())
    structlog.configure(
        processors=[*_told(as_json), structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    _of_libraries(as_json)
    logging.getLogger("shoal").setLevel(level)
    if as_json:
        from shoal.cli.show import err

        told = logging.getLogger("shoal.cli")
        told.setLevel(logging.INFO)  # what people would see is always logged
        err.log = structlog.wrap_logger(told, wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
        logging.captureWarnings(True)
        sys.excepthook = _uncaught
        threading.excepthook = lambda lost: _uncaught(lost.exc_type, lost.exc_value, lost.exc_traceback)


def text_processors() -> list[Processor]:
    """For a process that does not belong to the command line and configures its own logging."""
    return [*_told(as_json=False), _renderer(as_json=False)]


def _told(as_json: bool) -> list[Processor]:
    """The processors for every line."""
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True) if as_json else structlog.processors.TimeStamper(fmt="%H:%M:%S")
    name: list[Processor] = [_logger_name] if as_json else []
    return [structlog.processors.add_log_level, *name, stamp, structlog.processors.format_exc_info, _of_trace, _without_secrets]


def _renderer(as_json: bool) -> Processor:
    if as_json:
        return structlog.processors.JSONRenderer()
    # Not rich's tracebacks: they show local variables, including prompts and keys.
    return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)


def _of_libraries(as_json: bool) -> None:
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _ToStderr)]:
        root.removeHandler(handler)
    handler = _ToStderr()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_told(as_json),
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _renderer(as_json)],
        )
    )
    root.addHandler(handler)


class _ToStderr(logging.StreamHandler[TextIO]):
    """Writes each line to the sys.stderr of that moment."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # pyright: ignore[reportIncompatibleVariableOverride] - nobody sets it
        return sys.stderr


def _logger_name(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    record: logging.LogRecord | None = event.get("_record")
    event["logger"] = record.name if record is not None else getattr(logger, "name", "shoal")
    return event


def _of_trace(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Names the request that a line is about as OpenTelemetry does, if it is traced."""
    if (context := TRACE.get()) is not None:
        event["trace_id"], event["span_id"] = context.trace, context.span
    return event


def _without_secrets(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    return {key: value if key.startswith("_") else _hidden(value) for key, value in event.items()}


def _hidden(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _hidden(inner) for key, inner in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list | tuple):
        return [_hidden(inner) for inner in value]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, BaseException) or value is None or isinstance(value, bool | int | float):
        return value
    text = str(value)
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if error is not None and not issubclass(kind, KeyboardInterrupt | SystemExit):
        structlog.get_logger("shoal.cli").critical("an unexpected error: this is a bug", exc_info=(kind, error, trace))
