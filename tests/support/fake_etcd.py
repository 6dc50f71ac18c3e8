"""As much of etcd's JSON API (v3) as a lease needs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from tests.support.json_server import JsonServer


class FakeEtcd(JsonServer):
    """user, password: asked for where they are set; its tokens end when `tokens` is cleared. now: its clock."""

    def __init__(self, user: str = "", password: str = "", now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self.keys: dict[str, dict[str, str]] = {}
        self._leases: dict[str, tuple[int, float]] = {}
        self._revision = 1
        self._account = (user, password)
        self.tokens: set[str] = set()
        super().__init__(self._said)

    @property
    def url(self) -> str:
        user, password = self._account
        return f"etcd://{f'{user}:{password}@' if user else ''}127.0.0.1:{self.port}"

    def _said(self, method: str, path: str, headers: dict[str, str], body: Any) -> tuple[int, Any]:
        with self._lock:
            self._expire()
            if path == "/v3/auth/authenticate":
                return self._log_in(body)
            if self._account[0] and headers.get("Authorization") not in self.tokens:
                code, why = (16, "etcdserver: invalid auth token") if "Authorization" in headers else (3, "etcdserver: user name is empty")
                return 401 if code == 16 else 400, {"error": why, "code": code, "message": why}
            return {
                "/v3/lease/grant": self._grant,
                "/v3/lease/keepalive": self._keep,
                "/v3/lease/revoke": self._revoke,
                "/v3/kv/txn": self._transaction,
            }[path](body)

    def _log_in(self, body: Any) -> tuple[int, Any]:
        if (body["name"], body["password"]) != self._account:
            why = "etcdserver: authentication failed, invalid user ID or password"
            return 400, {"error": why, "code": 3, "message": why}
        self.tokens.add(token := f"token {len(self.tokens)} {self._now()}")
        return 200, {"token": token}

    def _grant(self, body: Any) -> tuple[int, Any]:
        id = str(1000 + self._revision + len(self._leases))
        self._revision += 1
        self._leases[id] = (body["TTL"], self._now() + body["TTL"])
        return 200, {"ID": id, "TTL": str(body["TTL"])}

    def _keep(self, body: Any) -> tuple[int, Any]:
        if (lease := self._leases.get(body["ID"])) is None:
            return 200, {"result": {"ID": body["ID"]}}
        self._leases[body["ID"]] = (lease[0], self._now() + lease[0])
        return 200, {"result": {"ID": body["ID"], "TTL": str(lease[0])}}

    def _revoke(self, body: Any) -> tuple[int, Any]:
        if self._leases.pop(body["ID"], None) is None:
            return 404, {"error": "etcdserver: requested lease not found", "code": 5, "message": "etcdserver: requested lease not found"}
        self._expire()
        return 200, {}

    def _expire(self) -> None:
        now = self._now()
        self._leases = {id: lease for id, lease in self._leases.items() if now < lease[1]}
        self.keys = {key: kv for key, kv in self.keys.items() if kv.get("lease", "0") == "0" or kv["lease"] in self._leases}

    def _transaction(self, body: Any) -> tuple[int, Any]:
        for compared in body.get("compare", []):
            revision = self.keys.get(compared["key"], {}).get("mod_revision", "0")
            if revision != compared["modRevision"]:
                return 200, {"responses": []}
        responses: list[Any] = []
        for one in body["success"]:
            if asked := one.get("requestRange"):
                found = self.keys.get(asked["key"])
                responses.append({"response_range": {"kvs": [found], "count": "1"} if found else {}})
            else:
                put = one["requestPut"]
                self._revision += 1
                self.keys[put["key"]] = {**put, "lease": put.get("lease", "0"), "mod_revision": str(self._revision)}
                responses.append({"response_put": {}})
        return 200, {"succeeded": True, "responses": responses}
