"""The part of Kubernetes' API server that scales a StatefulSet, on loopback with TLS, and the files of a pod's service account."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID


@dataclass
class ApiRequest:
    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class KubernetesApi:
    """Of one StatefulSet, sea-nodes in the namespace deep. folder: for the account and the certificate."""

    folder: Path
    replicas: int = 2
    forbidden: bool = False
    token: str = "first"
    requests: list[ApiRequest] = field(default_factory=list[ApiRequest])
    port: int = 0

    def __post_init__(self) -> None:
        self.account = self.folder / "serviceaccount"
        self.account.mkdir(parents=True)
        (self.account / "namespace").write_text("deep")
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Kubernetes of {self.folder.name}")])
        now = datetime.now(UTC)
        made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        made = made.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        certificate = made.sign(key, SHA256()).public_bytes(Encoding.PEM)
        (self.account / "ca.crt").write_bytes(certificate)
        (self.folder / "server.pem").write_bytes(certificate + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(self.folder / "server.pem")
        self.renew(self.token)

    def renew(self, token: str) -> None:
        """As Kubernetes does every hour."""
        self.token = token
        (self.account / "token").write_text(f"{token}\n")

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def scale(self) -> dict[str, Any]:
        return {"kind": "Scale", "apiVersion": "autoscaling/v1", "spec": {"replicas": self.replicas}, "status": {"replicas": self.replicas}}

    def _answer(self, asked: ApiRequest) -> tuple[int, dict[str, Any]]:
        if asked.headers.get("authorization") != f"Bearer {self.token}":
            return 401, {"kind": "Status", "message": "Unauthorized"}
        if self.forbidden:
            return 403, {"kind": "Status", "message": "not for you"}
        if asked.path != "/apis/apps/v1/namespaces/deep/statefulsets/sea-nodes/scale":
            return 404, {"kind": "Status", "message": "not found"}
        if asked.method == "PATCH":
            self.replicas = asked.body["spec"]["replicas"]
        return 200, self.scale()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                first, *lines = head.split("\r\n")[:-2]
                headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                method, path, _ = first.split(" ")
                asked = ApiRequest(method, path, headers, json.loads(body) if body else None)
                self.requests.append(asked)
                status, answer = self._answer(asked)
                data = json.dumps(answer).encode()
                writer.write(
                    f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            return
        finally:
            writer.close()


@asynccontextmanager
async def kubernetes_api(api: KubernetesApi) -> AsyncGenerator[KubernetesApi]:
    server = await asyncio.start_server(api.serve, "127.0.0.1", 0, ssl=api.tls)
    api.port = server.sockets[0].getsockname()[1]
    try:
        yield api
    finally:
        server.close()
