"""What the console's sources say of the operator's API is what the API has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shoal.gateway.endpoints.operator.wire import KeyView, Me
from shoal.observed import cluster, event, history, models, requests

SOURCES = Path(__file__).parents[3] / "console" / "src"
TYPES = (SOURCES / "api" / "types.ts").read_text()
TUPLES = {"HopSpan"}
STRUCTS = {
    each.__name__: each
    for module in (cluster, event, history, models, requests)
    for each in vars(module).values()
    if isinstance(each, type) and issubclass(each, msgspec.Struct) and each is not msgspec.Struct and each.__name__ != "NodeAction"
} | {"Me": Me, "KeyView": KeyView}


@pytest.mark.parametrize("name", sorted(STRUCTS.keys() - TUPLES))
def test_an_interface_has_the_structs_fields(name: str) -> None:
    found = re.search(rf"export interface {name} {{\n(.*?)\n}}", TYPES, re.DOTALL)
    assert found is not None, f"types.ts has no {name}"
    assert re.findall(r"^  (\w+):", found[1], re.MULTILINE) == [field.name for field in msgspec.structs.fields(STRUCTS[name])]


def test_a_hop_has_its_parts_in_order() -> None:
    names = [field.name for field in msgspec.structs.fields(requests.HopSpan)]
    assert f"/** {', '.join(names)} */\nexport type HopSpan = [{', '.join(['number'] * len(names))}];" in TYPES


@pytest.mark.parametrize(
    ("name", "kinds"), [("KINDS", [*event.EventKind]), ("WARNINGS", [k for k in event.EventKind if k in event.WARNINGS])]
)
def test_kinds_of_events_are_those_of_the_head(name: str, kinds: list[Any]) -> None:
    text = (SOURCES / "events" / "kinds.ts").read_text()
    found = re.search(rf"export const {name}\b[^[]*\[(.*?)\]", text.replace("ReadonlySet<string>", ""), re.DOTALL)
    assert found is not None and re.findall(r'"(.+?)"', found[1]) == [str(kind) for kind in kinds]
