"""The containers of the Helm chart, run as processes with the commands, environment, files and probes that the manifests name."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from tests.support.charts import ENTRYPOINT, Pod, manifests, of_kind, rendered, secret, workloads
from tests.support.cluster import BOUND, free_port

pytestmark = [pytest.mark.slow, pytest.mark.real]

NODES = ("127.0.0.2", "127.0.0.3")
"""The pods' addresses: all have the same ports."""


class Release:
    """A head and its nodes, as one release."""

    def __init__(self, folder: Path, values: dict[str, Any], secrets: dict[str, Path]) -> None:
        ports = {name: free_port() for name in ("control", "results", "tensors", "gateways")}
        self.made = manifests(rendered({**values, "api": {**values.get("api", {}), "port": free_port()}, "ports": ports}))
        hosts = {"sea-shoal-control": "127.0.0.1", "sea-shoal-head-0.sea-shoal-control": "127.0.0.1"}
        self.head = Pod(folder, self.made, "sea-shoal-head", 0, secrets, hosts)
        self.nodes = [Pod(folder, self.made, "sea-shoal-node", i, secrets, hosts) for i in range(len(NODES))]
        few = [0] if "sea-shoal-gateway" in workloads(self.made) else []
        self.gateways = [Pod(folder, self.made, "sea-shoal-gateway", i, secrets, hosts) for i in few]
        self.url = f"http://127.0.0.1:{(self.gateways or [self.head])[0].port('api')}"
        """Where the Service leads."""

    def start_head(self) -> None:
        for init in self.head.begin():
            assert init.wait() == 0
        self.head.start()
        self.head.until("startupProbe")

    def end(self) -> None:
        for pod in (*self.gateways, *self.nodes, self.head):
            pod.end()

    def chat(self, key: str = "") -> httpx.Response:
        body = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 16, "temperature": 0}
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, headers=headers, timeout=BOUND, trust_env=False)

    def command(self, *arguments: str) -> str:
        """What `kubectl exec` runs in the head's pod."""
        environment = self.head.environment(self.head.container)
        return subprocess.run([*ENTRYPOINT, *arguments], env=environment, capture_output=True, text=True, check=True).stdout


