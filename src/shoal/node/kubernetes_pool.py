"""Nodes that are the pods of a StatefulSet: their number is set through the API server, as the pod's own service account.

A GET and, if there are fewer, a PATCH of the StatefulSet's scale (https://kubernetes.io/docs/reference/using-api/, the subresource `scale`). The
account needs `get` and `patch` for `statefulsets/scale`: the chart's `autoscaling.nodes` gives it that.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import httpx2

from shoal.errors import ClusterError
from shoal.service_account import ServiceAccount

_PATIENCE = 10.0  # seconds
_MERGE = {"content-type": "application/merge-patch+json"}


class KubernetesPool:
    """A NodePool: the pods of a StatefulSet are named after it, and the nodes after their pods."""

    def __init__(self, stateful_set: str, account: ServiceAccount) -> None:
        """Raises ConfigError if the account's files are not there."""
        self._set, self._account = stateful_set, account
        self._namespace, self._tls = account.namespace, account.context()

    def count(self, nodes: Collection[str]) -> int:
        return sum(re.fullmatch(rf"{re.escape(self._set)}-\d+", name) is not None for name in nodes)

    async def at_least(self, nodes: int) -> str:
        path = f"/apis/apps/v1/namespaces/{self._namespace}/statefulsets/{self._set}/scale"
        headers = {"authorization": f"Bearer {self._account.token}", "accept": "application/json"}
        async with httpx2.AsyncClient(
            base_url=self._account.url, verify=self._tls, timeout=_PATIENCE, headers=headers, trust_env=False
        ) as http:
            scale = await self._ask(http, "GET", path)
            there = _replicas(scale)
            if there >= nodes:
                return f"the StatefulSet {self._set} has {there} pods already, or will"
            await self._ask(http, "PATCH", path, {"spec": {"replicas": nodes}})
        return f"the StatefulSet {self._set} gets {nodes} pods, not {there}"

    async def _ask(self, http: httpx2.AsyncClient, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Raises ClusterError."""
        try:
            answer = await http.request(method, path, json=body, headers=_MERGE if body is not None else None)
        except httpx2.HTTPError as error:
            raise ClusterError(f"the API server of Kubernetes does not answer: {str(error) or type(error).__name__}") from error
        if answer.status_code != 200:
            hint = "; see autoscaling.nodes of the chart" if answer.status_code == 403 else ""
            raise ClusterError(f"Kubernetes answers {answer.status_code} to {method} {path}: {_message(answer)}{hint}")
        try:
            return answer.json()
        except ValueError as error:
            raise ClusterError(f"Kubernetes answers {method} {path} with no JSON: {error}") from error


def _replicas(scale: Any) -> int:
    """Raises ClusterError."""
    try:
        return int(scale["spec"].get("replicas", 0))
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ClusterError(f"Kubernetes tells no number of replicas: {error!r}") from error


def _message(answer: httpx2.Response) -> str:
    try:
        return str(answer.json()["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return answer.text[:100]
