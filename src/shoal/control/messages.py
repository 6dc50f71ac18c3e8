"""The messages between the head and a node, and the requests of the command line to the head. `protobuf` sends them as
`cluster.proto` defines them."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class LayerRange:
    """[first, end)"""

    first: int = 0
    end: int = 0


@dataclass(kw_only=True)
class Join:
    """What a node reports about itself, as its first message."""

    version: str = ""
    name: str = ""
    incarnation: int = 0
    """New at every start of a node."""
    tensor_host: str = ""
    """Empty: the address from which the head sees the node connect."""
    tensor_port: int = 0
    memory: int = 0
    """Bytes that weights and KV blocks may take."""
    threads: int = 0
    bytes_per_second: float = 0.0
    """Bytes of weights per second when decoding one row."""
    flops: float = 0.0
    """Operations per second at prefill."""
    machine: str = ""
    """Processor and instruction set, for people."""
    held: list[HeldModel] = field(default_factory=list["HeldModel"])
    """What it has in memory from before."""
    shared: list[str] = field(default_factory=list[str])
    """Hashes of the model files that others may fetch from it."""
    disk: float = 0.0
    """Bytes of weights per second from its disk; 0: it cannot stream weights."""
    worker: bool = False
    """It holds experts and no layers."""
    packed: list[PackedFile] = field(default_factory=list["PackedFile"])
    """Files of packed weights that others may copy from it."""
    auto: bool = False
    """The head decides whether it does."""


@dataclass(kw_only=True)
class HeldModel:
    pipeline: str = ""
    """For which it was loaded."""
    model: str = ""
    precision: str = ""
    loaded: list[LayerRange] = field(default_factory=list[LayerRange])


@dataclass(kw_only=True)
class ExpertRows:
    """Of one layer."""

    layer: int = 0
    rows: list[int] = field(default_factory=list[int])
    """That each expert has computed, by its number."""


@dataclass(kw_only=True)
class ExpertReads:
    """Of a model whose experts are not all in memory: see weights.expert_reads."""

    hits: int = 0
    misses: int = 0
    bytes_read: int = 0
    ahead: int = 0
    ahead_used: int = 0
    ahead_wasted: int = 0
    guesses: int = 0
    guesses_right: int = 0
    guessed_about: int = 0
    misses_guessed_about: int = 0
    misses_foreseen: int = 0


@dataclass(kw_only=True)
class ExpertAsks:
    """What a stage asked workers, and what came of it: see node.expert_links."""

    frames: int = 0
    hedged: int = 0
    repeated_frames: int = 0
    taken_back: int = 0
    dropped: int = 0
    answers: int = 0
    sent: int = 0
    received: int = 0
    waited: float = 0.0
    round_trips: float = 0.0
    queued: float = 0.0
    computed: float = 0.0


@dataclass(kw_only=True)
class ExpertWork:
    """What a worker did for stages: see node.expert_service."""

    frames: int = 0
    rows: int = 0
    calls: int = 0
    queued: int = 0
    computed: float = 0.0
    """Seconds."""


@dataclass(kw_only=True)
class ComputeParts:
    """Seconds: see observed.computing."""

    attention: float = 0.0
    feed_forward: float = 0.0
    experts: float = 0.0
    waiting: float = 0.0
    head: float = 0.0
    other: float = 0.0


@dataclass(kw_only=True)
class PipelineReport:
    """What a node does for one pipeline. Counts are since its model was loaded."""

    pipeline: str = ""
    steps: int = 0
    journal_bytes: int = 0
    """In memory."""
    journal_spilled: int = 0
    """Rows on disk."""
    journal_given_up: int = 0
    """Rows that found no room."""
    journal_replayed: int = 0
    fetched_from_origin: int = 0
    """Bytes of model files."""
    resident: int = 0
    """Bytes of its other processes."""
    expert_rows: list[ExpertRows] = field(default_factory=list[ExpertRows])
    """Those since they were last reported, of layers where there are any."""
    expert_reads: list[ExpertReads] = field(default_factory=list[ExpertReads])
    """What came since it was last reported, if anything did."""
    expert_asks: list[ExpertAsks] = field(default_factory=list[ExpertAsks])
    """Of a stage that asks workers: in its epoch."""
    expert_work: list[ExpertWork] = field(default_factory=list[ExpertWork])
    """Of a worker."""
    activity: str = ""
    """What it does that takes long, for people; empty: nothing."""
    weights: int = 0
    """Bytes that it holds now, also while it loads."""
    decoding: list[ComputeParts] = field(default_factory=list[ComputeParts])
    """Of a stage, in steps in which each row gave a token."""
    prompts: list[ComputeParts] = field(default_factory=list[ComputeParts])
    """The same, in the other steps."""


@dataclass(kw_only=True)
class Heartbeat:
    """Counts are since the node started."""

    resident: int = 0
    """Bytes."""
    fetched_from_peers: int = 0
    """Bytes of model files."""
    packed: list[PackedFile] = field(default_factory=list["PackedFile"])
    """As in Join; empty: as before."""
    pipelines: list[PipelineReport] = field(default_factory=list[PipelineReport])
    """Of which it has anything."""


@dataclass(kw_only=True)
class Loaded:
    epoch: int = 0
    weight_bytes: int = 0
    runtime: str = ""
    seconds: float = 0.0
    shared: list[str] = field(default_factory=list[str])
    """As in Join."""


@dataclass(kw_only=True)
class Linked:
    epoch: int = 0


@dataclass(kw_only=True)
class Failed:
    epoch: int = 0
    reason: str = ""


@dataclass(kw_only=True)
class Probed:
    """The link to the head."""

    round_trip: float = 0.0
    """Seconds."""
    bytes_per_second: float = 0.0


@dataclass(kw_only=True)
class Leave:
    """The node wants to leave once its layers are moved."""


@dataclass(kw_only=True)
class Welcome:
    node: int = 0
    name: str = ""
    """Its name in the cluster, unique."""
    cluster: str = ""
    heartbeat: float = 0.0
    """Seconds."""
    term: int = 0
    """Under which the head leads; 0: it holds no lease."""


@dataclass(kw_only=True)
class Refuse:
    reason: str = ""
    again: bool = False
    """It was a member and may join again."""
    follows: bool = False
    """Because this head does not lead."""
    leader: str = ""
    """Address of the one that does, if that is known."""


@dataclass(kw_only=True)
class ModelFile:
    name: str = ""
    """Contains no path."""
    size: int = 0
    sha256: str = ""
    """In hexadecimal."""


@dataclass(kw_only=True)
class Peer:
    """A peer that hands out files at its tensor port."""

    host: str = ""
    port: int = 0
    files: list[int] = field(default_factory=list[int])
    """Indexes into Load.files."""
    head: bool = False
    """Whether its certificate is the head's."""
    packed: list[int] = field(default_factory=list[int])
    """Indexes into Load.packed."""


