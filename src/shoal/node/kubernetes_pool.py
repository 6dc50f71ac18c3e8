"""Nodes that are the pods of a StatefulSet: their number is set through the API server, as the pod's own service account.

A GET and, if there are fewer, a PATCH of the StatefulSet's scale (https://kubernetes.io/docs/reference/using-api/, the subresource `scale`). The
account needs `get` and `patch` for `statefulsets/scale`: the chart's `autoscaling.nodes` gives it that.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2

from shoal.address import join_host_port
from shoal.config import variable
from shoal.errors import ClusterError, ConfigError

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds its token, its namespace and the certificate authority of the API server."""
_PATIENCE = 10.0  # seconds
_MERGE = {"content-type": "application/merge-patch+json"}


class KubernetesPool:
    """A NodePool: the pods of a StatefulSet are named after it, and the nodes after their pods."""

    def __init__(self, stateful_set: str, url: str, account: Path = ACCOUNT) -> None:
        """url: of the API server. Raises ConfigError if the account's files are not there."""
        self._set, self._url, self._account = stateful_set, url, account
        self._namespace = self._read("namespace")
        self._read("token")
        try:
            self._tls = ssl.create_default_context(cafile=account / "ca.crt")
        except OSError as error:
            raise ConfigError(f"cannot read {account / 'ca.crt'}: {error.strerror or error}") from error

    @classmethod
    def here(cls, stateful_set: str) -> KubernetesPool:
        """Of the cluster that this process is a pod of. Raises ConfigError if it is none."""
        host, port = variable("KUBERNETES_SERVICE_HOST"), variable("KUBERNETES_SERVICE_PORT")
        if not host or not port or not port.isdecimal():
            raise ConfigError("--more-nodes kubernetes works in a pod of a Kubernetes cluster alone: KUBERNETES_SERVICE_HOST is not set")
        return cls(stateful_set, f"https://{join_host_port(host, int(port))}")

    def count(self, nodes: Sequence[str]) -> int:
        return sum(re.fullmatch(rf"{re.escape(self._set)}-\d+", name) is not None for name in nodes)

    async def at_least(self, nodes: int) -> str:
        path = f"/apis/apps/v1/namespaces/{self._namespace}/statefulsets/{self._set}/scale"
        token = self._read("token")  # Kubernetes renews it
        headers = {"authorization": f"Bearer {token}", "accept": "application/json"}
        async with httpx2.AsyncClient(base_url=self._url, verify=self._tls, timeout=_PATIENCE, headers=headers, trust_env=False) as http:
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

    def _read(self, name: str) -> str:
        """One of the account's files. Raises ConfigError."""
        try:
            return (self._account / name).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read {self._account / name}, which a pod with a service account has: {error}") from error


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
