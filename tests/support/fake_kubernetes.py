"""As much of Kubernetes' API as a lease needs: Leases, and the conflicts of their resource versions."""

from __future__ import annotations

import threading
from typing import Any

from tests.support.json_server import JsonServer


class FakeKubernetes(JsonServer):
    token = "a token of a service account"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.leases: dict[str, dict[str, Any]] = {}
        self.conflicts = 0
        self._version = 100
        super().__init__(self._said)

    def _said(self, method: str, path: str, headers: dict[str, str], body: Any) -> tuple[int, Any]:
        with self._lock:
            if headers.get("Authorization") != f"Bearer {self.token}":
                return 401, _status(401, "Unauthorized")
            kind, _, name = path.partition("/apis/coordination.k8s.io/v1/namespaces/")[2].partition("/leases")
            assert kind == "default", path
            name = name.removeprefix("/")
            if method == "POST":
                if (name := body["metadata"]["name"]) in self.leases:
                    self.conflicts += 1
                    return 409, _status(409, f'leases.coordination.k8s.io "{name}" already exists')
                return 201, self._stored(name, body)
            if (found := self.leases.get(name)) is None:
                return 404, _status(404, f'leases.coordination.k8s.io "{name}" not found')
            if method == "GET":
                return 200, found
            if body["metadata"]["resourceVersion"] != found["metadata"]["resourceVersion"]:
                self.conflicts += 1
                return 409, _status(409, "the object has been modified; please apply your changes to the latest version and try again")
            return 200, self._stored(name, body)

    def _stored(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        self._version += 1
        self.leases[name] = {**body, "metadata": {**body["metadata"], "resourceVersion": str(self._version)}}
        return self.leases[name]


def _status(code: int, message: str) -> dict[str, Any]:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}
