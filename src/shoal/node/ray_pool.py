"""Nodes that `shoal ray up` keeps: their number is set as `shoal ray scale` sets it, in a process of its own, since Ray takes seconds and memory
to be imported."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress

from shoal.errors import ClusterError

_PATIENCE = 60.0  # seconds


class RayPool:
    """A NodePool: every node of the cluster is of it."""

    def __init__(self, cluster: str, command: Sequence[str] = (sys.executable, "-m", "shoal")) -> None:
        """cluster: the name that `shoal ray up` was given. command: that runs shoal."""
        self._cluster, self._command = cluster, command

    def count(self, nodes: Collection[str]) -> int:
        return len(nodes)

    async def at_least(self, nodes: int) -> str:
        words = (*self._command, "ray", "scale", str(nodes), "--at-least", "--cluster", self._cluster)
        process = await asyncio.create_subprocess_exec(
            *words, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
        )
        try:
            async with asyncio.timeout(_PATIENCE):
                _, said = await process.communicate()
        except TimeoutError:
            raise ClusterError(f"`shoal ray scale` did not end within {_PATIENCE:g} s") from None
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.communicate()
        if process.returncode:
            lines = said.decode(errors="replace").strip().splitlines()
            raise ClusterError(f"`shoal ray scale` failed: {lines[-1] if lines else f'status {process.returncode}'}")
        return f"Ray is asked for {nodes} nodes in all"
