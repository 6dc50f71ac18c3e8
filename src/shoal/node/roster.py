"""The connected nodes: their conversations, what they reported about themselves, and the speed of their links."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

from shoal.control import messages as control
from shoal.control.server import NodeConnection
from shoal.membership.events import Joined
from shoal.membership.holding import Holding
from shoal.membership.member import Member
from shoal.observed.computing import Computed
from shoal.placement.profile import LinkSpeed

T = TypeVar("T")


class Roster:
    def __init__(self) -> None:
        self.machines: dict[int, control.Join] = {}
        """What each node reported about itself, by its number."""
        self.activities: dict[str, str] = {}
        """What nodes do that takes long, by name."""
        self.weights: dict[str, int] = {}
        """Bytes of weights that nodes hold, by name."""
        self.computed: dict[str, Computed] = {}
        """What the computing of nodes was made of, by name, of those that tell it."""
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
        _rename(self.activities, join.name, name)
        _rename(self.weights, join.name, name)
        _rename(self.computed, join.name, name)
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

    def held(self, member: Member, holding: Holding) -> int:
        """Bytes of weights that it holds, as it said last."""
        return self.weights.get(member.name, holding.weight_bytes)

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
        self.activities.pop(machine.name, None)
        self.weights.pop(machine.name, None)
        self.computed.pop(machine.name, None)
        return machine.name


def _rename(known: dict[str, T], old: str, new: str) -> None:
    if old in known:
        known[new] = known.pop(old)
