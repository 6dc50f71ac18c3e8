"""Models of the catalogue, from packages that are made here."""

from __future__ import annotations

import errno
import hashlib
import io
import sys
import tarfile
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.errors import FetchError, HashMismatch
from shoal.models import catalogue as catalogue_file
from shoal.models import inventory, packages, reference, sources
from shoal.models.catalogue import CatalogueEntry, CataloguePart
from shoal.models.inventory import pulled
from shoal.models.progress import silent
from shoal.models.removal import removal
from shoal.models.sources import find, pull


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def zipped(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def tarred(**members: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


class Registry:
    """Answers for pip and npm from memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.packages: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.fail: BaseException | None = None
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(packages, "_run_client", self._run)

    def _run(self, command: list[str], part: CataloguePart, progress: Any, scratch: Path) -> None:
        self.asked.append(part.package)
        if self.fail is not None:
            raise self.fail
        flag = "--dest" if part.registry == "pypi" else "--pack-destination"
        content = self.packages[part.package]
        progress(len(content) // 2)
        (Path(command[command.index(flag) + 1]) / "package").write_bytes(content)

    def offer(self, content: bytes, *parts: CataloguePart) -> None:
        """Makes 'toy' the only model of the catalogue."""
        entry = CatalogueEntry("A toy", "toy.gguf", sha(content), len(content), ("org/toy",), parts)
        for module in (sources, reference, inventory, catalogue_file):
            self._monkeypatch.setattr(module, "catalogue", lambda: {"toy": entry})

    def part(self, package: str, content: bytes, registry: Any = "pypi", member: str = "m", **changes: Any) -> CataloguePart:
        self.packages[package] = content
        return CataloguePart(
            **{
                "registry": registry,
                "package": package,
                "version": "1",
                "sha256": sha(content),
                "size": len(content),
                "member": member,
                **changes,
            }
        )


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    return Registry(monkeypatch)


def test_parts_are_joined_in_their_order(registry: Registry, tmp_path: Path) -> None:
    parts = [registry.part("one", zipped(m=b"hello ")), registry.part("two", tarred(m=b"world"), "npm")]
    registry.offer(b"hello world", *parts)
    seen: list[tuple[int, int]] = []
    path = pull("toy", lambda *at: seen.append(at), tmp_path)
    assert path.read_bytes() == b"hello world"
    total = sum(part.size for part in parts)
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)
    assert sorted(f.name for f in path.parent.iterdir()) == [".lock", "toy.gguf"]
    assert pulled(tmp_path) == {"toy": path}


def test_what_is_there_is_not_fetched_again(registry: Registry, tmp_path: Path) -> None:
    registry.offer(b"x", registry.part("one", zipped(m=b"x")))
    assert pull("toy", directory=tmp_path) == pull("toy", directory=tmp_path) == find("toy", tmp_path)
    assert registry.asked == ["one"]


def test_a_fetch_that_broke_off_goes_on(registry: Registry, tmp_path: Path) -> None:
    registry.offer(b"xy", registry.part("one", zipped(m=b"x")), registry.part("two", zipped(m=b"y")))
    del registry.packages["two"]
    with pytest.raises(KeyError):
        pull("toy", directory=tmp_path)
    registry.packages["two"] = zipped(m=b"y")
    assert pull("toy", directory=tmp_path).read_bytes() == b"xy"
    assert registry.asked == ["one", "two", "two"]


def test_a_package_with_another_hash(registry: Registry, tmp_path: Path) -> None:
    registry.offer(b"x", registry.part("one", zipped(m=b"x"), sha256="0" * 64))
    with pytest.raises(HashMismatch, match="expected 0000"):
        pull("toy", directory=tmp_path)
    assert not list((tmp_path / "models" / "toy" / "parts").iterdir())


def test_a_joined_file_with_another_hash(registry: Registry, tmp_path: Path) -> None:
    registry.offer(b"other", registry.part("one", zipped(m=b"x")))
    with pytest.raises(HashMismatch):
        pull("toy", directory=tmp_path)
    assert find("toy", tmp_path) is None
    assert not list((tmp_path / "models" / "toy").glob("*.joining"))


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", zipped(other=b"x"), zipped(m=b"x" * 999)[:60]], ids=["empty", "begun", "of something else", "cut"]
)
@pytest.mark.parametrize("kind", ["pypi", "npm"])
def test_packages_that_are_broken(kind: str, content: bytes, registry: Registry, tmp_path: Path) -> None:
    registry.offer(b"x", registry.part("one", content, kind))
    with pytest.raises(FetchError, match="does not hold m"):
        pull("toy", directory=tmp_path)


def test_of_all_that_a_client_says_the_reason_is_told(tmp_path: Path) -> None:
    """As npm says it: what is wrong comes first, then advice, then where its log lies."""
    said = [
        "npm error code ECONNREFUSED",
        "npm error FetchError: request failed, reason: connect ECONNREFUSED",
        "npm error If you are behind",
    ]
    said += ["npm error a proxy, see 'npm help config'"] * 6 + ["npm error A complete log of this run can be found in: /tmp/x.log"]
    client = [sys.executable, "-c", f"import sys; print({chr(10).join(said)!r}); sys.exit(1)"]
    with pytest.raises(FetchError, match=r"could not be fetched: .*reason: connect ECONNREFUSED; check the network"):
        packages._run_client(client, _part("npm"), lambda _: None, tmp_path)


def test_the_disk_is_too_small(registry: Registry, tmp_path: Path) -> None:
    registry.offer(b"x", registry.part("one", zipped(m=b"x"), size=2**60))
    with pytest.raises(FetchError, match="the disk is full: toy needs"):
        pull("toy", directory=tmp_path)
    assert registry.asked == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_the_disk_fills_up(number: int, registry: Registry, tmp_path: Path) -> None:
    registry.offer(b"x", registry.part("one", zipped(m=b"x")))
    registry.fail = OSError(number, "full")
    with pytest.raises(FetchError, match=r"the disk is full.*SHOAL_CACHE"):
        pull("toy", directory=tmp_path)


def test_a_cache_that_cannot_be_written(registry: Registry, tmp_path: Path) -> None:
    registry.offer(b"x", registry.part("one", zipped(m=b"x")))
    (tmp_path / "models").touch()
    with pytest.raises(FetchError, match=r"toy cannot be kept: .*set SHOAL_CACHE"):
        pull("toy", directory=tmp_path)


def test_two_at_once_fetch_once(registry: Registry, tmp_path: Path) -> None:
    registry.offer(b"x", registry.part("one", zipped(m=b"x")))
    threads = [threading.Thread(target=pull, args=("toy", silent, tmp_path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert registry.asked == ["one"]


def test_removing(registry: Registry, tmp_path: Path) -> None:
    registry.offer(b"x", registry.part("one", zipped(m=b"x")))
    pull("toy", directory=tmp_path)
    found = removal("toy", tmp_path)
    assert found is not None and found.bytes == 1
    found.carry_out()
    assert pulled(tmp_path) == {}
    assert removal("toy", tmp_path) is None


def _part(registry: Any = "pypi") -> CataloguePart:
    return CataloguePart(registry, "one", "1", "", 0, "m")


@pytest.mark.slow
def test_what_a_client_says_goes_into_the_error(tmp_path: Path) -> None:
    script = "print('Progress 5 of 10'); print('ERROR: no such thing'); raise SystemExit(1)"
    seen: list[int] = []
    with pytest.raises(FetchError, match="no such thing"):
        packages._run_client([sys.executable, "-c", script], _part(), seen.append, tmp_path)
    assert seen == [5]


@pytest.mark.slow
def test_a_client_without_room(tmp_path: Path) -> None:
    script = "print('OSError: [Errno 28] No space left on device'); raise SystemExit(2)"
    with pytest.raises(OSError, match="No space left"):
        packages._run_client([sys.executable, "-c", script], _part(), lambda _: None, tmp_path)


def test_a_client_that_is_not_installed(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="not installed"):
        packages._run_client(["no-such-client"], _part("npm"), lambda _: None, tmp_path)


# A hub.


def test_a_kept_package_that_is_damaged_is_fetched_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    registry = Registry(monkeypatch)
    part = registry.part("one", zipped(m=b"x"))
    registry.offer(b"x", part)
    parts = tmp_path / "models" / "toy" / "parts"
    parts.mkdir(parents=True)
    (parts / f"{part.sha256}.package").write_bytes(b"PK half")
    assert pull("toy", directory=tmp_path).read_bytes() == b"x"


def test_an_archive_cut_in_its_member(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    registry = Registry(monkeypatch)
    content = np.random.default_rng(0).bytes(200_000)
    registry.offer(content, registry.part("one", tarred(m=content)[:100_000], "npm"))
    with pytest.raises(FetchError):
        pull("toy", directory=tmp_path)


def test_an_archive_damaged_in_its_member(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    registry = Registry(monkeypatch)
    whole = bytearray(zipped(m=b"hello " * 1000))
    whole[33:40] = b"\xff" * 7
    registry.offer(b"hello " * 1000, registry.part("one", bytes(whole)))
    with pytest.raises(FetchError):
        pull("toy", directory=tmp_path)


def test_the_clients_output_is_closed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Any] = []
    popen = packages.subprocess.Popen

    def watched(*args: Any, **options: Any) -> Any:
        seen.append(popen(*args, **options))
        return seen[0]

    monkeypatch.setattr(packages.subprocess, "Popen", watched)
    packages._run_client([sys.executable, "-c", ""], _part(), lambda _: None, tmp_path)
    assert seen[0].stdout.closed
