"""No class of the package has the name of another one, but for messages, which are known by the room they belong to."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import shoal

ROOT = Path(shoal.__file__).parent
MESSAGES = {"control/messages.py", "gateway/workers/messages.py"}
DIALECTS = ("wire.py", "answer.py")
"""Bodies and answers of an API have the names that its documentation gives them."""
SAME = {"ComputeParts", "ExpertReads", "ModelFile"}
"""What is meant is the same thing, here and on the wire."""
TERMS = {"Grant", "Holder", "Lease"}
"""The words of the literature for the lease by which heads lead; elsewhere they mean something else."""


def is_message(path: str) -> bool:
    return path in MESSAGES or (path.startswith("gateway/endpoints/") and path.endswith(DIALECTS))


def test_no_class_has_the_name_of_another_one():
    places: dict[str, list[str]] = defaultdict(list)
    for path in ROOT.rglob("*.py"):
        if not path.stem.startswith("cluster_pb2"):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places[node.name].append(path.relative_to(ROOT).as_posix())
    assert len(places) > 300
    twice = {name: found for name, found in places.items() if len(found) > 1 and name not in SAME | TERMS}
    assert not {name: found for name, found in twice.items() if not all(map(is_message, found))}
