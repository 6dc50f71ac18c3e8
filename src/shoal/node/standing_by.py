"""What a head that does not lead says to nodes, to other standbys, and to the command line."""

from __future__ import annotations

from collections.abc import Callable

from shoal.control import messages as control
from shoal.control.server import NodeConnection


class StandingBy:
    """A control.server.Attendant."""

    def __init__(self, leader: Callable[[], str]) -> None:
        """leader: the address of the head that leads, as far as it is known; '' if it is not."""
        self._leader = leader

    @property
    def state(self) -> str:
        """For people."""
        leader = self._leader()
        return f"this head stands by; {leader} leads" if leader else "this head stands by, and it does not know which head leads"

    def heard(self, conversation: NodeConnection, message: control.NodeMessage) -> None:
        if isinstance(message, control.Join | control.Follow):
            conversation.say(control.Refuse(reason=self.state, again=True, follows=True, leader=self._leader()))
            conversation.end()

    def hung_up(self, conversation: NodeConnection) -> None:
        pass

    def describe(self) -> control.ClusterDescription:
        return control.ClusterDescription(events=[self.state])

    def dismiss(self, request: control.DismissRequest) -> control.DismissAnswer:
        return control.DismissAnswer(message=f"{self.state}; ask there")
