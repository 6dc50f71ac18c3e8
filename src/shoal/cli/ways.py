"""What `plan` shows of the ways to run a Mixture-of-Experts model over several nodes."""

from __future__ import annotations

from typing import Any

from rich.markup import escape

from shoal.cli.show import Rows, layers, limit_words, out, placement_rows, rate_words, worker_rows
from shoal.placement.partition import Placement
from shoal.placement.ways import Comparison, Way, WayKind
from shoal.sizes import human_bytes

_SHOWN = 6
"""Most ways that people are shown."""


def show_ways(found: Comparison, slots: int) -> None:
    best = [way for kind in WayKind if (way := found.best(kind)) is not None]
    shown = [way for way in found.ways if way in best or way is found.chosen]
    shown += [way for way in found.ways if way not in shown][: _SHOWN - len(shown)]
    rows = [_row(way, slots) for way in sorted(shown, key=lambda way: -way.told.together)]
    out.print()
    out.print(Rows(rows, "ways to run it"))
    for kind in WayKind:
        if found.best(kind) is None:
            out.print(f"{kind.value}: {_absent(kind, found)}", highlight=False, soft_wrap=True)
    out.print(f"chosen: {found.chosen.kind.value}; {escape(found.why)}", highlight=False, soft_wrap=True)


def _absent(kind: WayKind, found: Comparison) -> str:
    match kind:
        case WayKind.PIPELINE:
            return "the nodes that may run layers have too little memory for it"
        case WayKind.WORKERS:
            return "does not fit, or there is no node for it"
        case WayKind.STREAMING:
            if found.best(WayKind.PIPELINE) is not None:
                return "not needed, the layers fit in memory"
            return "the speed of a disk is not known; `shoal doctor --measure` measures this machine's"


def _row(way: Way, slots: int) -> dict[str, Any]:
    return {
        "way": way.kind.value,
        "nodes": _parts(way.placement),
        "one stream": f"{rate_words(way.told.alone)} tokens/s",
        f"{slots} at once": f"{rate_words(way.told.together)} tokens/s",
        "read per token": _reads(way),
        "waiting for workers": f"{way.told.waiting * 1e3:.1f} ms" if way.placement.workers else "",
        "limit": limit_words(way.told.limit),
    }


def _parts(placement: Placement) -> str:
    stages = [f"{stage.node} layers {layers(stage.first, stage.end)}" for stage in placement.stages]
    return ", ".join([*stages, *(f"{plan.node} {sum(map(len, plan.table))} experts" for plan in placement.workers)])


def _reads(way: Way) -> str:
    parts = [human_bytes(way.reads.stages)]
    if way.reads.workers:
        parts.append(f"{human_bytes(way.reads.workers)} by workers")
    if way.reads.disk:
        parts.append(f"{human_bytes(way.reads.disk)} from disk")
    return " + ".join(parts)


def ways_values(found: Comparison) -> dict[str, Any]:
    """For a script."""
    return {
        "ways": [
            {
                "way": way.kind.name.lower(),
                "chosen": way is found.chosen,
                "stages": placement_rows(way.placement),
                "workers": worker_rows(way.placement),
                "predicted_tokens_per_second_one": round(way.told.alone, 2),
                "predicted_tokens_per_second_full": round(way.told.together, 2),
                "limit": way.told.limit,
                "waiting_for_workers_ms_per_token": round(way.told.waiting * 1e3, 3),
                "stage_bytes_per_token": round(way.reads.stages),
                "worker_bytes_per_token": round(way.reads.workers),
                "disk_bytes_per_token": round(way.reads.disk),
            }
            for way in found.ways
        ],
        "why": found.why,
    }
