"""What the members of a cluster are doing, in words for people."""

from __future__ import annotations

from shoal.membership.holding import Holding
from shoal.membership.holdoff import HoldOff
from shoal.membership.instructions import Report
from shoal.membership.member import Member
from shoal.observed.event import EventKind


def doing(member: Member, holding: Holding, part: str, silence: float, holdoff: HoldOff, now: float) -> str:
    """part: what it does in a route; '' if it has no part. silence: seconds after which it is given up."""
    if holding.failed:
        return f"failed: {holding.failed}; tried again in {max(holding.retry - now, 0):.0f} s"
    if member.suspect:
        return f"silent for {now - member.heard:.1f} s; given up at {silence:g} s"
    words = part or "idle, ready to take over"
    if not part and (wait := holdoff.until(member.name) - now) > 0:
        words = f"held off for {wait:.0f} s: it was lost {holdoff.losses(member.name)} times"
    if member.draining:
        words += ", draining"
    if member.slower > 1:
        words += f", {member.slower:.1f} times slower than measured"
    return words


def condition(member: Member, holding: Holding, part: str, holdoff: HoldOff, now: float) -> str:
    """The same in one word, of those that discovery.topology.NodeState lists. part: as above."""
    if holding.failed:
        return "failed"
    if member.suspect:
        return "suspected"
    if member.draining:
        return "draining"
    return part or ("held off" if holdoff.until(member.name) > now else "idle")


def pace(member: Member, slower: float) -> Report:
    """slower: times that it was seen to be slower than it measured."""
    if member.slower == 1:
        return Report(EventKind.RECOVERED, f"{member.name} is as fast as it measured again", member.name)
    return Report(EventKind.SLOW, f"{member.name} runs {slower:.1f} times slower than it measured", member.name, {"slower": slower})
