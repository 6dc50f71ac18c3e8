"""What operators ask of the head, from a worker: every method of Operator is a call with its arguments, as msgpack."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, get_type_hints

import msgspec

from shoal.errors import RemoteProtocolError
from shoal.gateway.operator import Operator
from shoal.observed.cluster import ActionResult, ClusterView, ExpertsView, Invitation, NodeAction, PlanView
from shoal.observed.event import EventKind, EventPage
from shoal.observed.fleet_plan import FleetPlan
from shoal.observed.history import History
from shoal.observed.models import ModelsView
from shoal.observed.requests import RequestView, Timeline

_encode = msgspec.msgpack.encode


class _Operation(NamedTuple):
    arguments: Any
    answer: Any


def _operation(name: str) -> _Operation:
    hints = get_type_hints(getattr(Operator, name))
    answer = hints.pop("return")
    return _Operation(tuple[tuple(hints.values())], answer)


_OPERATIONS = {name: _operation(name) for name in vars(Operator) if not name.startswith("_")}


async def operated(operator: Operator, name: str, arguments: bytes) -> bytes:
    """The head's side. Raises ShoalError."""
    if (operation := _OPERATIONS.get(name)) is None:
        raise RemoteProtocolError(f"there is no operation '{name}'")
    try:
        given = msgspec.msgpack.decode(arguments, type=operation.arguments)
    except msgspec.MsgspecError as error:
        raise RemoteProtocolError(f"the arguments of '{name}' cannot be: {error}") from error
    return _encode(await getattr(operator, name)(*given))


class RemoteOperator:
    """A worker's gateway.operator.Operator."""

    def __init__(self, ask: Callable[[str, bytes], Awaitable[bytes]]) -> None:
        """ask: has the head do an operation. Raises ShoalError."""
        self._ask = ask

    async def _do(self, name: str, *arguments: Any) -> Any:
        answer = await self._ask(name, _encode(arguments))
        return msgspec.msgpack.decode(answer, type=_OPERATIONS[name].answer)

    async def cluster(self, pipeline: str) -> ClusterView:
        return await self._do("cluster", pipeline)

    async def experts(self, pipeline: str) -> ExpertsView:
        return await self._do("experts", pipeline)

    async def events(self, after: int, limit: int, kinds: Sequence[EventKind], node: str) -> EventPage:
        return await self._do("events", after, limit, kinds, node)

    async def history(self) -> History:
        return await self._do("history")

    async def requests(self, owner: str | None) -> list[RequestView]:
        return await self._do("requests", owner)

    async def timeline(self, answer: str, owner: str | None, after: int) -> Timeline | None:
        return await self._do("timeline", answer, owner, after)

    async def preview(self, node: str, action: NodeAction) -> PlanView:
        return await self._do("preview", node, action)

    async def act(self, node: str, action: NodeAction) -> ActionResult:
        return await self._do("act", node, action)

    async def invite(self) -> Invitation:
        return await self._do("invite")

    async def models(self) -> ModelsView:
        return await self._do("models")

    async def pull(self, model: str) -> ActionResult:
        return await self._do("pull", model)

    async def load(self, model: str, replicas: int) -> ActionResult:
        return await self._do("load", model, replicas)

    async def fleet_plan(self) -> FleetPlan:
        return await self._do("fleet_plan")

    async def unload(self, model: str) -> ActionResult:
        return await self._do("unload", model)

    async def alias(self, alias: str, target: str) -> ActionResult:
        return await self._do("alias", alias, target)
