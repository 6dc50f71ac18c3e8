"""The messages of the control conversation on the wire."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import pytest

from shoal.control import cluster_pb2
from shoal.control import messages as control
from shoal.control.protobuf import (
    decode_head_message,
    decode_node_message,
    decoder,
    encode,
    encode_head_message,
    encode_node_message,
)

JOIN = control.Join(
    name="n",
    incarnation=2**62,
    flops=1e12,
    held=[control.HeldModel(pipeline="m/1", loaded=[control.LayerRange(first=0, end=3), control.LayerRange(first=5, end=6)])],
    shared=["a", "b"],
)
LOAD = control.Load(
    epoch=3, files=[control.ModelFile(name="m.gguf", size=2**40, sha256="a")], peers=[control.Peer(host="h", port=1, files=[0], head=True)]
)
REPORT = control.PipelineReport(
    pipeline="m/2",
    steps=7,
    decoding=[control.ComputeParts(attention=0.1, waiting=2.5, other=1e9)],
    prompts=[control.ComputeParts(head=1e-9)],
    expert_reads=[control.ExpertReads(hits=3, bytes_read=2**41)],
    expert_rows=[control.ExpertRows(layer=1, rows=[0, 2**63, 3]), control.ExpertRows(layer=47, rows=[0] * 127 + [1])],
)
HEARTBEAT = control.Heartbeat(resident=3, pipelines=[REPORT, control.PipelineReport(pipeline="n/1", weights=5)])
ENVELOPES = {"NodeMessage", "HeadMessage"}


def stubs() -> dict[str, Any]:
    return {name: stub for name in dir(cluster_pb2) if hasattr(stub := getattr(cluster_pb2, name), "FromString")}


def test_every_message_has_a_class_of_the_same_name_and_fields():
    theirs = {name: {f.name for f in stub.DESCRIPTOR.fields} for name, stub in stubs().items() if name not in ENVELOPES}
    ours = {name: {f.name for f in dataclasses.fields(getattr(control, name))} for name in theirs}
    assert ours == theirs


@pytest.mark.parametrize("name", sorted(stubs().keys() - ENVELOPES))
def test_defaults_are_those_of_the_wire(name: str):
    kind = getattr(control, name)
    assert decoder(kind)(b"") == kind()


@pytest.mark.parametrize("name", sorted(ENVELOPES))
def test_every_kind_is_known(name: str):
    kinds = {kind.__name__ for kind in get_args(getattr(control, name))} - {"Unknown"}
    assert {f.message_type.name for f in stubs()[name].DESCRIPTOR.fields} == kinds


@pytest.mark.parametrize(
    "message", [JOIN, HEARTBEAT, control.Leave(), control.Failed(epoch=1, reason="none")], ids=lambda m: type(m).__name__
)
def test_what_a_node_says_arrives_as_it_was_said(message: control.NodeMessage):
    assert decode_node_message(encode_node_message(message)) == message


@pytest.mark.parametrize(
    "message",
    [LOAD, control.Rest(epoch=2, pipeline="m/1"), control.Drop(pipeline="m/1"), control.Welcome(node=1, heartbeat=0.5)],
    ids=lambda m: type(m).__name__,
)
def test_what_the_head_says_arrives_as_it_was_said(message: control.HeadMessage):
    assert decode_head_message(encode_head_message(message)) == message


def report_of(experts: int) -> control.Heartbeat:
    return control.Heartbeat(pipelines=[control.PipelineReport(expert_rows=[control.ExpertRows(layer=3, rows=[9] * experts)])])


def test_counts_by_expert_are_packed():
    """A byte for each small count, and a few for the layer."""
    few, many = (report_of(n) for n in (1, 101))
    assert len(encode_node_message(many)) - len(encode_node_message(few)) <= 102  # with a length of two bytes in the place of one
    assert len(encode_node_message(few)) < 14


def test_a_description_arrives_as_it_was_given():
    given = control.ClusterDescription(cluster="c", nodes=[control.NodeDescription(node=1, silence=0.25)], events=["began", "ended"])
    assert decoder(control.ClusterDescription)(encode(given)) == given


def test_a_message_of_a_newer_version_is_unknown():
    later = b"\xfa\x01\x00"  # field 31, empty
    assert decode_head_message(later) == control.Unknown()
    assert decode_node_message(later) == control.Unknown()