@dataclass(kw_only=True)
class PackedFile:
    """A layer's weights as they are executed."""

    packing: str = ""
    """What they were made of, and how."""
    layer: int = 0
    """The head's is the number of layers."""
    size: int = 0
    sha256: str = ""
    """In hexadecimal."""


@dataclass(kw_only=True)
class ExpertTable:
    """Of one layer."""

    layer: int = 0
    experts: list[int] = field(default_factory=list[int])


@dataclass(kw_only=True)
class ExpertWorker:
    name: str = ""
    host: str = ""
    port: int = 0
    experts: list[ExpertTable] = field(default_factory=list[ExpertTable])


@dataclass(kw_only=True)
class Load:
    epoch: int = 0
    model: str = ""
    stage: int = 0
    stages: int = 0
    first_layer: int = 0
    end_layer: int = 0
    blocks: int = 0
    precision: str = ""
    kv_type: str = ""
    codec: str = ""
    keep_first: int = 0
    """Layers whose keys and values stay good: [keep_first, keep_end)."""
    keep_end: int = 0
    layers: int = 0
    """Of the whole model."""
    files: list[ModelFile] = field(default_factory=list[ModelFile])
    """The model's files; empty: only its name is known."""
    peers: list[Peer] = field(default_factory=list[Peer])
    """The peers that have some of the files."""
    context: int = 0
    """The most tokens of a sequence."""
    weight_memory: int = 0
    """Bytes that the weights may take: of a stage if they are streamed, of experts at most; 0: all are held."""
    experts: list[ExpertTable] = field(default_factory=list[ExpertTable])
    """Hold these, and no layers."""
    workers: list[ExpertWorker] = field(default_factory=list[ExpertWorker])
    absent: list[ExpertTable] = field(default_factory=list[ExpertTable])
    asking: float = 0.0
    asking_per_row: float = 0.0
    degrade: bool = False
    """Who holds experts that no stage does."""
    packed: list[PackedFile] = field(default_factory=list[PackedFile])
    """Files that may be copied instead of packing them; empty: this node needs none, or nobody has any."""
    offer: bool = False
    """Let others copy what is packed: there may be other machines."""
    pipeline: str = ""
    """Nodes keep what belongs to one pipeline apart from all others."""


