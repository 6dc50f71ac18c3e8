"""When cyclic garbage is collected: rarely while a command imports its modules, as usual once it works.

Most of what an import allocates stays, and looking through it takes a tenth of a head's start.
"""

from __future__ import annotations

import gc

_USUAL = gc.get_threshold()
_RARE = 1_000_000  # allocations: more than the imports make. A command without an event loop keeps to this


def postpone() -> None:
    """Collects rarely from now on."""
    gc.set_threshold(_RARE, *_USUAL[1:])


def resume() -> None:
    """Collects as usual from now on, except among the objects that exist now."""
    gc.freeze()
    gc.set_threshold(*_USUAL)
