"""The machine of a head that leads at times: nodes and other heads reach it at one port, whether it leads or stands by."""

from __future__ import annotations

from typing import Protocol

from shoal.control.server import Attendant, ControlServer
from shoal.node.environment import ControlDoor
from shoal.node.host_environment import HostEnvironment
from shoal.security.credentials import Credentials


class Handed(Protocol):
    """A door that stays open while those who listen at it change."""

    @property
    def port(self) -> int: ...
    def hand_to(self, attendant: Attendant) -> None: ...


class Turn:
    """A node.environment.ControlDoor, open for as long as its attendant has its turn."""

    def __init__(self, door: Handed, attendant: Attendant, between: Attendant) -> None:
        self._door, self._between = door, between
        door.hand_to(attendant)

    @property
    def port(self) -> int:
        return self._door.port

    async def stop(self) -> None:
        self._door.hand_to(self._between)


class HeadMachine(HostEnvironment):
    def __init__(self, credentials: Credentials | None, between: Attendant) -> None:
        """between: who listens while no head does. Raises ConfigError."""
        super().__init__(credentials)
        self._between = between
        self._door = ControlServer(between, credentials)

    async def open(self, host: str, port: int) -> int:
        """Begins to listen. Returns the port. Raises ConfigError."""
        await self._door.start(host, port)
        return self._door.port

    async def control_door(self, attendant: Attendant, host: str, port: int) -> ControlDoor:
        return Turn(self._door, attendant, self._between)

    async def shut(self) -> None:
        await self._door.stop()
