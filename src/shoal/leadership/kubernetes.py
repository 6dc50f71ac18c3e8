"""The lease in Kubernetes: a Lease of coordination.k8s.io/v1, written only if nobody has written it since it was read.

As in client-go's leader election, a head does not compare its clock with the times in the record, which another machine wrote: the
lease is free when the record has not changed for its duration by the observer's own clock. Its `leaseTransitions` are the term.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from secrets import token_hex
from typing import Any

import httpx2 as httpx
import msgspec

from shoal.errors import ConfigError, LeaseUnreachable
from shoal.leadership.clock import elapsed
from shoal.leadership.lease import DURATION, Grant, Holder
from shoal.service_account import ServiceAccount

_SHARE = 1 / 4  # of the duration, for an answer
_API = "coordination.k8s.io/v1"


class KubernetesLease:
    def __init__(
        self,
        account: ServiceAccount,
        name: str,
        namespace: str = "",
        duration: float = DURATION,
        now: Callable[[], float] = elapsed,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Nothing is sent yet. namespace: '': the pod's. transport: another than TCP. Raises ConfigError."""
        self.duration = duration
        self._account, self._now = account, now
        self._name, self._namespace = name, namespace or account.namespace
        verify = account.context() if account.url.startswith("https:") else False
        self._http = httpx.AsyncClient(base_url=account.url, verify=verify, trust_env=False, timeout=duration * _SHARE, transport=transport)
        self._all = f"/apis/{_API}/namespaces/{self._namespace}/leases"
        self._owner = token_hex(8)
        self._term = self._seen = 0
        self._record: tuple[Any, ...] = ()
        self._changed = 0.0
        """When this head first saw the record as it is."""

    def __repr__(self) -> str:
        return f"KubernetesLease({self._namespace}/{self._name})"

    async def acquire(self, address: str) -> Grant | None:
        found = await self._get()
        if found is not None and not self._free(found["spec"]):
            return None
        sent, term = self._now(), self._seen + 1
        spec = {
            "holderIdentity": f"{address}_{self._owner}",
            "leaseDurationSeconds": math.ceil(self.duration),
            "acquireTime": _time(),
            "renewTime": _time(),
            "leaseTransitions": term,
        }
        if found is None:
            new = {"apiVersion": _API, "kind": "Lease", "metadata": {"name": self._name, "namespace": self._namespace}, "spec": spec}
            written = await self._ask("POST", self._all, new)
        else:
            written = await self._put(found, spec)
        if written is None:
            return None
        self._term = term
        return Grant(term, sent + self.duration)

    async def renew(self) -> Grant | None:
        sent, term, found = self._now(), self._term, await self._get()
        if found is None or not self._mine(found["spec"], term):
            return None
        if await self._put(found, {"renewTime": _time(), "leaseDurationSeconds": math.ceil(self.duration)}) is None:
            raise LeaseUnreachable(f"the Lease {self._namespace}/{self._name}", "somebody else changed it at the same time")
        return Grant(term, sent + self.duration)

    async def release(self) -> None:
        term, self._term = self._term, 0
        found = await self._get()
        if found is not None and self._mine(found["spec"], term):
            await self._put(found, {"holderIdentity": "", "renewTime": _time()})

    async def holder(self) -> Holder | None:
        found = await self._get()
        if found is None or not (identity := found["spec"].get("holderIdentity")) or self._expired(found["spec"]):
            return None
        return Holder(identity.rpartition("_")[0] or identity, int(found["spec"].get("leaseTransitions") or 0))

    async def close(self) -> None:
        await self._http.aclose()

    def _free(self, spec: dict[str, Any]) -> bool:
        identity = spec.get("holderIdentity")
        return not identity or identity.rpartition("_")[2] == self._owner or self._expired(spec)

    def _expired(self, spec: dict[str, Any]) -> bool:
        return self._now() - self._changed >= float(spec.get("leaseDurationSeconds") or self.duration)

    def _mine(self, spec: dict[str, Any], term: int) -> bool:
        identity = spec.get("holderIdentity") or ""
        return identity.rpartition("_")[2] == self._owner and spec.get("leaseTransitions") == term

    async def _get(self) -> dict[str, Any] | None:
        """The Lease, which this head has then observed; None: there is none. Raises LeaseUnreachable, ConfigError."""
        if (found := await self._ask("GET", f"{self._all}/{self._name}")) is None:
            return None
        spec = found.setdefault("spec", {})
        record = tuple(
            spec.get(field) for field in ("holderIdentity", "leaseDurationSeconds", "acquireTime", "renewTime", "leaseTransitions")
        )
        if record != self._record:
            self._record, self._changed = record, self._now()
        self._seen = max(self._seen, int(spec.get("leaseTransitions") or 0))
        return found

    async def _put(self, found: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any] | None:
        """Changes fields of what was found; None: somebody else changed it before. Raises LeaseUnreachable, ConfigError."""
        return await self._ask("PUT", f"{self._all}/{self._name}", {**found, "spec": {**found["spec"], **spec}})

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """None: there is no such Lease, or it has changed. Raises LeaseUnreachable, ConfigError."""
        where = f"the Lease {self._namespace}/{self._name}"
        try:
            answer = await self._http.request(method, path, json=body, headers={"Authorization": f"Bearer {self._account.token}"})
        except httpx.HTTPError as error:
            raise LeaseUnreachable(where, str(error) or type(error).__name__) from None
        try:
            said = msgspec.json.decode(answer.content, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise LeaseUnreachable(where, f"what answers at {self._account.url} is not Kubernetes: HTTP {answer.status_code}") from None
        if answer.status_code in (401, 403):
            raise ConfigError(
                f"Kubernetes does not let this pod use {where} ({said.get('message', 'forbidden')}); give its service account a Role with "
                f"get, create and update on leases of coordination.k8s.io in {self._namespace}"
            )
        if answer.status_code == 409 or (answer.status_code == 404 and method != "POST"):
            return None
        if answer.is_error:
            raise LeaseUnreachable(where, str(said.get("message", f"HTTP {answer.status_code}")))
        return said


def _time() -> str:
    """For people who look at the Lease; no head reads it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
