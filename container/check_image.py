"""Follows the Dockerfile without Docker: in folders made by debootstrap, as root. Then runs what compose.yaml says, and asks it something.

    python container/check_image.py WORK [--bind PATH]... [--model FOLDER] [--again]

WORK      an empty folder; WORK/base is used as it is where it is there (debootstrap --variant=minbase bookworm WORK/base).
--bind    a file or folder of this machine that the builds are to see as well, read-only, such as a pip.conf. A certificate authority that
          only this machine knows goes into WORK/base/usr/local/share/ca-certificates instead: the packages' own tools then take it in.
--model   a folder of a model in the cache, which the head is given so that it fetches nothing.

Understood are FROM, RUN, COPY, WORKDIR, ENV, USER and the last stage's ENTRYPOINT, HEALTHCHECK and VOLUME; of compose.yaml command, mem_limit, read_only.
The three containers share a network of their own, in which `head` is the loopback: what differs between networks is not tried here.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Stage:
    root: Path
    user: str = "root"
    folder: str = "/"
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"})
    entrypoint: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    volume: str = ""

    def chroot(self, command: list[str]) -> list[str]:
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        inside = ["env", "--ignore-environment", f"--chdir={self.folder}", *variables, f"HOME={self._home}", *command]
        return ["chroot", f"--userspec={self.user}:{self.user}", str(self.root), *inside]

    @property
    def _home(self) -> str:
        users = dict(line.split(":", 1) for line in (self.root / "etc/passwd").read_text().splitlines())
        return users[self.user].split(":")[4]


def say(text: str) -> None:
    print(text, flush=True)


def instructions(text: str) -> Iterator[tuple[str, str]]:
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    for line in lines.splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            yield name.upper(), rest.strip()


def size(folder: Path) -> str:
    """Without what apt keeps, which the images that Docker has of Debian do not."""
    blocks = subprocess.run(
        ["du", "-sk", "--one-file-system", "--exclude=var/cache/apt", "--exclude=var/lib/apt", str(folder)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()[0]
    return f"{int(blocks) / 1024:.0f} MiB"


@contextlib.contextmanager
def mounted(root: Path, binds: list[Path]) -> Iterator[None]:
    """What a build sees of this machine: its devices and processes, how it resolves names, and what --bind names."""
    done: list[Path] = []
    try:
        for source in [Path("/proc"), Path("/dev"), Path("/etc/resolv.conf"), *binds]:
            target = root / source.relative_to("/")
            if source.is_dir():
                target.mkdir(parents=True, exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.touch()
            subprocess.run(["mount", "--bind", str(source.resolve()), str(target)], check=True)
            done.append(target)
            # Read-only: what a package does to its own system, it is not to do to this one.
            subprocess.run(["mount", "-o", "remount,bind,ro", str(target)], check=True)
        yield
    finally:
        for target in reversed(done):
            subprocess.run(["umount", "--lazy", str(target)], check=True)


def copied(stage: Stage, rest: str, stages: dict[str, Stage]) -> None:
    words = shlex.split(rest)
    source = ROOT
    if words[0].startswith("--from="):
        source = stages[words.pop(0).removeprefix("--from=")].root
    *froms, to = words
    ignored = [line.strip() for line in (ROOT / ".dockerignore").read_text().splitlines() if line.strip() and line[0] != "!"]
    for name in froms:
        origin, target = source / name.lstrip("/"), stage.root / to.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if origin.is_dir():
            ignore = shutil.ignore_patterns(*(pattern.removeprefix("**/") for pattern in ignored)) if source == ROOT else None
            shutil.copytree(origin, target, symlinks=True, dirs_exist_ok=True, ignore=ignore)
        else:
            shutil.copy2(origin, target)


def build(work: Path, binds: list[Path], again: bool) -> Stage:
    """again: of what an earlier build left in WORK."""
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for name, rest in instructions((ROOT / "Dockerfile").read_text()):
        say(f"{name} {rest}")
        if name == "FROM":
            label = rest.partition(" AS ")[2] or "image"
            root = work / label
            if not again:
                shutil.rmtree(root, ignore_errors=True)
                subprocess.run(["cp", "--archive", str(work / "base"), str(root)], check=True)
            stage = stages[label] = Stage(root)
            continue
        assert stage is not None, "FROM comes first"
        match name:
            case "RUN" | "COPY" if again:
                pass
            case "RUN":
                with mounted(stage.root, binds):
                    subprocess.run(stage.chroot(["sh", "-ec", rest]), check=True, stdin=subprocess.DEVNULL)
            case "COPY":
                copied(stage, rest, stages)
            case "WORKDIR":
                stage.folder = rest
                (stage.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "ENV":
                stage.environment.update(word.split("=", 1) for word in shlex.split(rest))
            case "USER":
                stage.user = rest
            case "VOLUME":
                stage.volume = rest
            case "ENTRYPOINT":
                stage.entrypoint = json.loads(rest)
            case "HEALTHCHECK":
                stage.health = json.loads(rest[rest.index("CMD ") + 4 :])
            case "EXPOSE" | "STOPSIGNAL" | "CMD":
                pass
            case _:
                sys.exit(f"{name}: not understood")
    assert stage is not None
    return stage


class Container:
    """One service of compose.yaml, with its own processes, volume and /tmp."""

    def __init__(self, name: str, service: dict[str, Any], image: Stage, work: Path) -> None:
        self.name, self._image = name, image
        self.volume = work / "volumes" / name
        shutil.rmtree(self.volume, ignore_errors=True)
        shutil.copytree(image.root / image.volume.lstrip("/"), self.volume)
        identity = subprocess.run(["chroot", str(image.root), "id", "-u", image.user], capture_output=True, text=True, check=True)
        self._uid = int(identity.stdout)
        self._log = (work / f"{name}.log").open("w+b")
        root = shlex.quote(str(image.root))
        steps = [
            *([f"mount --bind {root} {root}", f"mount -o remount,bind,ro {root}"] if service.get("read_only") else []),
            f"mount --bind {shlex.quote(str(self.volume))} {root}{image.volume}",
            f"mount -t tmpfs tmpfs {root}/tmp",
            f"mount -t proc proc {root}/proc",
            f"mount --rbind /dev {root}/dev",
            "exec " + shlex.join(image.chroot([*image.entrypoint, *service["command"]])),
        ]
        self._command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", "; ".join(steps)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, network: list[str]) -> None:
        for path in [self.volume, *self.volume.rglob("*")]:
            os.chown(path, self._uid, self._uid, follow_symlinks=False)
        self._process = subprocess.Popen([*network, *self._command], stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT)

    @property
    def inner(self) -> int | None:
        """The process that is number 1 inside, once it is there."""
        assert self._process is not None
        parent = self._process.pid
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            return next((int(child) for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()), None)
        return None

    def healthy(self) -> bool:
        if self.inner is None:
            return False
        inside = ["nsenter", "--target", str(self.inner), "--mount", "--pid", "--net", "--", *self._image.chroot(self._image.health)]
        return subprocess.run(inside, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0

    def running_as(self) -> str:
        status = Path(f"/proc/{self.inner}/status").read_text()
        return re.findall(r"^Uid:\s+(\d+)", status, re.M)[0]

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def stop(self) -> float:
        """As `docker stop` does; seconds until it had ended."""
        assert self._process is not None
        began = time.monotonic()
        if (inner := self.inner) is not None:
            os.kill(inner, signal.SIGTERM)
        self._process.wait()
        return time.monotonic() - began


def run(image: Stage, work: Path, model: Path | None) -> None:
    import yaml

    services: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    (image.root / "etc/hosts").write_text("127.0.0.1 localhost head\n")
    containers = {name: Container(name, service, image, work) for name, service in services.items()}
    if model is not None:
        shutil.copytree(model, containers["head"].volume / "cache" / "models" / model.name)
    namespace = f"shoal-check-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", namespace], check=True)
    network = ["ip", "netns", "exec", namespace]
    started: list[Container] = []
    try:
        subprocess.run([*network, "ip", "link", "set", "lo", "up"], check=True)
        for name, container in containers.items():
            say(f"starting {name}: {shlex.join([*image.entrypoint, *services[name]['command']])}")
            container.start(network)
            started.append(container)
        head = containers["head"]
        while not head.healthy():
            if failed := [c for c in started if c._process is not None and c._process.poll() is not None]:
                sys.exit("\n".join(f"{c.name} ended:\n{c.log()}" for c in failed))
            time.sleep(1)
        say(f"healthy; users inside: {', '.join(f'{c.name} {c.running_as()}' for c in started)}")
        body = json.dumps({"messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 16, "temperature": 0})
        asked = ["curl", "--silent", "--fail", "http://127.0.0.1:8000/v1/chat/completions", "--data", body]
        answer = json.loads(subprocess.run([*network, *asked], capture_output=True, text=True, check=True).stdout)
        say(f"answer: {answer['choices'][0]['message']['content']!r}")
    except BaseException:
        for container in started:
            say(f"--- {container.name}\n{container.log()}")
        raise
    finally:
        for container in reversed(started):
            say(f"{container.name} ended {container.stop():.1f} s after SIGTERM")
        subprocess.run(["ip", "netns", "delete", namespace], check=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--bind", type=Path, action="append", default=[])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--again", action="store_true", help="run the image that is in WORK, without building it")
    given = parser.parse_args()
    work: Path = given.work.resolve()
    if not (work / "base").exists():
        subprocess.run(["debootstrap", "--variant=minbase", "bookworm", str(work / "base")], check=True)
    image = build(work, given.bind, given.again)
    say(f"image {size(image.root)}: the base {size(work / 'base')}, /opt/shoal {size(image.root / 'opt/shoal')}")
    run(image, work, given.model)


if __name__ == "__main__":
    main()
