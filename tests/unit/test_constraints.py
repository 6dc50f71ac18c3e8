"""What `make run` and `make test` install is pinned, all of it, by a file that names no package index."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.constraints import FILE, pinned, pins

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def required(project: dict[str, Any]) -> list[Requirement]:
    """Everything that pyproject.toml asks for, by whichever list."""
    lists = [
        project["build-system"]["requires"],
        project["project"]["dependencies"],
        *project["project"]["optional-dependencies"].values(),
        *project["dependency-groups"].values(),
    ]
    return [Requirement(line) for named in lists for line in named]


def test_everything_that_is_asked_for_is_pinned_within_its_bounds(project: dict[str, Any]) -> None:
    known: dict[str, list[Requirement]] = {}
    for pin in pins():
        assert re.fullmatch(r"==[^,*]+", str(pin.specifier)), f"{pin} is no pin"
        known.setdefault(canonicalize_name(pin.name), []).append(pin)
    for wanted in required(project):
        found = known.get(canonicalize_name(wanted.name))
        assert found, f"{wanted.name} is not pinned: make constraints"
        for pin in found:
            version = str(pin.specifier).removeprefix("==")
            assert wanted.specifier.contains(version), f"{pin} is outside of {wanted}: make constraints"


def test_the_file_names_no_index_and_no_place() -> None:
    assert not re.search(r"://|--index|--find-links|--trusted-host| @ ", FILE.read_text())


def test_a_next_major_version_of_what_runs_is_not_taken_unseen(project: dict[str, Any]) -> None:
    counted_otherwise = {"cryptography", "structlog", "pip"}
    for line in project["project"]["dependencies"]:
        wanted = Requirement(line)
        bounded = any(bound.operator == "<" for bound in wanted.specifier)
        assert bounded or wanted.name in counted_otherwise, f"{line} has no upper bound"


def needed(wanted: list[Requirement], known: dict[str, str]) -> set[str]:
    """The packages that these requirements bring on this machine, their own included. Each must be pinned."""
    names, seen, left = set[str](), set[str](), [w for w in wanted if w.name != "torch"]  # whose build for GPUs asks for more
    while left:
        wanted_here = left.pop()
        name = canonicalize_name(wanted_here.name)
        extras = ["", *wanted_here.extras]
        if str(wanted_here) in seen or not (wanted_here.marker is None or wanted_here.marker.evaluate()):
            continue
        seen.add(str(wanted_here))
        names.add(name)
        assert name in known, f"{wanted_here} is not pinned: make constraints"
        try:
            asked = [Requirement(line) for line in requires(name) or ()]
        except PackageNotFoundError:  # of a group that only builds
            continue
        left += [a for a in asked if a.name != "torch" and (a.marker is None or any(a.marker.evaluate({"extra": e}) for e in extras))]
        for further in left:
            further.marker = None  # it was evaluated, with the extra that asked for it
    return names


def test_dependencies_of_dependencies_are_pinned_too(project: dict[str, Any]) -> None:
    assert len(needed(required(project), pinned())) > 100


def test_what_runs_has_one_http_client_of_its_own_and_no_redis(project: dict[str, Any]) -> None:
    """requests comes with gguf, for a reader of remote files that shoal does not use."""
    running = needed([Requirement(line) for line in project["project"]["dependencies"]], pinned())
    assert "httpx2" in running
    assert not running & {"httpx", "httpcore", "aiohttp", "redis"}


@pytest.mark.parametrize("target", ["run", "test"])
def test_the_commands_of_the_readme_install_by_the_file(target: str, tmp_path: Path) -> None:
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "MFLAGS"}
    command = ["make", "-n", f"VENV={tmp_path / 'venv'}", target]
    asked = subprocess.run(command, cwd=ROOT, env=outside, capture_output=True, text=True, check=True)
    installs = [line for line in asked.stdout.splitlines() if re.search(r"-m pip .*install", line)]
    assert installs
    for line in installs:
        assert "--constraint constraints.txt" in line
        assert "--editable" not in line or "--build-constraint constraints.txt" in line
