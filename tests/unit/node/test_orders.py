"""Orders to load: who is told which packed files may be copied from whom."""

from __future__ import annotations

from typing import Any, cast

from shoal.config import EngineSettings, Precision
from shoal.control import messages as control
from shoal.membership.events import Joined
from shoal.membership.instructions import HoldExperts, LoadStage, RestStage
from shoal.membership.member import Member
from shoal.models.manifest import Manifest
from shoal.models.model_file import ModelFile
from shoal.node.observer import Served
from shoal.node.orders import Orders
from shoal.node.packing import packing_of
from shoal.node.share import Share
from shoal.pipeline_id import PipelineId
from shoal.placement.profile import NodeProfile
from tests.unit.placement.test_experts import model

FILE = ModelFile("model.gguf", 10, "ab" * 32)
PACKING = packing_of([FILE.sha256], "q4")


def packed(layer: int, digit: int = 1, packing: str = PACKING) -> control.PackedFile:
    return control.PackedFile(packing=packing, layer=layer, size=100, sha256=f"{digit}{layer}" * 32)


def orders(**offers: list[control.PackedFile]) -> Orders:
    """offers: by node, which are numbered from 1 on."""
    members = {
        node: Member(Joined(node, 0, NodeProfile(name, 1, 1, 1), f"192.0.2.{node}", 7000 + node, ""), 0.0)
        for node, name in enumerate(offers, 1)
    }
    machines = {node: control.Join(name=name, packed=files) for node, (name, files) in enumerate(offers.items(), 1)}
    served = Served("model", "/model.gguf", model(), 128, EngineSettings(precision=Precision.Q4))
    made = Orders(PipelineId("model", 2), "192.0.2.9", served, cast(Any, None), Share(), members, machines)
    made.manifest = Manifest("/model.gguf", (FILE,))
    return made


def hold(node: int, streamed: bool = True) -> HoldExperts:
    """The first layer has no experts."""
    return HoldExperts(node, 1, (frozenset(), *(frozenset({1, 2}),) * 3), 1000, streamed)


def told(load: control.Load) -> dict[str, list[tuple[int, str]]]:
    """By host: layers, and hashes of their files."""
    return {peer.host: [(load.packed[i].layer, load.packed[i].sha256[:2]) for i in peer.packed] for peer in load.peers if peer.packed}


def test_a_worker_that_streams_is_told_who_has_the_files_of_its_layers() -> None:
    load = orders(a=[], b=[packed(0), packed(1), packed(3), packed(4)], c=[packed(1)]).hold(hold(1))
    assert load.weight_memory == 1000
    assert told(load) == {"192.0.2.2": [(1, "11"), (3, "13")], "192.0.2.3": [(1, "11")]}
    assert len(load.packed) == 2, "each once"


def test_a_stage_that_streams_is_told_of_the_head_too() -> None:
    made = orders(a=[], b=[packed(layer) for layer in range(5)])
    last = made.load(LoadStage(1, 1, 1, 2, 2, 4, range(0), 64, weight_memory=500))
    assert told(last) == {"192.0.2.2": [(2, "12"), (3, "13"), (4, "14")]}
    first = made.load(LoadStage(1, 1, 0, 2, 0, 2, range(0), 64, weight_memory=500))
    assert told(first) == {"192.0.2.2": [(0, "10"), (1, "11")]}


def test_who_holds_all_in_memory_is_told_nothing() -> None:
    made = orders(a=[], b=[packed(layer) for layer in range(5)])
    assert not made.hold(hold(1, streamed=False)).packed
    assert not made.load(LoadStage(1, 1, 0, 1, 0, 4, range(0), 64)).packed


def test_a_node_is_not_sent_to_itself_nor_to_another_packing() -> None:
    made = orders(a=[packed(1)], b=[packed(2, packing="another")])
    assert told(made.hold(hold(1))) == {}
    assert told(made.hold(hold(2))) == {"192.0.2.1": [(1, "11")]}


def test_files_that_differ_are_told_of_apart() -> None:
    load = orders(a=[], b=[packed(1, 5)], c=[packed(1, 6)]).hold(hold(1))
    assert told(load) == {"192.0.2.2": [(1, "51")], "192.0.2.3": [(1, "61")]}


def test_without_a_list_of_the_models_files_nothing_is_copied() -> None:
    made = orders(a=[], b=[packed(1)])
    assert made.hold(hold(1)).offer
    made.manifest = None
    assert not made.hold(hold(1)).packed and not made.hold(hold(1)).offer


def test_where_all_nodes_are_on_one_machine_nobody_hashes_for_others() -> None:
    made = orders(a=[])
    made._host = "127.0.0.1"
    assert not made.hold(hold(1)).offer


def test_every_order_names_its_pipeline() -> None:
    made = orders(a=[])
    assert made.hold(hold(1)).pipeline == made.load(LoadStage(1, 1, 0, 1, 0, 4, range(0), 64)).pipeline == "model/2"
    assert made.rest(RestStage(1, 1)).pipeline == "model/2"
