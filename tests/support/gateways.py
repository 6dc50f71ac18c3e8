"""A protected cluster whose API gateways serve, each process with a home of its own, so that nothing is shared by accident."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
from openai import OpenAI

from tests.support import forks
from tests.support.cluster import BOUND, Cluster, Process, cluster, free_port, until

FLAGS = ("--slots", "8", "--context", "512", "--discovery", "none", "--secure")


class Gateway:
    """A `shoal gateway` that runs; `http` and `texts` are as those of a Cluster."""

    def __init__(self, process: Process, port: int, home: Path) -> None:
        self.process, self.port, self.home = process, port, home
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=BOUND, trust_env=False)

    def texts(self, prompt: Any, tokens: int = 8, **options: Any) -> list[str]:
        body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, **options}
        answer = self.http.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        return [choice["text"] for choice in answer.json()["choices"]]

    def ready(self) -> bool:
        assert self.process.popen.poll() is None, self.process.describe()
        with contextlib.suppress(httpx.TransportError):
            return self.http.get("/health/ready").status_code == 200
        return False

    def until_ready(self) -> None:
        until(self.ready, self.process.describe)

    def kill(self) -> None:
        self.process.signal(signal.SIGKILL)
        self.process.wait()
        self.http.close()


def client(url: str, key: str = "none") -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=BOUND)


def streamed(url: str, key: str = "none", words: str = "Tell me about the sea.") -> str:
    """A chat of the openai client."""
    with client(url, key) as asking:
        stream = asking.chat.completions.create(
            model="smollm2-135m", messages=[{"role": "user", "content": words}], max_tokens=24, temperature=0, stream=True
        )
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


class Fleet:
    """A head, a node, and gateways."""

    def __init__(self, made: Cluster, folder: Path, models: Path) -> None:
        self.made, self.folder, self._models = made, folder, models
        self.gateway_port = free_port()
        self.gateways: list[Gateway] = []
        self._began = 0
        self.heads = 0

    def home(self, name: str, models: bool = False) -> Path:
        """The only folder of a machine, with links to models or without."""
        home = self.folder / name
        if not home.exists():
            home.mkdir()
            for entry in self._models.iterdir() if models else ():
                if entry.name not in ("keys", "api", "heads", "chat", "gateway", "tokenizers"):
                    (home / entry.name).symlink_to(entry)
        return home

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.made.control_port}"

    @property
    def code(self) -> str:
        return re.findall(r"pairing code (\S+),", self.made.head.said)[-1]

    def serve(self, *flags: str) -> None:
        """A head, in the home that every head of this fleet has."""
        self.heads += 1
        ports = ("--port", str(self.made.port), "--control-port", str(self.made.control_port), "--gateway-port", str(self.gateway_port))
        log = self.folder / f"head-{self.heads}.log"
        head = Process(log, "-v", "serve", *ports, *FLAGS, *flags, SHOAL_CACHE=str(self.home("head", models=True)))
        self.made._processes.append(head)
        self.made.replace_head(head)
        head.until_said("pairing code")

    def join(self) -> None:
        self.made.join_from((), self.address, "--name", "n0", "--code", self.code, SHOAL_CACHE=str(self.home("node", models=True)))

    def gateway(self, name: str, *flags: str) -> Gateway:
        """One that has paired before, or that the flags let in."""
        self._began += 1
        port = free_port()
        log = self.folder / f"{name}-{self._began}.log"
        words = ("-v", "gateway", *(flags or (self.address,)), "--port", str(port), "--name", name)
        process = Process(log, *words, SHOAL_CACHE=str(self.home(name)))
        self.made._processes.append(process)
        gateway = Gateway(process, port, self.home(name))
        self.gateways.append(gateway)
        return gateway

    def paired(self, name: str) -> Gateway:
        code = self.code
        gateway = self.gateway(name, self.address, "--code", code)
        gateway.until_ready()
        until(lambda: self.code != code, gateway.process.describe)
        return gateway

    def refused(self, name: str, *flags: str) -> str:
        """What a gateway says that is not taken."""
        words = ("gateway", *(flags or (self.address,)), "--port", "0")
        done = forks.run(words, {**os.environ, "COLUMNS": "200", "SHOAL_HOME": "", "SHOAL_CACHE": str(self.home(name))})
        assert done.returncode != 0, done.stderr
        return done.stdout + done.stderr

    def keys(self, *words: str) -> str:
        """What `shoal keys` says on the head's machine."""
        done = forks.run(("keys", *words), {**os.environ, "COLUMNS": "200", "SHOAL_HOME": "", "SHOAL_CACHE": str(self.home("head"))})
        assert done.returncode == 0, done.stderr
        return done.stdout

    def kill_head(self) -> None:
        family = self.made.head.family()
        self.made.head.signal(signal.SIGKILL)
        self.made.head.wait()
        until(lambda: not any(process.is_running() and process.status() != "zombie" for process in family), self.made.story)
        self.made.http.close()
        self.made.http = httpx.Client(base_url=self.made.url, timeout=BOUND, trust_env=False)


@contextlib.contextmanager
def fleet(folder: Path, smollm2: Path) -> Iterator[Fleet]:
    """Ends every process, whatever happens inside. smollm2: the model's file, in a cache."""
    models = smollm2.parent
    while models.name != "shoal" and not (models / "models").exists() and models != models.parent:
        models = models.parent
    with cluster(folder) as made:
        there = Fleet(made, folder, models)
        there.serve()
        there.join()
        made.until_ready()
        try:
            yield there
        finally:
            for gateway in there.gateways:
                gateway.http.close()
