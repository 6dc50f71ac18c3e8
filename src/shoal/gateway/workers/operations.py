"""What a worker asks of the head, method by method: each is a call with its arguments, as msgpack."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, get_type_hints

import msgspec

from shoal.errors import RemoteProtocolError
from shoal.gateway.auth.keyring import KeyAdministration
from shoal.gateway.endpoints.responses.store import Responses
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


def _operation(interface: type[Any], name: str) -> _Operation:
    hints = get_type_hints(getattr(interface, name))
    answer = hints.pop("return")
    return _Operation(tuple[tuple(hints.values())], answer)


def _operations(interface: type[Any]) -> dict[str, _Operation]:
    names = [name for name, value in vars(interface).items() if inspect.isfunction(value) and not name.startswith("_")]
    return {name: _operation(interface, name) for name in names}


_OPERATIONS = {interface: _operations(interface) for interface in (Operator, Responses, KeyAdministration)}
INTERFACES = {interface.__name__: interface for interface in _OPERATIONS}
"""What may be asked, by the name in a message."""


async def operated(target: object, name: str, arguments: bytes, interface: type[Any] = Operator) -> bytes:
    """The head's side. target: has that interface; methods that block run in a thread. Raises ShoalError."""
    if (operation := _OPERATIONS[interface].get(name)) is None:
        raise RemoteProtocolError(f"there is no operation '{name}'")
    try:
        given = msgspec.msgpack.decode(arguments, type=operation.arguments)
    except msgspec.MsgspecError as error:
        raise RemoteProtocolError(f"the arguments of '{name}' cannot be: {error}") from error
    method = getattr(target, name)
    if inspect.iscoroutinefunction(method):
        return _encode(await method(*given))
    return _encode(await asyncio.to_thread(method, *given))


Ask = Callable[[str, bytes], Awaitable[bytes]]
"""Has the head do an operation, by its name and arguments. Raises ShoalError."""


async def _asked(ask: Ask, interface: type[Any], name: str, arguments: tuple[Any, ...]) -> Any:
    answer = await ask(name, _encode(arguments))
    return msgspec.msgpack.decode(answer, type=_OPERATIONS[interface][name].answer)


class Blocking:
    """Operations for threads, which wait for the answer. Must be made in the event loop, and not be used there."""

    def __init__(self, ask: Ask, interface: type[Any]) -> None:
        self._ask, self._interface, self._loop = ask, interface, asyncio.get_running_loop()

    def __call__(self, name: str, *arguments: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(_asked(self._ask, self._interface, name, arguments), self._loop).result()


class RemoteOperator:
    """A worker's gateway.operator.Operator."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    async def _do(self, name: str, *arguments: Any) -> Any:
        return await _asked(self._ask, Operator, name, arguments)

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
