"""The folder of the families: each has a file, nothing else names one, and README's table lists them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import shoal
from shoal.models import families
from shoal.models.families import FAMILIES

ROOT = Path(shoal.__file__).parent
FOLDER = Path(families.__file__).parent
SHARED = {
    "__init__",
    "biased_routing",
    "config",
    "family",
    "layer_count",
    "metadata",
    "read",
    "size",
    "sparse_layers",
    "tensor_names",
    "windows",
}
README = (Path(__file__).parents[4] / "README.md").read_text()


def test_each_family_has_a_file() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} - SHARED == set(FAMILIES)


def test_the_readme_lists_them() -> None:
    listed = re.search(r"^\| families \| (.*) \|$", README, re.MULTILINE)
    assert listed is not None
    assert listed[1].split(", ") == [family.title for family in FAMILIES.values()]


@pytest.mark.parametrize("room", ["models", "executor", "placement", "node", "membership", "launch"])
def test_nothing_else_names_one(room: str) -> None:
    """As a whole string: what a name is compared with."""
    files = [path for path in (ROOT / room).rglob("*.py") if FOLDER not in path.parents]
    assert files
    for path in files:
        strings = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert not strings & FAMILIES.keys(), path
