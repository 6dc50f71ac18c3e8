"""`_kernels.pyi` says what native/module.cpp defines: the names, and those of the parameters with their defaults."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import shoal.native
from shoal.native import kernels

STUB = ast.parse((Path(shoal.native.__file__).parent / "_kernels.pyi").read_text())
MODULE = kernels()


def described(function: ast.FunctionDef) -> list[str]:
    """'name' or 'name=default' of each parameter."""
    told = function.args
    given = [None] * (len(told.args) - len(told.defaults)) + [*told.defaults, *told.kw_defaults]
    written = ["" if default is None else f"={ast.literal_eval(default)!r}" for default in given]
    return [
        argument.arg + default for argument, default in zip([*told.args, *told.kwonlyargs], written, strict=True) if argument.arg != "self"
    ]


def compiled(function: object) -> list[str]:
    """The same of a function of the extension, from the signature that nanobind gives it: types in brackets, defaults by number."""
    signature, _, defaults = function.__nb_signature__[0]  # pyright: ignore[reportAttributeAccessIssue]
    while "[" in signature:
        signature = re.sub(r"\[[^\[\]]*\]", "", signature)
    found = re.findall(r"(\w+): [^,)=]+(?:= \\(\d+))?", signature)
    return [name + (f"={defaults[int(number)]!r}" if number else "") for name, number in found]


@pytest.mark.skipif(MODULE is None, reason="the kernels are not compiled")
def test_the_stub_says_what_the_extension_has() -> None:
    assert MODULE is not None
    top = {node.name: node for node in STUB.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    constants = {node.target.id for node in STUB.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}
    assert top.keys() | constants == {name for name in vars(MODULE) if not name.startswith("__")}
    for name, node in top.items():
        found = getattr(MODULE, name)
        if isinstance(node, ast.FunctionDef):
            assert compiled(found) == described(node), name
            continue
        members = {member.name: member for member in node.body if isinstance(member, ast.FunctionDef)}
        assert members.keys() - {"__init__"} == {member for member in vars(found) if not member.startswith("__")}, name
        for member, function in members.items():
            if not function.decorator_list:
                assert compiled(getattr(found, member)) == described(function), f"{name}.{member}"