def shoal(home: Path, *arguments: str) -> str:
    """On the machine of whoever installs the chart."""
    environment = {**os.environ, "SHOAL_HOME": str(home)}
    return subprocess.run([*ENTRYPOINT, *arguments], env=environment, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def model(smollm2: Path) -> dict[str, Any]:
    settings = {"threads": 1, "memory": "1GiB", "runtime": "native"}
    return {"model": str(smollm2), "head": {"minNodes": 2, "settings": {"spread": True, "heartbeat": 0.2}}, "nodes": {"settings": settings}}


@pytest.fixture
def cleanup() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_the_pods_serve_with_keys_and_certificates(model: dict[str, Any], tmp_path: Path, cleanup: ExitStack) -> None:
    key = shoal(tmp_path / "mine", "keys", "create", "admin", "--role", "operator")
    assert "issued by" in shoal(tmp_path / "mine", "nodes", "certify", "-o", str(tmp_path / "node.pem"))
    secrets = {
        "sea-shoal-head": secret(
            tmp_path / "secret-head",
            authority_pem=tmp_path / "mine" / "keys" / "authority" / "authority.pem",
            keys_sqlite=tmp_path / "mine" / "api" / "keys.sqlite",
        ),
        "sea-shoal-node": secret(tmp_path / "secret-node", node_pem=tmp_path / "node.pem"),
        "metrics": tmp_path,
    }
    metrics = {"serviceMonitor": {"enabled": True, "keySecret": {"name": "metrics"}}}
    release = Release(tmp_path / "pods", {**model, "metrics": metrics}, secrets)
    cleanup.callback(release.end)

    waiting = [init for node in release.nodes for init in node.begin()]  # of the head
    release.start_head()
    assert release.head.probe("livenessProbe") and not release.head.probe("readinessProbe")
    for node, address in zip(release.nodes, NODES, strict=True):
        node.start(SHOAL_BIND=address)
    assert [init.wait() for init in waiting] == [0, 0]
    for node, address in zip(release.nodes, NODES, strict=True):
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            node.until(probe, address)
    release.head.until("readinessProbe")

    assert release.chat().status_code == 401
    answer = release.chat(key).json()
    assert answer["usage"]["completion_tokens"] == 16
    (monitor,) = of_kind(release.made, "ServiceMonitor").values()
    (endpoint,) = monitor["spec"]["endpoints"]
    scraped = httpx.get(release.url + endpoint["path"], headers={"Authorization": f"Bearer {key}"}, timeout=BOUND, trust_env=False)
    assert "\nshoal_requests_total{" in scraped.text
    assert httpx.get(release.url + endpoint["path"], timeout=BOUND, trust_env=False).status_code == 401
    listed = release.command("nodes", "--head", f"127.0.0.1:{release.head.port('control')}")
    assert all(pod.name in listed for pod in release.nodes)
    assert "alice" not in release.command("keys", "list")
    release.command("keys", "create", "alice")

    # Nothing listens at other ports than those that the policies speak of, but for pairing.
    head = release.head
    assert head.listening() == {head.port("api"), head.port("control"), head.port("control") + 1, head.port("results")}
    assert all(node.listening() == {node.port("tensors")} for node in release.nodes)

    # A probe that a node's TLS does not understand must not fill its log.
    for node, address in zip(release.nodes, NODES, strict=True):
        before = node.said
        assert all(node.probe("livenessProbe", address) for _ in range(5))
        assert node.said == before

    # A pod that is stopped moves its layers first; its head, which has one node left, serves on.
    assert release.nodes[1].stop() == 0
    release.head.until("readinessProbe")
    assert release.chat(key).json()["choices"] == answer["choices"]

    # The head's pod starts again with what its volume keeps, though Kubernetes has opened that to the volume's group.
    assert release.head.stop() == 0
    assert release.nodes[0].ended() == 0  # the head sends its nodes home
    subprocess.run(["chmod", "-R", "g+rwX", str(release.head.volumes["data"])], check=True)
    release.start_head()
    assert "alice" in release.command("keys", "list")
    release.nodes[0].start(SHOAL_BIND=NODES[0])  # a kubelet starts an ended container again, without those before it
    assert [init.wait() for init in release.nodes[1].begin()] == [0]
    release.nodes[1].start(SHOAL_BIND=NODES[1])
    release.head.until("readinessProbe")
    assert release.chat(key).json()["choices"] == answer["choices"]


def test_gateways_in_pods_of_their_own_serve_for_the_head(model: dict[str, Any], tmp_path: Path, cleanup: ExitStack) -> None:
    key = shoal(tmp_path / "mine", "keys", "create", "admin")
    for flags, name in (((), "node"), (("--gateway",), "gateway")):
        shoal(tmp_path / "mine", "nodes", "certify", *flags, "-o", str(tmp_path / f"{name}.pem"))
    secrets = {
        "sea-shoal-head": secret(
            tmp_path / "secret-head",
            authority_pem=tmp_path / "mine" / "keys" / "authority" / "authority.pem",
            keys_sqlite=tmp_path / "mine" / "api" / "keys.sqlite",
        ),
        "sea-shoal-node": secret(tmp_path / "secret-node", node_pem=tmp_path / "node.pem"),
        "sea-shoal-gateway": secret(tmp_path / "secret-gateway", gateway_pem=tmp_path / "gateway.pem"),
    }
    release = Release(tmp_path / "pods", {**model, "gateways": {"enabled": True, "port": free_port()}}, secrets)
    cleanup.callback(release.end)
    (gateway,) = release.gateways
    waiting = [init for pod in (gateway, *release.nodes) for init in pod.begin()]  # of the head
    release.start_head()
    assert [init.wait() for init in waiting] == [0, 0, 0]
    gateway.start()
    gateway.until("startupProbe")
    assert gateway.probe("livenessProbe") and not gateway.probe("readinessProbe")
    for node, address in zip(release.nodes, NODES, strict=True):
        node.start(SHOAL_BIND=address)
    gateway.until("readinessProbe")
    assert release.chat().status_code == 401
    assert release.chat(key).json()["usage"]["completion_tokens"] == 16
    assert gateway.listening() == {gateway.port("api")}
    head = release.head
    assert head.listening() == {*(head.port(name) for name in ("api", "control", "results", "gateways")), head.port("control") + 1}
    assert gateway.stop() == 0


def test_without_protection_nobody_needs_a_secret(model: dict[str, Any], tmp_path: Path, cleanup: ExitStack) -> None:
    (tmp_path / "nothing").mkdir()
    values = {**model, "security": {"unprotected": True}, "api": {"open": True}}
    release = Release(tmp_path / "pods", values, {"sea-shoal-head": tmp_path / "nothing"})
    cleanup.callback(release.end)
    release.start_head()
    for node, address in zip(release.nodes, NODES, strict=True):
        assert [init.wait() for init in node.begin()] == [0]
        node.start(SHOAL_BIND=address)
    release.head.until("readinessProbe")
    assert release.chat().json()["usage"]["completion_tokens"] == 16


def test_a_head_without_its_secret_says_what_is_missing(model: dict[str, Any], tmp_path: Path, cleanup: ExitStack) -> None:
    (tmp_path / "nothing").mkdir()
    release = Release(tmp_path / "pods", model, {"sea-shoal-head": tmp_path / "nothing", "sea-shoal-node": tmp_path / "nothing"})
    cleanup.callback(release.end)
    assert [init.wait() for init in release.head.begin()] == [1]  # no authority.pem
    release.head.start()
    assert release.head.ended() == 2
    assert "shoal keys create" in release.head.said
