"""/operator: the cluster, its events and requests, and what may be done to it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response, StreamingResponse

from shoal.errors import ConfigError, Conflict, InvalidRequest, NotAuthenticated, UnknownObject
from shoal.gateway.auth.caller import CALLER
from shoal.gateway.auth.key import KeyRole
from shoal.gateway.endpoints.operator.stream import watched
from shoal.gateway.endpoints.operator.wire import Me, ModelsBody, NodeBody, RequestList
from shoal.gateway.operator import Operator
from shoal.gateway.schema.contract import EVENTS, contract
from shoal.gateway.schema.shaped import shaped, told
from shoal.gateway.schema.wire import parse
from shoal.gateway.service import Service, json_body
from shoal.observed.cluster import ActionResult, ClusterView, ExpertsView, Invitation, NodeAction, PlanView
from shoal.observed.event import EventKind, EventPage
from shoal.observed.fleet_plan import FleetPlan
from shoal.observed.history import History
from shoal.observed.models import ModelsView
from shoal.observed.requests import RequestView, Timeline
from shoal.settings import parse_bytes

MOST_WAIT = 30.0
"""Seconds for which a question waits for news."""
_LOOK = 0.1  # seconds between looks

After = Annotated[int, Query(ge=0, le=2**62)]
Wait = Annotated[float, Query(ge=0, le=MOST_WAIT)]
Pipeline = Annotated[str, Query(max_length=500)]


def routes(service: Service, operator: Operator) -> APIRouter:
    router = APIRouter()

    @router.get("/operator/me", **contract(None, shaped(Me)))
    async def me() -> Response:
        caller = CALLER.get()
        needed = service.settings.needs_key or service.keyring.required
        return told(Me(caller.role, caller.key.name if caller.key is not None else "", needed))

    @router.get("/operator/cluster", **contract(None, shaped(ClusterView), 404))
    async def cluster(pipeline: Pipeline = "") -> Response:
        return told(await operator.cluster(pipeline))

    @router.get("/operator/experts", **contract(None, shaped(ExpertsView), 404))
    async def experts(pipeline: Pipeline = "") -> Response:
        return told(await operator.experts(pipeline))

    @router.get("/operator/history", **contract(None, shaped(History)))
    async def history() -> Response:
        return told(await operator.history())

    @router.get("/operator/events", **contract(None, shaped(EventPage), 400))
    async def events(
        after: After = 0,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 500,
        kind: Annotated[Sequence[str], Query()] = (),
        node: Annotated[str, Query(max_length=500)] = "",
        wait: Wait = 0,
    ) -> Response:
        kinds, left = _kinds(kind), wait
        while not (page := await operator.events(after, limit, kinds, node)).events and left > 0 and not service.in_flight.closing:
            await asyncio.sleep(_LOOK)
            left -= _LOOK
        return told(page)

    @router.get("/operator/stream", **contract(None, None, 400, 404, media=EVENTS, headers={"Last-Event-ID": {"type": "string"}}))
    async def stream(request: Request, after: After = 0, pipeline: Pipeline = "") -> Response:
        given = request.headers.get("last-event-id", "")
        if given and not (given.isdecimal() and len(given) < 19):
            raise InvalidRequest("Last-Event-ID must be the number of an event", "Last-Event-ID")
        await operator.cluster(pipeline)  # before the answer begins
        key = CALLER.get().key

        def over() -> bool:
            """Also where the key is revoked meanwhile, or one is needed from now on."""
            try:
                service.keyring.recheck(key)
            except NotAuthenticated:
                return True
            return service.in_flight.closing

        source = watched(operator, pipeline, int(given) if given else after, over)
        return StreamingResponse(source, media_type=EVENTS, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    @router.get("/operator/requests", **contract(None, shaped(RequestList)))
    async def requests() -> Response:
        return told(RequestList([_named(service, one) for one in await operator.requests(_owner())]))

    @router.get("/operator/requests/{id}/timeline", **contract(None, shaped(Timeline), 400, 404))
    async def timeline(id: str, after: After = 0, wait: Wait = 0) -> Response:
        left = wait
        while True:
            if (found := await operator.timeline(id, _owner(), after)) is None:
                raise UnknownObject("request", id)
            if found.steps or found.request.ended or left <= 0 or service.in_flight.closing:
                return told(msgspec.structs.replace(found, request=_named(service, found.request)))
            await asyncio.sleep(_LOOK)
            left -= _LOOK

    @router.get("/operator/preview", **contract(None, shaped(PlanView), 400, 403))
    async def preview(
        node: Annotated[str, Query(min_length=1, max_length=500)],
        action: Literal["drain", "remove", "cap"],
        memory: Annotated[str, Query(min_length=1, max_length=40)] | None = None,
    ) -> Response:
        CALLER.get().check_operator()
        return told(await operator.preview(node, _action(NodeBody(action=action, memory=memory))))

    @router.post("/operator/nodes/{name:path}", **contract(NodeBody, shaped(ActionResult), 403, 409))
    async def act(request: Request, name: str) -> Response:
        CALLER.get().check_operator()
        body = parse(NodeBody, await json_body(request))
        return _done(await operator.act(name, _action(body)))

    @router.post("/operator/invitation", **contract(None, shaped(Invitation), 403, 409))
    async def invite() -> Response:
        CALLER.get().check_operator()
        if not (made := await operator.invite()).command:
            why = "it ends with the command that runs it; start one with `shoal up` or `shoal serve`"
            raise Conflict(f"machines cannot join this cluster: {why}", "cluster")
        return told(made)

    @router.get("/operator/models", **contract(None, shaped(ModelsView)))
    async def models() -> Response:
        return told(await operator.models())

    @router.post("/operator/models", **contract(ModelsBody, shaped(ActionResult), 403, 409))
    async def change(request: Request) -> Response:
        CALLER.get().check_operator()
        body = parse(ModelsBody, await json_body(request))
        match _only_action(body):
            case "pull":
                return _done(await operator.pull(body.pull or ""))
            case "load":
                return _done(await operator.load(body.load or "", body.replicas or 0))
            case "unload":
                return _done(await operator.unload(body.unload or ""))
            case _:
                return _done(await operator.alias(body.alias or "", body.to or ""))

    @router.get("/operator/fleet-plan", **contract(None, shaped(FleetPlan)))
    async def fleet_plan() -> Response:
        return told(await operator.fleet_plan())

    return router


def _only_action(body: ModelsBody) -> str:
    """Raises InvalidRequest."""
    given = [name for name in ("pull", "load", "unload", "alias") if getattr(body, name) is not None]
    if len(given) != 1:
        raise InvalidRequest("give one of pull, load, unload and alias", given[1] if given else "load")
    for field, wanted in (("to", "alias"), ("replicas", "load")):
        if getattr(body, field) is not None and given[0] != wanted:
            raise InvalidRequest(f"{field} is for {wanted}", field)
    return given[0]


def _action(body: NodeBody) -> NodeAction:
    """Raises InvalidRequest."""
    for field, wanted in (("name", "rename"), ("memory", "cap")):
        if getattr(body, field) is not None and body.action != wanted:
            raise InvalidRequest(f"{field} is for the action '{wanted}'", field)
    if body.action == "rename" and body.name is None:
        raise InvalidRequest("rename needs a name", "name")
    try:
        return NodeAction(body.action, body.name or "", None if body.memory is None else parse_bytes(body.memory))
    except ConfigError as error:
        raise InvalidRequest(f"memory: {error}", "memory") from error


def _kinds(given: Sequence[str]) -> list[EventKind]:
    """Raises InvalidRequest."""
    for name in given:
        if name not in [*EventKind]:
            raise InvalidRequest(f"kind must be one of {', '.join(EventKind)}, not '{name[:100]}'", "kind")
    return [EventKind(name) for name in given]


def _owner() -> str | None:
    """Whose requests the caller may see; None: everybody's."""
    caller = CALLER.get()
    return None if caller.role is KeyRole.OPERATOR else caller.id


def _named(service: Service, request: RequestView) -> RequestView:
    """With the name of its key in the place of its id."""
    key = service.keyring.named(request.key)
    return msgspec.structs.replace(request, key=key)


def _done(result: ActionResult) -> Response:
    """Raises Conflict."""
    if not result.done:
        raise Conflict(result.message, "name")
    return told(result)
