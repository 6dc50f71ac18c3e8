"""The Helm chart: rendered by Helm, and its containers as processes of this machine, with the volumes that their pods name."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil
import pytest
import yaml

from tests.support.cluster import until

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "shoal"
ENTRYPOINT = [sys.executable, "-m", "shoal"]
"""In place of the image's."""

Manifest = dict[str, Any]


def tool(name: str) -> str:
    """Its path, where the system or `make charttools` has it; skips the test where there is none, unless SHOAL_REQUIRE_CHARTTOOLS is set."""
    here = ROOT / "build" / "charttools" / "bin" / name
    runs = here.exists() and (name != "helm" or platform.machine() in ("x86_64", "AMD64"))
    found = shutil.which(name) or (str(here) if runs else None)
    if found is None and os.environ.get("SHOAL_REQUIRE_CHARTTOOLS"):
        pytest.fail(f"{name} is missing: make charttools")
    if found is None:
        pytest.skip(f"{name} is not installed: make charttools (its helm is for x86-64)")
    return found


def helm(*arguments: str, values: Mapping[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
    command = [tool("helm"), *arguments, "--values", "-"]
    return subprocess.run(command, input=json.dumps(values or {}), capture_output=True, text=True, check=False)


def rendered(values: Mapping[str, Any] | None = None) -> str:
    """As `helm install sea` would send it."""
    done = helm("template", "sea", str(CHART), "--namespace", "deep", values=values)
    assert done.returncode == 0, done.stderr
    return done.stdout


def manifests(text: str) -> list[Manifest]:
    return [one for one in yaml.safe_load_all(text) if one is not None]


def of_kind(made: Sequence[Manifest], *kinds: str) -> dict[str, Manifest]:
    """By name."""
    return {one["metadata"]["name"]: one for one in made if one["kind"] in kinds}


def workloads(made: Sequence[Manifest]) -> dict[str, Manifest]:
    return of_kind(made, "StatefulSet", "DaemonSet", "Deployment")


def only(containers: list[Any]) -> Any:
    (one,) = containers
    return one


def option(arguments: Sequence[str], name: str) -> str:
    """Of a container: what --NAME=… says."""
    return only([word.partition("=")[2] for word in arguments if word.startswith(f"--{name}=")])


class Pod:
    """One pod of a workload, with processes in place of its containers and folders in place of its volumes. hosts: what stands for names
    of Services; address: what stands for the pod's own."""

    def __init__(
        self, folder: Path, made: Sequence[Manifest], workload: str, number: int, secrets: Mapping[str, Path], hosts: Mapping[str, str]
    ) -> None:
        manifest = workloads(made)[workload]
        self.name = f"{workload}-{number}"
        self.spec: Manifest = manifest["spec"]["template"]["spec"]
        self.container: Manifest = only(self.spec["containers"])
        self._folder = folder / self.name
        self._folder.mkdir(parents=True)
        claims = [claim["metadata"]["name"] for claim in manifest["spec"].get("volumeClaimTemplates", [])]
        self.volumes = {claim: self._made(claim) for claim in claims}
        configs = of_kind(made, "ConfigMap")
        for volume in self.spec["volumes"]:
            match volume:
                case {"configMap": {"name": name}}:
                    self.volumes[volume["name"]] = place = self._made(volume["name"])
                    for file, text in configs[name]["data"].items():
                        (place / file).write_text(text)
                case {"secret": {"secretName": name}}:
                    self.volumes[volume["name"]] = secrets[name]
                case {"emptyDir": _}:
                    self.volumes[volume["name"]] = self._made(volume["name"])
                case _:
                    raise AssertionError(f"what is {volume}?")
        self._hosts = hosts
        self.popen: subprocess.Popen[bytes] | None = None
        self._inits: list[subprocess.Popen[bytes]] = []

    def _made(self, name: str) -> Path:
        (folder := self._folder / name).mkdir()
        return folder

    def here(self, container: Manifest, text: str) -> str:
        """A text of the manifest with the folders and hosts of this machine."""
        places = {mount["mountPath"]: str(self.volumes[mount["name"]]) for mount in container["volumeMounts"]} | dict(self._hosts)
        longest = sorted(places, key=len, reverse=True)
        return re.sub("|".join(map(re.escape, longest)), lambda found: places[found[0]], text)

    def environment(self, container: Manifest) -> dict[str, str]:
        """Nothing but what the manifest names, and what this Python needs."""
        found = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
        for variable in container.get("env", []):
            match variable:
                case {"value": value}:
                    found[variable["name"]] = self.here(container, value)
                case {"valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}:
                    found[variable["name"]] = self.name
                case _:
                    raise AssertionError(f"what is {variable}?")
        if container is self.container:
            found["TMPDIR"] = self.here(container, "/tmp")
        return found

    def begin(self) -> list[subprocess.Popen[bytes]]:
        """Starts the init containers, which are still to end."""
        begun: list[subprocess.Popen[bytes]] = []
        for container in self.spec["initContainers"]:
            command = [self.here(container, word) for word in container["command"]]
            begun.append(subprocess.Popen(command, env=self.environment(container), stdin=subprocess.DEVNULL))
        self._inits += begun
        return begun

    def start(self, **environment: str) -> None:
        """The container itself, after the others."""
        command = [*ENTRYPOINT, *(self.here(self.container, word) for word in self.container["args"])]
        with self._log.open("ab") as log:
            self.popen = subprocess.Popen(
                command,
                env={**self.environment(self.container), **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def _log(self) -> Path:
        return self._folder / "log"

    @property
    def said(self) -> str:
        return f"{self.name} said:\n{self._log.read_text() if self._log.exists() else ''}"

    def port(self, name: str) -> int:
        return only([port["containerPort"] for port in self.container["ports"] if port["name"] == name])

    def probe(self, name: str, address: str = "127.0.0.1") -> bool:
        """What a kubelet does for `startupProbe` and the like."""
        probe = self.container[name]
        seconds = probe.get("timeoutSeconds", 1)
        match probe:
            case {"httpGet": {"path": path, "port": port}}:
                with contextlib.suppress(httpx.TransportError):
                    url = f"http://{address}:{self.port(port)}{path}"
                    return 200 <= httpx.get(url, timeout=seconds, trust_env=False).status_code < 400
                return False
            case {"tcpSocket": {"port": port}}:
                with contextlib.suppress(OSError), socket.create_connection((address, self.port(port)), seconds):
                    return True
                return False
            case _:
                raise AssertionError(f"what is {probe}?")

    def until(self, probe: str, address: str = "127.0.0.1") -> None:
        def passes() -> bool:
            assert self.popen is not None and self.popen.poll() is None, self.said
            return self.probe(probe, address)

        until(passes, lambda: self.said, every=0.1)

    def listening(self) -> set[int]:
        """The ports at which it does."""
        assert self.popen is not None
        own = psutil.Process(self.popen.pid)
        connections = [c for process in (own, *own.children(recursive=True)) for c in process.net_connections("tcp")]
        return {connection.laddr.port for connection in connections if connection.status == psutil.CONN_LISTEN}

    def stop(self) -> int:
        """As a kubelet does, within the time that the manifest gives; answers the exit status."""
        assert self.popen is not None
        if (hook := self.container.get("lifecycle", {}).get("preStop")) is not None:
            subprocess.run(hook["exec"]["command"], check=True, env=self.environment(self.container))
        self.popen.terminate()
        return self.popen.wait(self.spec["terminationGracePeriodSeconds"])

    def ended(self) -> int:
        """Waits until it ends by itself; answers the exit status."""
        assert self.popen is not None
        until(lambda popen=self.popen: popen.poll() is not None, lambda: self.said)
        return self.popen.returncode

    def end(self) -> None:
        for process in (*self._inits, *([] if self.popen is None else [self.popen])):
            if process.poll() is None:
                process.kill()
                process.wait()


def secret(folder: Path, **files: Path) -> Path:
    """What `kubectl create secret generic` would hold, as a pod sees it."""
    folder.mkdir()
    for name, file in files.items():
        (folder / name.replace("_", ".")).write_bytes(file.read_bytes())
        (folder / name.replace("_", ".")).chmod(0o440)
    return folder
