"""A wheel, built as a release is, runs in an environment of its own in which there is no compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from zipfile import ZipFile

import numpy
import pytest

from shoal.gateway.endpoints import console
from tests.support.constraints import FILE

pytestmark = [pytest.mark.slow, pytest.mark.real]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("c++") is None:
        pytest.skip("there is no compiler")
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "wheel", "--no-deps", "--build-constraint", str(FILE)]
    environment = {**os.environ, "SHOAL_REQUIRE_KERNELS": "1"}
    done = subprocess.run(
        [*pip, f"--config-settings=build-dir={folder / 'build'}", "--wheel-dir", str(folder), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a shell with nothing on its path but the wheel's `shoal`. What shoal depends on is this environment's own."""
    home = tmp_path_factory.mktemp("home")
    python = home / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home / "venv")], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", str(wheel)], check=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(home / "venv"), "platbase": str(home / "venv")}))
    (site / "dependencies.pth").write_text(str(Path(numpy.__file__).parents[1]))
    kept = {name: value for name, value in os.environ.items() if name in ("HOME", "SHOAL_CACHE", "SHOAL_HOME")}
    return {**kept, "PATH": str(python.parent), "COLUMNS": "200"}


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which(arguments[0], path=environment["PATH"])
    assert program is not None
    done = subprocess.run(
        [program, *arguments[1:]], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=environment, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    return done


def test_its_name_says_what_it_runs_on(wheel: Path) -> None:
    python, abi, platform = wheel.stem.split("-")[2:]
    if sys.version_info >= (3, 12):
        assert (python, abi) == ("cp312", "abi3")
    else:
        assert python == abi == f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert platform != "any"


@pytest.mark.skipif(not console.built(), reason="`make console` builds it")
def test_it_has_the_console(wheel: Path) -> None:
    with ZipFile(wheel) as packed:
        names = {name.removeprefix("shoal/console/") for name in packed.namelist() if name.startswith("shoal/console/")}
    assert names == console.console_files().keys()


def test_it_is_the_wheel_that_runs_and_has_kernels(installed: dict[str, str]) -> None:
    asked = "import shoal, shoal.native; print(shoal.__file__); print(shoal.native.instruction_set())"
    where, instructions = run(installed, "python", "-c", asked).stdout.split()
    assert where.startswith(installed["PATH"].removesuffix("/bin"))
    assert instructions != "None"


def test_it_answers_a_question(installed: dict[str, str]) -> None:
    assert run(installed, "shoal", "--version").stdout.startswith("shoal ")
    done = run(installed, "shoal", "run", "Say hello.", "--nodes", "1", "--max-tokens", "4", "--url", "")
    assert done.stdout.strip() and "slow" not in done.stderr
