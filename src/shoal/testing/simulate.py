"""Plays many seeds, in as many processes as there are cores: `python -m shoal.testing.simulate --seeds 2000`."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

from shoal.config import default_threads
from shoal.testing.fleet_scenario import FleetScenario
from shoal.testing.rush import Rush
from shoal.testing.scenario import Broken, Scenario
from shoal.testing.standby_scenario import StandbyScenario

_RUSHES = 20  # one in this many seeds also runs long prompts beside running answers; each costs as much as ten others


@dataclass(frozen=True)
class Outcome:
    seed: int
    events: str
    """Of a seed that failed; '' otherwise."""
    tokens: int
    interruptions: int
    refilled: int
    waits: int
    """Tokens for which a running answer waited while other prompts were being computed."""
    faults: int
    """Requests that ended with a fault."""
    moved: int = 0
    """Times that a request went on at another copy of its model."""
    successions: int = 0
    """Heads that died."""


KINDS = {"fleet": FleetScenario, "standby": StandbyScenario}


def scenarios(seed: int, kind: str = "") -> list[Scenario]:
    """kind: one of KINDS, or '': one model."""
    if kind:
        return [KINDS[kind](seed)]
    return [Scenario(seed), *([Rush(seed)] if seed % _RUSHES == 0 else [])]


def play(seed: int, kind: str = "") -> Outcome:
    told, events = scenarios(seed, kind), ""
    for scenario in told:
        try:
            scenario.run()
        except Broken as broken:
            events = events or str(broken)
    ended = [interruption for scenario in told for interruption in scenario.counts.interruptions]
    waits = sum(len(scenario.waits) for scenario in told if isinstance(scenario, Rush))
    fleets = [scenario for scenario in told if isinstance(scenario, FleetScenario)]
    moved, successions = sum(f.moved for f in fleets), sum(f.successions for f in fleets)
    return Outcome(seed, events, told[0].tokens, len(ended), sum(i.tokens for i in ended), waits, told[0].faults, moved, successions)


def play_all(seeds: Sequence[int], jobs: int, kind: str = "") -> list[Outcome]:
    if jobs == 1:
        return [play(seed, kind) for seed in seeds]
    # Spawned: a fork of a process with threads (gRPC's, torch's) may inherit a lock that nobody will release.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(partial(play, kind=kind), seeds, chunksize=8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=default_threads())
    parser.add_argument(
        "--fleet",
        dest="kind",
        action="store_const",
        const="fleet",
        default="",
        help="several models, with several copies, that come and go",
    )
    parser.add_argument(
        "--standby", dest="kind", action="store_const", const="standby", help="several heads, of which one leads by a lease"
    )
    parser.add_argument("--events", action="store_true", help="print the events of every seed, not only of those that fail")
    given = parser.parse_args()
    seeds = range(given.first, given.first + given.seeds)
    if given.events:
        for scenario in [scenario for seed in seeds for scenario in scenarios(seed, given.kind)]:
            try:
                scenario.run()
            finally:
                print("\n".join(scenario.events))
        return
    outcomes = play_all(seeds, given.jobs, given.kind)
    failed = [o for o in outcomes if o.events]
    print(
        f"{len(outcomes)} seeds, {sum(o.tokens for o in outcomes)} tokens, {sum(o.interruptions for o in outcomes)} interruptions, "
        f"{sum(o.refilled for o in outcomes)} tokens refilled, {sum(o.waits for o in outcomes)} waits beside prompts, "
        f"{sum(o.moved for o in outcomes)} requests moved to other copies, {sum(o.successions for o in outcomes)} heads lost, {len(failed)} failed"
    )
    for outcome in failed[:3]:
        print(
            f"\n{outcome.events}\n\nagain: python -m shoal.testing.simulate --first {outcome.seed} --seeds 1 --events{f' --{given.kind}' * bool(given.kind)}"
        )
    if failed:
        print("failed seeds:", *(o.seed for o in failed))
        sys.exit(1)


if __name__ == "__main__":
    main()
