"""What the gateway needs from whatever runs the cluster, for those who watch and manage it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from shoal.observed.cluster import ActionResult, ClusterView, ExpertsView, Invitation, NodeAction, PlanView
from shoal.observed.event import EventKind, EventPage
from shoal.observed.fleet_plan import FleetPlan
from shoal.observed.history import History
from shoal.observed.models import ModelsView
from shoal.observed.requests import RequestView, Timeline


class Operator(Protocol):
    """owner: the id of a key, whose requests alone are shown; None: all are. The `key` of what it answers is an id."""

    async def cluster(self, pipeline: str) -> ClusterView:
        """As one of its pipelines has it. pipeline: its name; '': the first. Raises UnknownObject."""
        ...

    async def experts(self, pipeline: str) -> ExpertsView: ...
    async def events(self, after: int, limit: int, kinds: Sequence[EventKind], node: str) -> EventPage: ...
    async def history(self) -> History: ...
    async def requests(self, owner: str | None) -> list[RequestView]: ...
    async def timeline(self, answer: str, owner: str | None, after: int) -> Timeline | None:
        """None: it is not known, or not that owner's."""
        ...

    async def preview(self, node: str, action: NodeAction) -> PlanView:
        """What would come of it."""
        ...

    async def act(self, node: str, action: NodeAction) -> ActionResult: ...
    async def invite(self) -> Invitation: ...
    async def models(self) -> ModelsView: ...
    async def pull(self, model: str) -> ActionResult: ...
    async def load(self, model: str, replicas: int) -> ActionResult:
        """Begins to serve one more model. replicas: copies; 0: as many as last time."""
        ...

    async def fleet_plan(self) -> FleetPlan:
        """What would be done about the copies of models. Asking changes nothing."""
        ...

    async def unload(self, model: str) -> ActionResult:
        """Ends its requests and frees its memory."""
        ...

    async def alias(self, alias: str, target: str) -> ActionResult:
        """target: the model or alias that it stands for; '': it is removed."""
        ...