@dataclass(kw_only=True)
class Link:
    """Enter the epoch; connect to the next stage, or to the head after the last."""

    epoch: int = 0
    host: str = ""
    port: int = 0
    pipeline: str = ""


@dataclass(kw_only=True)
class Rest:
    """The node is no longer part of the route: free keys and values, keep the weights."""

    epoch: int = 0
    pipeline: str = ""


@dataclass(kw_only=True)
class Drop:
    """Free all that is in memory of a pipeline's model."""

    pipeline: str = ""


@dataclass(kw_only=True)
class Probe:
    """Measure the link to a tensor port."""

    host: str = ""
    port: int = 0


@dataclass(kw_only=True)
class Shutdown:
    reason: str = ""


@dataclass(kw_only=True)
class Follow:
    """A standby head asks for a copy of what the leading one keeps, as its first message."""

    version: str = ""
    address: str = ""
    """At which nodes and other heads reach it."""


@dataclass(kw_only=True)
class Copied:
    number: int = 0
    """Of the last message that is in the copy, with all before it."""


@dataclass(kw_only=True)
class Heads:
    """Repeated while the head leads."""

    term: int = 0
    others: list[str] = field(default_factory=list[str])
    """Addresses of the heads that may lead next."""
    within: float = 0.0
    """Seconds after which a node that hears nothing more counts the head as lost."""


@dataclass(kw_only=True)
class Serves:
    """Everything that a successor must know and that no file holds."""

    settings: str = ""
    """JSON: those of the head's settings that a successor takes over."""
    models: str = ""
    """JSON: each model, how it is run, and its copies."""
    authority: str = ""
    """PEM: the cluster's key and certificate; empty: it is unprotected."""
    whole: bool = False
    """Everything that there was has come before this."""
    number: int = 0
    """As in Append."""


@dataclass(kw_only=True)
class Copy:
    """A piece of a file as it is now."""

    name: str = ""
    data: bytes = b""
    first: bool = False
    last: bool = False
    number: int = 0
    """As in Append."""


@dataclass(kw_only=True)
class Append:
    """To a file that was copied."""

    name: str = ""
    data: bytes = b""
    number: int = 0
    """Counts the leader's records, of all files."""


@dataclass(kw_only=True)
class Unknown:
    """A message of a kind that this version does not know."""


NodeMessage = Join | Heartbeat | Loaded | Linked | Failed | Probed | Leave | Follow | Copied | Unknown
HeadMessage = Welcome | Refuse | Load | Link | Rest | Drop | Probe | Shutdown | Heads | Serves | Copy | Append | Unknown


@dataclass(kw_only=True)
class DescribeRequest:
    """What `shoal nodes` asks."""


@dataclass(kw_only=True)
class NodeDescription:
    node: int = 0
    name: str = ""
    address: str = ""
    machine: str = ""
    memory: int = 0
    threads: int = 0
    state: str = ""
    parts: list[NodePart] = field(default_factory=list["NodePart"])
    """In pipelines."""
    silence: float = 0.0
    """Seconds since it was last heard."""


@dataclass(kw_only=True)
class NodePart:
    model: str = ""
    replica: int = 0
    first_layer: int = 0
    end_layer: int = 0
    """0: it holds experts alone."""
    weight_bytes: int = 0
    runtime: str = ""


@dataclass(kw_only=True)
class PipelineDescription:
    model: str = ""
    replica: int = 0
    state: str = ""
    epoch: int = 0


@dataclass(kw_only=True)
class ClusterDescription:
    cluster: str = ""
    pipelines: list[PipelineDescription] = field(default_factory=list[PipelineDescription])
    nodes: list[NodeDescription] = field(default_factory=list[NodeDescription])
    events: list[str] = field(default_factory=list[str])
    """What happened, latest last."""
    gateway_port: int = 0
    """Where the head takes gateways; 0: nowhere."""


@dataclass(kw_only=True)
class DismissRequest:
    """What `shoal nodes drain` and `shoal nodes remove` ask."""

    name: str = ""
    drain: bool = False
    """Move its layers off first."""


@dataclass(kw_only=True)
class DismissAnswer:
    done: bool = False
    message: str = ""
