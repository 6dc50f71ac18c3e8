"""Questions to the operator's API of a head: docs/operating.md."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TypeVar
from urllib.parse import urlencode

import httpx2
import msgspec

from shoal.cli.asking import ChatOptions
from shoal.errors import ClusterError, Conflict, InvalidRequest
from shoal.gateway.endpoints.operator.wire import RequestList
from shoal.observed.cluster import ActionResult, ClusterView
from shoal.observed.event import EventPage
from shoal.observed.fleet_plan import FleetPlan
from shoal.observed.models import ModelsView
from shoal.observed.requests import RequestView, Timeline

_PATIENCE = 10.0  # seconds

T = TypeVar("T")


class Sight(msgspec.Struct, frozen=True):
    """A cluster at one moment, with its latest events and requests."""

    cluster: ClusterView
    requests: list[RequestView]
    events: EventPage


class OperatorClient:
    """All questions raise ClusterError, and InvalidRequest if the key is refused."""

    def __init__(self, asking: ChatOptions) -> None:
        """asking: its address and its key."""
        self.url = asking.url
        headers = {"Authorization": f"Bearer {asking.key}"} if asking.key else {}
        self._http = httpx2.AsyncClient(base_url=self.url, timeout=_PATIENCE, headers=headers, trust_env=False)

    async def __aenter__(self) -> OperatorClient:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._http.aclose()

    async def seen(self, events: int, pipeline: str = "") -> Sight:
        """pipeline: which the cluster is shown of; the first where it is none, or none any more. events: how many of the latest."""
        cluster, requests = await self.cluster(), await self.requests()
        if pipeline != cluster.pipeline and any(one.name == pipeline for one in cluster.pipelines):
            cluster = await self.cluster(pipeline)
        return Sight(cluster, requests, await self._get(f"events?limit={max(events, 1)}", EventPage))

    async def cluster(self, pipeline: str = "") -> ClusterView:
        """pipeline: '': the first."""
        return await self._get(f"cluster?{urlencode({'pipeline': pipeline})}" if pipeline else "cluster", ClusterView)

    async def requests(self) -> list[RequestView]:
        """The latest first: of this key, or everybody's for an operator's."""
        return (await self._get("requests", RequestList)).requests

    async def timeline(self, request: str) -> Timeline:
        return await self._get(f"requests/{request}/timeline", Timeline)

    async def models(self) -> ModelsView:
        return await self._get("models", ModelsView)

    async def fleet_plan(self) -> FleetPlan:
        return await self._get("fleet-plan", FleetPlan)

    async def change_models(self, body: Mapping[str, object]) -> ActionResult:
        """body: see gateway.endpoints.operator.wire.ModelsBody. Raises Conflict with the reason if it is not done."""
        return await self._ask("POST", "models", ActionResult, body)

    async def _get(self, path: str, kind: type[T]) -> T:
        return await self._ask("GET", path, kind)

    async def _ask(self, method: str, path: str, kind: type[T], body: Mapping[str, object] | None = None) -> T:
        try:
            answer = await self._http.request(method, f"/operator/{path}", json=body)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            why = str(error) or type(error).__name__
            raise ClusterError(f"{self.url} does not answer: {why}; is `shoal up` or `shoal serve` running there?") from error
        if answer.status_code in (401, 403):
            raise InvalidRequest(f"{self.url} asks for a key; give one of its own with --api-key or SHOAL_API_KEY")
        if answer.status_code in (400, 409):
            raise Conflict(_message(answer), "")
        if answer.status_code != 200:
            raise ClusterError(f"{self.url} answered {answer.status_code}; is a shoal of this version running there?")
        try:
            return msgspec.json.decode(answer.content, type=kind)
        except msgspec.MsgspecError as error:
            raise ClusterError(f"{self.url} answered what this version does not know ({error}); is it a shoal of this version?") from error


def _message(answer: httpx2.Response) -> str:
    """What an error says."""
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"it answered {answer.status_code}"
