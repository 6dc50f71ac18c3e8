"""What parsers say, put together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from shoal.text.deltas import CallBegun, Delta


def joined(deltas: Iterable[Delta]) -> list[Delta]:
    """With neighbours of a kind in one."""
    out: list[Delta] = []
    for new in deltas:
        last = out[-1] if out else None
        if last is None or isinstance(last, CallBegun) or isinstance(new, CallBegun) or type(last) is not type(new):
            out.append(new)
        else:
            out[-1] = replace(last, text=last.text + new.text)
    return out
