"""What the Dockerfile, compose.yaml and the workflow say agrees with the product."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.version import Version

from shoal.config import ApiSettings, HeadSettings

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())


def test_the_image_has_no_compiler_and_no_root() -> None:
    last = DOCKERFILE.rpartition("\nFROM ")[2]
    assert "g++" not in last and "python3-dev" not in last
    assert re.search(r"^USER shoal$", last, re.M) and not re.search(r"^USER root", last, re.M)
    assert f"EXPOSE {ApiSettings.port} {HeadSettings.control_port} {HeadSettings.control_port + 1}" in last


def test_each_container_runs_a_command_that_there_is_within_its_limits() -> None:
    services = COMPOSE["services"]
    assert len(services) == 3
    for service in services.values():
        assert service["command"][0] in ("serve", "join")
        assert service["mem_limit"] and service["cap_drop"] == ["ALL"] and service["read_only"]
        assert service["volumes"][0].endswith(":/var/lib/shoal")


def test_what_is_unprotected_is_reached_by_these_containers_alone() -> None:
    head = COMPOSE["services"]["head"]
    assert "--unprotected" in head["command"] and COMPOSE["networks"]["cluster"]["internal"]
    assert all(port.startswith("127.0.0.1:") for port in head["ports"])
    assert all(s["networks"] == ["cluster"] for name, s in COMPOSE["services"].items() if name != "head")


def test_a_head_has_time_for_its_grace() -> None:
    assert int(COMPOSE["services"]["head"]["stop_grace_period"].removesuffix("s")) > ApiSettings.grace


def test_wheels_are_built_for_the_oldest_python_and_from_the_stable_abi_on() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    builds = [build.removesuffix("-*") for build in project["tool"]["cibuildwheel"]["build"]]
    assert builds[-1] == project["tool"]["scikit-build"]["wheel"]["py-api"]
    oldest = Version(project["project"]["requires-python"].removeprefix(">="))
    assert builds[0] == f"cp{oldest.major}{oldest.minor}"
    for system in ("", "linux", "macos", "windows"):
        table = project["tool"]["cibuildwheel"].get(system, {}) if system else project["tool"]["cibuildwheel"]
        assert table.get("environment", {}).get("SHOAL_REQUIRE_KERNELS", "1") == "1"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/1/cmdline").exists(), reason="asks /proc")
def test_the_health_check_leaves_what_is_no_head_alone() -> None:
    assert subprocess.run([sys.executable, str(ROOT / "container" / "health.py")], check=False).returncode == 0


def test_the_entry_point_is_the_command() -> None:
    found = re.search(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.M)
    assert found is not None and json.loads(found[1]) == ["shoal"]
