"""Figures as the console should write them, apart from its own code. The cases of both are in console/src/parts/format_cases.json."""

from __future__ import annotations

import math
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal

COUNTED = {
    "tokens",
    "layers",
    "epoch",
    "count",
    "nodes",
    "sequences",
    "requests",
    "blocks",
    "streams",
    "times",
    "number",
    "rows",
    "experts",
}


def fixed(value: float, digits: int) -> str:
    """Halves are rounded up, as JavaScript does, where Python would make them even."""
    return str(Decimal(value).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))


def size(count: float) -> str:
    for power, unit in enumerate(("B", "KiB", "MiB", "GiB")):
        if abs(count) < 1024 ** (power + 1):
            return f"{fixed(count / 1024**power, min(power, 1))} {unit}"
    return f"{fixed(count / 1024**4, 1)} TiB"


def duration(seconds: float) -> str:
    """Three figures, and never a thousand of a unit."""
    for most, scale, digits, unit in ((0.9995e-3, 1e6, 0, "µs"), (0.09995, 1e3, 1, "ms"), (0.9995, 1e3, 0, "ms"), (59.95, 1, 1, "s")):
        if seconds and seconds < most:
            return f"{fixed(seconds * scale, digits)} {unit}"
    return span(seconds) if seconds else "0"


def span(seconds: float) -> str:
    whole = max(0, math.floor(seconds + 0.5))
    for unit, part, name, of in ((86400, 3600, "d", "h"), (3600, 60, "h", "min"), (60, 1, "min", "s")):
        if whole >= unit:
            return f"{whole // unit} {name} {whole % unit // part} {of}"
    return f"{whole} s"


def countdown(seconds: float) -> str:
    minutes, rest = divmod(max(0, math.ceil(seconds)), 60)
    return f"{minutes}:{rest:02}"


def short(value: float) -> str:
    for least, scale, unit in ((999.5e6, 1e9, "G"), (999.5e3, 1e6, "M"), (9999.5, 1e3, "k")):
        if value >= least:
            return f"{fixed(value / scale, 1)} {unit}"
    if value >= 99.95 or value == int(value):
        return fixed(value, 0)
    return fixed(value, 2 if value < 9.995 else 1)


def count(value: int) -> str:
    return f"{value:,}"


def percent(share: float) -> str:
    value = share * 100
    return f"{fixed(value, 1 if 0 < value < 9.95 else 0)} %"


def layers(first: int, end: int) -> str:
    if end <= first:
        return "none"
    return f"{first}" if end == first + 1 else f"{first}–{end - 1}"


def plural(value: int, one: str, many: str = "") -> str:
    return f"{count(value)} {one if value == 1 else many or f'{one}s'}"


def figure(name: str, value: float) -> str:
    """Of an event."""
    unit = name.rpartition("_")[2]
    if unit in ("bytes", "memory"):
        return size(value)
    if unit in ("share", "gain"):
        return percent(value)
    if unit == "slower":
        return f"{short(value)} ×"
    return short(value) if unit in COUNTED else duration(value)


def clock(at: float) -> str:
    """Time of day here, where the browser is, too."""
    return f"{datetime.fromtimestamp(int(at)):%H:%M:%S}"


def moment(at: float) -> str:
    return f"{datetime.fromtimestamp(int(at)):%Y-%m-%d %H:%M:%S}"
