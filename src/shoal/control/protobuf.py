"""The messages as they go over the wire: the only module that uses the generated stubs.

A class of `messages` has the name of its message in `cluster.proto`, and its fields have the same names and types.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar, cast

from shoal.control import cluster_pb2, messages
from shoal.control.messages import HeadMessage, NodeMessage, Unknown

M = TypeVar("M")


def encode(message: Any) -> bytes:
    """Encodes a message that is not part of a conversation."""
    return _stub(message).SerializeToString()


def decoder(kind: type[M]) -> Callable[[bytes], M]:
    stub: Any = getattr(cluster_pb2, kind.__name__)
    return lambda data: _message(kind, stub.FromString(data))


def encode_node_message(message: NodeMessage) -> bytes:
    return cluster_pb2.NodeMessage(**_kind(message)).SerializeToString()


def decode_node_message(data: bytes) -> NodeMessage:
    return _said(cluster_pb2.NodeMessage.FromString(data))


def encode_head_message(message: HeadMessage) -> bytes:
    return cluster_pb2.HeadMessage(**_kind(message)).SerializeToString()


def decode_head_message(data: bytes) -> HeadMessage:
    return _said(cluster_pb2.HeadMessage.FromString(data))


def _kind(message: NodeMessage | HeadMessage) -> dict[str, Any]:
    """The field of the oneof that holds this message."""
    return {type(message).__name__.lower(): _stub(message)}


def _said(stub: Any) -> Any:
    kind = stub.WhichOneof("kind")
    return _value(getattr(stub, kind)) if kind is not None else Unknown()


def _stub(message: Any) -> Any:
    stub: Any = getattr(cluster_pb2, type(message).__name__)()
    for field in dataclasses.fields(message):
        value: Any = getattr(message, field.name)
        if isinstance(value, list):
            getattr(stub, field.name).extend(_stub(item) if dataclasses.is_dataclass(item) else item for item in cast("list[Any]", value))
        else:
            setattr(stub, field.name, value)
    return stub


def _message(kind: type[M], stub: Any) -> M:
    return kind(**{name: _value(getattr(stub, name)) for name in kind.__dataclass_fields__})  # pyright: ignore[reportAttributeAccessIssue, reportUnknownArgumentType, reportUnknownMemberType, reportUnknownVariableType]


def _value(value: Any) -> Any:
    """A field's value: a number, a text, bytes, a message, or a list of them."""
    if isinstance(value, str | int | float | bytes):
        return value
    if hasattr(value, "DESCRIPTOR"):
        return _message(getattr(messages, type(value).__name__), value)
    return [_value(item) for item in value]
