"""A cluster at one moment."""

from __future__ import annotations

from typing import Literal

import msgspec

from shoal.observed.computing import Computed


class Progress(msgspec.Struct, frozen=True):
    """What a node does that takes long. done, total: bytes; total 0: not known."""

    words: str
    done: int = 0
    total: int = 0


class MachineView(msgspec.Struct, frozen=True):
    """A node.

    role:             'layers' or 'experts'
    state:            'joining', 'idle', 'loading', 'pausing', 'linking', 'filling', 'serving', 'draining', 'suspected', 'failed', 'held off'
    words:            the same as a sentence, with the reason
    silence:          since it was last heard
    first_layer, end_layer: that it runs; both 0: none
    experts:          that it holds for stages elsewhere, over all layers
    weights:          bytes of weights that it holds
    memory:           bytes that weights and KV blocks may take
    resident:         bytes that its process takes
    bytes_per_second: at which it reads weights when decoding one row; flops: operations per second at prefill; disk: bytes per second, 0:
                      it reads none
    round_trip, link_bytes_per_second: between it and the head, measured when it joined
    busy:             share of the last 10 s in which it computed
    slower:           times slower than it measured when it joined, beside the other stages
    queue:            frames that wait at a worker
    computed:         None: it is no stage, or of a version that does not tell
    """

    name: str
    number: int
    role: str
    state: str
    words: str
    address: str
    machine: str
    threads: int
    silence: float
    first_layer: int = 0
    end_layer: int = 0
    experts: int = 0
    weights: int = 0
    memory: int = 0
    resident: int = 0
    runtime: str = ""
    bytes_per_second: float = 0.0
    flops: float = 0.0
    disk: float = 0.0
    round_trip: float = 0.0
    link_bytes_per_second: float = 0.0
    busy: float = 0.0
    slower: float = 1.0
    queue: int = 0
    progress: Progress | None = None
    computed: Computed | None = None


class StageView(msgspec.Struct, frozen=True):
    """A stage of the route. wait, compute, sample: medians of the latest steps; share: of a step's time that is spent in it, 0 to 1;
    predicted: its part of a step of one row, as planned. hop: median of the way to it from the stage before, or from the head."""

    node: str
    first_layer: int
    end_layer: int
    wait: float = 0.0
    compute: float = 0.0
    sample: float = 0.0
    share: float = 0.0
    predicted: float = 0.0
    hop: float = 0.0


class RequestsView(msgspec.Struct, frozen=True):
    """running, waiting: sequences. slots: that may run at once. blocks: KV blocks, of 32 tokens each."""

    running: int = 0
    waiting: int = 0
    slots: int = 0
    blocks_used: int = 0
    blocks: int = 0


class ModelView(msgspec.Struct, frozen=True):
    """weights: bytes in the form in which they are held. experts: of the layer with most; 0: none."""

    name: str
    reference: str
    layers: int
    context: int
    weights: int
    experts: int = 0


class Advice(msgspec.Struct, frozen=True):
    """kind: 'bound' (a node bounds the pipeline), 'slow', 'better' (another split), 'memory', 'attention'. node: ''; it is about no
    single one. gain: predicted tokens per second over today's, less 1; 0: not known."""

    kind: str
    message: str
    node: str = ""
    gain: float = 0.0


class PipelineView(msgspec.Struct, frozen=True):
    """A running copy of a model. name: by which it is asked for. state, reason: see ClusterView. measured: tokens per second of the last
    10 s. nodes: names of those that have a part in it."""

    name: str
    model: str
    replica: int
    state: str
    reason: str
    requests: RequestsView
    measured: float = 0.0
    nodes: list[str] = []


class ClusterView(msgspec.Struct, frozen=True):
    """As one pipeline has it; `pipelines` lists all. state: 'waiting', 'loading', 'pausing', 'linking', 'filling' or 'serving'. reason: why it does not serve, or what is being
    prepared. predicted: tokens per second with full slots. predicted_single: of one stream. measured: tokens per second of the last 10 s.
    last_hop: median of the way from the last stage to the head. attention: what somebody should look at, empty when all is well."""

    cluster: str
    version: str
    at: float
    started: float
    model: ModelView
    state: str
    reason: str
    epoch: int
    machines: list[MachineView]
    stages: list[StageView]
    requests: RequestsView
    predicted: float = 0.0
    predicted_single: float = 0.0
    measured: float = 0.0
    last_hop: float = 0.0
    advice: list[Advice] = []
    attention: list[Advice] = []
    pipeline: str = ""
    pipelines: list[PipelineView] = []


class ExpertsView(msgspec.Struct, frozen=True):
    """rows: by layer, that each expert has computed since the head started."""

    rows: dict[int, list[int]]


class PlanView(msgspec.Struct, frozen=True):
    """What would come of a change, before it is made. moved: layers that would be loaded anew, by node. why: why it cannot be done; ''."""

    stages: list[StageView] = []
    predicted: float = 0.0
    predicted_now: float = 0.0
    moved: dict[str, int] = {}
    why: str = ""


class NodeAction(msgspec.Struct, frozen=True):
    """do: 'drain': move its part off, then send it home; 'remove': send it home now; 'rename': `name` is its name from now on; 'cap': its
    weights and KV blocks may take `memory` bytes at most, or what it offers if that is None."""

    do: Literal["drain", "remove", "rename", "cap"]
    name: str = ""
    memory: int | None = None


class ActionResult(msgspec.Struct, frozen=True):
    """Of an action. message: in words, also why it was not done."""

    done: bool
    message: str


class Invitation(msgspec.Struct, frozen=True):
    """How a machine joins. code: for one machine; '': this head needs none. expires: since 1970; 0: never."""

    address: str
    command: str
    code: str = ""
    expires: float = 0.0
