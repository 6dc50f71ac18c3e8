"""What operators ask goes from a worker to the head and back as it is."""

from __future__ import annotations

import asyncio
from typing import Any, get_type_hints

import msgspec
import pytest

from shoal.errors import RemoteProtocolError
from shoal.gateway.operator import Operator
from shoal.gateway.workers.operations import RemoteOperator, operated
from shoal.observed.cluster import NodeAction
from shoal.observed.event import EventKind
from tests.support.fixed_operator import FixedOperator

METHODS: dict[str, tuple[Any, ...]] = {
    "cluster": ("toy/1",),
    "experts": ("",),
    "events": (0, 10, [EventKind.LOST], "b"),
    "history": (),
    "requests": ("someone",),
    "timeline": ("chatcmpl-1", None, 0),
    "preview": ("a", NodeAction("cap", memory=1 << 30)),
    "act": ("a", NodeAction("cap", memory=1 << 30)),
    "invite": (),
    "models": (),
    "fleet_plan": (),
    "pull": ("org/name",),
    "load": ("org/name", 2),
    "unload": ("name",),
    "alias": ("gpt-4o-mini", "name"),
}


def test_every_method_is_tried_here() -> None:
    assert METHODS.keys() == {name for name in vars(Operator) if not name.startswith("_")}


@pytest.mark.parametrize("name", METHODS)
def test_an_answer_is_that_of_the_head(name: str) -> None:
    there, here = FixedOperator(), FixedOperator()
    for operator in (there, here):
        operator.ring.add(EventKind.LOST, "b left", "b", {"silence": 1.0})
    remote = RemoteOperator(lambda method, arguments: operated(there, method, arguments))

    async def both() -> tuple[Any, Any]:
        return await getattr(remote, name)(*METHODS[name]), await getattr(here, name)(*METHODS[name])

    asked, wanted = asyncio.run(both())
    assert asked == wanted and type(asked) is type(wanted) and there.asked == here.asked
    assert "return" in get_type_hints(getattr(RemoteOperator, name))


def test_nothing_else_can_be_asked() -> None:
    for name, arguments in (("__init__", ()), ("fly", ()), ("preview", (5,)), ("preview", ())):
        with pytest.raises(RemoteProtocolError):
            asyncio.run(operated(FixedOperator(), name, msgspec.msgpack.encode(arguments)))
