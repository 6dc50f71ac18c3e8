"""The kernels on processors that this machine may not have: compiled for them, and run under an emulator."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from shoal.native import instruction_set, kernels
from tests.support.kernel_parts import ISAS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
ARM_COMPILER = "aarch64-linux-gnu-g++"


def needs(*programs: str) -> pytest.MarkDecorator:
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)} (make aarch64 installs what ARM needs)")


def built(folder: Path, *definitions: str) -> str:
    """The check program."""
    cmake = [shutil.which("cmake") or "cmake", "-S", str(ROOT), "-B", str(folder), "-DSHOAL_CHECK=ON", "-DCMAKE_BUILD_TYPE=Release"]
    for command in ([*cmake, *definitions], [cmake[0], "--build", str(folder)]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return str(folder / "check_kernels")


@pytest.fixture(scope="module")
def for_arm(tmp_path_factory: pytest.TempPathFactory) -> str:
    system = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64")
    compiler = (f"-DCMAKE_CXX_COMPILER={ARM_COMPILER}", "-DCMAKE_EXE_LINKER_FLAGS=-static")
    return built(tmp_path_factory.mktemp("arm"), *system, *compiler)


@pytest.fixture(scope="module")
def for_here(tmp_path_factory: pytest.TempPathFactory) -> str:
    return built(tmp_path_factory.mktemp("here"))


def best(command: list[str], *sets: str) -> str:
    """The set that is chosen by itself, after the sets were found right."""
    done = subprocess.run([*command, *sets], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *checked, last = done.stdout.splitlines()
    assert checked == [f"{name}: checked" for name in sets]
    return last.removeprefix("best: ")


@needs("cmake", ARM_COMPILER, "qemu-aarch64")
@pytest.mark.parametrize(
    ("processor", "sets"),
    [
        ("cortex-a53", ["portable"]),
        ("cortex-a76", ["portable", "dotprod"]),
        ("max", ["portable", "dotprod", "i8mm"]),
    ],
)
def test_arm(for_arm: str, processor: str, sets: list[str]) -> None:
    assert best(["qemu-aarch64", "-cpu", processor, for_arm], *sets) == sets[-1]


@needs("cmake", ARM_COMPILER, "qemu-aarch64")
@pytest.mark.parametrize(("processor", "lacking"), [("cortex-a53", "dotprod"), ("cortex-a76", "i8mm")])
def test_what_a_processor_lacks_is_not_run(for_arm: str, processor: str, lacking: str) -> None:
    done = subprocess.run(["qemu-aarch64", "-cpu", processor, for_arm, lacking], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "this processor lacks it" in done.stderr


@needs("cmake", "qemu-x86_64")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="compiled for this machine, which is no x86-64")
@pytest.mark.parametrize(("processor", "chosen"), [("Nehalem", "portable"), ("Haswell", "avx2")])
def test_an_older_x86(for_here: str, processor: str, chosen: str) -> None:
    assert best(["qemu-x86_64", "-cpu", processor, for_here], "portable") == chosen


@needs("cmake")
@pytest.mark.skipif(kernels() is None, reason="the kernels are not compiled")
def test_this_machine(for_here: str) -> None:
    own = str(instruction_set())
    assert best([for_here], *{"portable", own}) == own


@needs("cmake")
@pytest.mark.skipif("avx512" not in ISAS, reason="this machine has no AVX-512")
def test_avx_vnni_as_avx512_encodes_it(for_here: str) -> None:
    """The same instructions in another encoding: for machines that do not have AVX-VNNI itself."""
    best([for_here], "avxvnni_evex")
