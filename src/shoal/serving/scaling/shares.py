"""Who gets the room where it does not suffice for all.

Models with fewer replicas than their minimum come first, then those of a higher priority, then those whose replicas have most to do: as
seats are given out by highest averages. If a replica fits nowhere, models of a lower priority give theirs, and models of the same one if
theirs would still have less to do afterwards. None goes below its minimum, or gives its last replica unless it rests. The demands that are
compared have lasted, so that noise moves nothing to and fro.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from shoal.pipeline_id import PipelineId
from shoal.serving.scaling.load import ModelLoad, ReplicaLoad, ReplicaPhase
from shoal.serving.scaling.room import ReplicaPlace, RoomCheck


@dataclass(frozen=True)
class Claim:
    """A model that wants more replicas, or may have to give some.

    count:    that it keeps, before anything is added
    more:     that are to be added
    least:    that it keeps in any case
    needs:    replicas' work that it has at least had, as far as it counts for more
    burden:   replicas' work that it has at most had, as far as it counts for giving some away
    may_give: whether its cooldown is over
    """

    load: ModelLoad
    count: int
    more: int
    least: int
    needs: float
    burden: float
    may_give: bool


@dataclass
class Grant:
    """What comes of a claim. places: of the replicas added. lacking: what the others miss. given: replicas that go, and for which model.
    waits: replicas that fit when others are gone."""

    places: list[ReplicaPlace] = field(default_factory=list[ReplicaPlace])
    lacking: list[ReplicaPlace] = field(default_factory=list[ReplicaPlace])
    given: list[tuple[ReplicaLoad, str]] = field(default_factory=list[tuple[ReplicaLoad, str]])
    waits: int = 0


def shared(claims: Sequence[Claim], room: RoomCheck, going: Sequence[PipelineId], tolerance: float) -> dict[str, Grant]:
    """By model. going: replicas that stop anyway."""
    grants = {claim.load.model: Grant() for claim in claims}
    by_model = {claim.load.model: claim for claim in claims}
    order = in_order(claims)
    places = room(order, ())
    unplaced: list[str] = []
    for model, place in zip(order, places, strict=True):
        if place.nodes:
            grants[model].places.append(place)
        else:
            unplaced.append(model)
    placed = [model for model, place in zip(order, places, strict=True) if place.nodes]
    gone = list(going)
    for model in unplaced:
        place = room([*placed, model], gone)[-1]
        given = [] if place.nodes else _givers(by_model[model], claims, grants, room, placed, gone, tolerance)
        for giver, replica in given:
            grants[giver].given.append((replica, model))
            gone.append(PipelineId(giver, replica.number))
        if place.nodes or given:
            grants[model].waits += 1
            placed.append(model)
        else:
            grants[model].lacking.append(place)
    return grants


def in_order(claims: Sequence[Claim]) -> list[str]:
    """The models, once for each replica that they want more, those first that get it first."""
    counts = {claim.load.model: claim.count for claim in claims}
    left = {claim.load.model: claim.more for claim in claims}
    order: list[str] = []
    while wanting := [claim for claim in claims if left[claim.load.model] > 0]:
        first = max(wanting, key=lambda claim: _urgency(claim, counts[claim.load.model]))
        order.append(first.load.model)
        counts[first.load.model] += 1
        left[first.load.model] -= 1
    return order


def _urgency(claim: Claim, count: int) -> tuple[bool, int, float, str]:
    return count < claim.least, claim.load.priority, claim.needs / count if count else inf, claim.load.model


def _givers(
    taker: Claim,
    claims: Sequence[Claim],
    grants: Mapping[str, Grant],
    room: RoomCheck,
    placed: Sequence[str],
    gone: Sequence[PipelineId],
    tolerance: float,
) -> list[tuple[str, ReplicaLoad]]:
    """The fewest replicas, of those that have least to do, whose room suffices; none if no room suffices."""
    found: list[tuple[str, ReplicaLoad]] = []
    given = {claim.load.model: len(grants[claim.load.model].given) for claim in claims}
    others = [claim for claim in claims if claim is not taker and not grants[claim.load.model].places]
    mine = grants[taker.load.model]
    after = taker.needs / (taker.count + len(mine.places) + mine.waits + 1)

    def burden(claim: Claim, less: int) -> float:
        left = claim.count - given[claim.load.model] - less
        return claim.burden / left if left > 0 else claim.burden and inf

    def gives(claim: Claim) -> bool:
        if not claim.may_give or claim.count - given[claim.load.model] <= max(claim.least, 1 if claim.burden else 0):
            return False
        higher = taker.load.priority - claim.load.priority
        return higher > 0 or (higher == 0 and burden(claim, 1) * (1 + tolerance) < after)

    while able := [claim for claim in others if gives(claim)]:
        giver = min(able, key=lambda claim: (claim.load.priority, burden(claim, 0), claim.load.model))
        given[giver.load.model] += 1
        found.append((giver.load.model, first_to_go(giver.load, given[giver.load.model] + giver.load.kept - giver.count)[-1]))
        if room([*placed, taker.load.model], [*gone, *(PipelineId(model, one.number) for model, one in found)])[-1].nodes:
            return found
    return []


def first_to_go(load: ModelLoad, count: int) -> list[ReplicaLoad]:
    """Of those that serve or load: first what serves nobody yet, then what has least to finish, then what can do least."""
    kept = [replica for replica in load.replicas if replica.state is not ReplicaPhase.STOPPING]
    kept.sort(key=lambda r: (r.state is ReplicaPhase.SERVING, r.running, r.tokens_per_second, -r.number))
    return kept[:count]
