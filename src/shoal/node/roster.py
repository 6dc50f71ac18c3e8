"""The connected nodes: their conversations, what they reported about themselves, and the speed of their links."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from typing import TypeVar

from shoal.control import messages as control
from shoal.control.server import NodeConnection
from shoal.membership.events import Joined
from shoal.membership.member import Member
from shoal.membership.route_machine import RouteMachine
from shoal.observed.computing import Computed, ComputeParts
from shoal.pipeline_id import PipelineId
from shoal.placement.profile import LinkSpeed

T = TypeVar("T")


class Roster:
    def __init__(self) -> None:
        self.machines: dict[int, control.Join] = {}
        """What each node reported about itself, by its number."""
        self.reports: dict[str, dict[str, control.PipelineReport]] = {}
        """What nodes told last of their parts, by name and pipeline."""
        self.reached: dict[str, LinkSpeed] = {}
        """The head's links to the nodes, by name."""
        self._aliases: dict[str, str] = {}
        """What operators call nodes, by the names under which they join."""
        self._conversations: dict[int, NodeConnection] = {}
        self._nodes: dict[NodeConnection, int] = {}
        self._probing: dict[NodeConnection, Joined] = {}
        self._next = 1

    def number(self, conversation: NodeConnection) -> int | None:
        """The node's number; None if it has not joined or was sent home."""
        return self._nodes.get(conversation)

    def enter(self, conversation: NodeConnection, join: control.Join, taken: Collection[str]) -> int:
        """Gives a node its number, and another name if its own is taken."""
        node = self._next
        self._next += 1
        taken = {*taken, *(joined.profile.name for joined in self._probing.values())}
        join.name = self._aliases.get(join.name, join.name)
        join.name = next(n for n in (join.name, *(f"{join.name}-{i}" for i in range(2, len(taken) + 3))) if n not in taken)
        self._conversations[node], self._nodes[conversation] = conversation, node
        self.machines[node] = join
        return node

    def rename(self, node: int, name: str) -> None:
        """Also when it joins again. Call it with a name that no other node has."""
        join = self.machines[node]
        own = next((own for own, alias in self._aliases.items() if alias == join.name), join.name)
        self._aliases[own] = name
        _rename(self.reached, join.name, name)
        _rename(self.reports, join.name, name)
        join.name = name

    def probe(self, conversation: NodeConnection, joined: Joined) -> None:
        """Starts measuring its link; until that is done, it is no member."""
        self._probing[conversation] = joined

    def probing(self, conversation: NodeConnection) -> Joined | None:
        return self._probing.get(conversation)

    @property
    def measuring(self) -> list[Joined]:
        """The nodes whose links are being measured."""
        return list(self._probing.values())

    def probed(self, conversation: NodeConnection) -> None:
        del self._probing[conversation]

    def report(self, node: str, pipeline: PipelineId) -> control.PipelineReport | None:
        """What a node told last of its part in a pipeline. node: its name."""
        return self.reports.get(node, {}).get(str(pipeline))

    def held(self, member: Member, pipeline: RouteMachine) -> int:
        """Bytes of weights that it holds for a pipeline, as it said last."""
        report = self.report(member.name, pipeline.id)
        return pipeline.holdings[member.joined.node].weight_bytes if report is None else report.weights

    def activity(self, node: str) -> str:
        """What it does that takes long. node: its name."""
        return "; ".join(report.activity for report in self.reports.get(node, {}).values() if report.activity)

    def computed(self, node: str, pipeline: PipelineId) -> Computed | None:
        """What its computing was made of; None: it does not tell. node: its name."""
        if (report := self.report(node, pipeline)) is None or not (report.decoding and report.prompts):
            return None
        return Computed(*(ComputeParts(**asdict(parts)) for parts in (report.decoding[0], report.prompts[0])))

    def tell(self, node: int, message: control.HeadMessage) -> None:
        """Sends a node a message; ignored if the node is gone."""
        if (conversation := self._conversations.get(node)) is not None:
            conversation.say(message)

    def tell_all(self, message: control.HeadMessage) -> None:
        for conversation in self._conversations.values():
            conversation.say(message)

    def hung_up(self, conversation: NodeConnection) -> int | None:
        """The number of the node whose conversation has ended."""
        node = self._nodes.pop(conversation, None)
        self._probing.pop(conversation, None)
        if node is not None:
            self._conversations.pop(node, None)
        return node

    def dismiss(self, node: int) -> None:
        """Ends its conversation: whatever it still says is ignored."""
        if (conversation := self._conversations.pop(node, None)) is not None:
            self._nodes.pop(conversation, None)
            self._probing.pop(conversation, None)
            conversation.end()

    def forget(self, node: int, others: Collection[str]) -> str | None:
        """Forgets what was known of a node. Returns its name, unless one of the others uses it now."""
        machine = self.machines.pop(node, None)
        if machine is None or machine.name in others:
            return None
        self.reached.pop(machine.name, None)
        self.reports.pop(machine.name, None)
        return machine.name


def _rename(known: dict[str, T], old: str, new: str) -> None:
    if old in known:
        known[new] = known.pop(old)
