"""The models on the head's machine."""

from __future__ import annotations

import msgspec


class ModelHere(msgspec.Struct, frozen=True):
    """size: bytes of its files. here: whether all of them are on this machine. fits: whether the cluster's memory holds it; None: not
    known before it is fetched. served: whether it is the one that answers."""

    name: str
    reference: str
    size: int
    here: bool
    fits: bool | None = None
    served: bool = False
    about: str = ""


class PullView(msgspec.Struct, frozen=True):
    """A model that is being fetched, or was. done, total: bytes; total 0: not known yet. failed: why; ''."""

    name: str
    began: float
    done: int = 0
    total: int = 0
    ended: float = 0.0
    failed: str = ""


class LoadedModel(msgspec.Struct, frozen=True):
    """A model that is served, or is about to be. state: why it is not served; ''. short: whether that is for want of
    memory. replicas: copies, of which so many are `serving`. can:
    'chat', 'tools', 'reasoning', 'json', 'embeddings'. family, quantization, parameters: see facts.ModelFacts. context: tokens. precision:
    as it was asked for. nodes: names of the only nodes that may serve it; empty: all. absent: those of them that are not there."""

    name: str
    reference: str
    state: str
    replicas: int
    serving: int
    family: str
    quantization: str
    context: int
    parameters: int
    can: list[str] = []
    short: bool = False
    precision: str = "auto"
    priority: int = 0
    nodes: list[str] = []
    absent: list[str] = []


class RegisteredFile(msgspec.Struct, frozen=True):
    """sha256: in hexadecimal; '': not computed, because no other machine needs it."""

    name: str
    size: int
    sha256: str = ""


class RegisteredModel(msgspec.Struct, frozen=True):
    """A model that was served at least once.

    name:         by which requests ask for it
    reference:    what `--model` takes
    version:      counts the changes of its files, from 1
    family, quantization, parameters, bytes: see facts.ModelFacts
    context:      tokens of the longest sequence
    can:          'chat', 'tools', 'reasoning', 'json', 'embeddings'
    replicas:     copies that were asked for last
    """

    name: str
    reference: str
    family: str
    quantization: str
    context: int
    parameters: int
    bytes: int
    can: list[str] = []
    files: list[RegisteredFile] = []
    replicas: int = 1
    version: int = 1


class UpstreamModel(msgspec.Struct, frozen=True):
    """A model that another server has. context: tokens of its longest sequence; 0: not known. via: ids of the servers that a request for it
    passes through, that server's own first; empty: it names none."""

    name: str
    context: int = 0
    via: list[str] = []


UNHEARD = "it has not been asked yet"
"""The state of an upstream at first."""


class UpstreamView(msgspec.Struct, frozen=True):
    """Another server that answers for some models. state: why it takes no requests; ''."""

    url: str
    state: str
    models: list[UpstreamModel] = []


class ModelsView(msgspec.Struct, frozen=True):
    """memory: bytes that weights and KV blocks may take on all nodes together. loaded: the default first. aliases: other names, and what
    each stands for. loading: names of models that are being fetched and read, before they are in `loaded`. failed: why models could not be
    loaded, by name. known: those that were served at least once, the latest first. upstreams: other servers, as they were given."""

    models: list[ModelHere]
    pulls: list[PullView]
    memory: int
    loaded: list[LoadedModel] = []
    aliases: dict[str, str] = {}
    loading: list[str] = []
    failed: dict[str, str] = {}
    known: list[RegisteredModel] = []
    upstreams: list[UpstreamView] = []
