"""shoal runs one large language model across the machines you already have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.environment import keep_quiet

__version__ = "0.2.0"

keep_quiet()  # before importing any library that would send telemetry

if TYPE_CHECKING:
    from shoal.auto import AutoDistributedModel

__all__ = ["AutoDistributedModel", "__version__"]


def __getattr__(name: str) -> object:
    # Importing shoal stays cheap for node processes, which need none of the client side.
    if name == "AutoDistributedModel":
        from shoal.auto import AutoDistributedModel

        return AutoDistributedModel
    raise AttributeError(name)
