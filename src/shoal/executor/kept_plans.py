"""Plans that were searched before: the same question about the same machine and model gets its answer from the cache."""

from __future__ import annotations

import msgspec
import structlog

from shoal.errors import ConfigError
from shoal.folders import cache_dir
from shoal.placement.cost import ModelCost
from shoal.placement.fingerprint import fingerprint
from shoal.placement.hardware import Hardware
from shoal.placement.policy import Grid, Plan, search
from shoal.placement.workload import Workload
from shoal.whole_file import write_whole

log = structlog.get_logger()
_KEPT = 200
"""Answers; the oldest are deleted."""


def search_once(model: ModelCost, hardware: Hardware, workload: Workload, grid: Grid | None = None) -> Plan:
    """As `policy.search`. A cache that cannot be read or written costs the search, and nothing else. Raises NotEnoughMemory."""
    try:
        path = cache_dir() / "plans" / f"{fingerprint(model, hardware, workload, grid)}.json"
    except ConfigError:  # there is no home
        return search(model, hardware, workload, grid)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Plan)
    except FileNotFoundError:
        pass
    except (OSError, msgspec.MsgspecError) as fault:
        log.warning("a plan that was kept is searched anew", path=str(path), reason=str(fault))
    found = search(model, hardware, workload, grid)
    try:
        write_whole(path, msgspec.json.encode(found))
        for old in sorted(path.parent.glob("*.json"), key=lambda kept: kept.stat().st_mtime)[:-_KEPT]:
            old.unlink(missing_ok=True)
    except OSError as fault:
        log.warning("a plan cannot be kept", path=str(path), reason=str(fault))
    return found
