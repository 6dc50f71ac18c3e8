"""Patterns that exclude invalid values which llguidance's `format`s accept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

_YEAR = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DATE = f"(?:{_LEAP}-02-29|{_YEAR}-(?:(?:0[13-9]|1[0-2])-[0-9]{{2}}|02-(?:[01][0-9]|2[0-8])))"  # no 29 February of other years
_TIME = "[0-9]{2}:[0-9]{2}:[0-5]"  # no leap seconds: few days have one
_LABELS = r"[0-9A-Za-z-]{1,63}(?:\.[0-9A-Za-z-]{1,63}){0,3}"  # of a host: RFC 1123; four of the longest have 255 characters
_ALSO = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}",
    "date-time": f"^{_DATE}[tT]{_TIME}",
    "hostname": f"^{_LABELS}$",
    "email": rf"^[^@]{{1,64}}@(?:{_LABELS}|\[.*\])$",
}


def exact(schema: Any) -> Any:
    """The schema with what its formats require beyond what llguidance enforces."""
    if isinstance(schema, list):
        return [exact(part) for part in cast("list[Any]", schema)]
    if not isinstance(schema, Mapping):
        return schema
    inside = cast("Mapping[str, Any]", schema)
    out = {key: value if key in ("enum", "const", "default", "examples") else exact(value) for key, value in inside.items()}
    also = out.get("allOf", [])
    if isinstance(name := out.get("format"), str) and name in _ALSO and isinstance(also, list):
        out["allOf"] = [*cast("list[Any]", also), {"pattern": _ALSO[name]}]
    return out
