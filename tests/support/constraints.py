"""What constraints.txt pins. As a command: where the packages of this environment differ from it."""

from __future__ import annotations

from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FILE = Path(__file__).parents[2] / "constraints.txt"


def pins() -> list[Requirement]:
    """One for each version: a package may have several, for different Pythons or systems."""
    lines = FILE.read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def pinned() -> dict[str, str]:
    """Version by canonical name, on this machine."""
    here = [pin for pin in pins() if pin.marker is None or pin.marker.evaluate()]
    return {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in here}


def installed() -> dict[str, str]:
    """Version by canonical name, without what was added to it locally (torch's `+cpu`)."""
    return {canonicalize_name(found.name): found.version.partition("+")[0] for found in distributions()}


if __name__ == "__main__":
    pins_here = pinned()
    for name, version in sorted(installed().items()):
        if (known := pins_here.get(name)) != version and name not in ("shoal", "setuptools"):
            print(f"{name}: {version}, not {known}")
