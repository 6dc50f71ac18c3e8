"""A Python that has shoal and what it needs, but not some packages, or not the kernels: a machine that lacks them."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import shoal

SOURCE = Path(shoal.__file__).parent


def python_without(folder: Path, packages: Sequence[str], kernels: bool = True) -> Path:
    """The interpreter of a virtual environment whose packages are links to this one's, except for those named."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--symlinks", str(folder)], check=True)
    links = next(folder.glob("lib/python*/site-packages"))
    for name in sys.path:
        place = Path(name)
        if place.name in ("site-packages", "dist-packages") and place.is_dir():
            for entry in place.iterdir():
                if (
                    entry.name not in packages
                    and entry.suffix != ".pth"
                    and not (links / entry.name).exists()
                    and "shoal" not in entry.name
                ):
                    (links / entry.name).symlink_to(entry)
    shutil.copytree(SOURCE, links / "shoal", ignore=shutil.ignore_patterns("_kernels*"))
    if kernels:
        spec = importlib.util.find_spec("shoal.native._kernels")
        assert spec is not None and spec.origin is not None
        (links / "shoal" / "native" / Path(spec.origin).name).symlink_to(spec.origin)
    return folder / "bin" / "python"
