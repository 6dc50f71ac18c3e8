from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NodeMessage(_message.Message):
    __slots__ = ("join", "heartbeat", "loaded", "linked", "failed", "probed", "leave", "follow", "copied")
    JOIN_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    LOADED_FIELD_NUMBER: _ClassVar[int]
    LINKED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    PROBED_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    COPIED_FIELD_NUMBER: _ClassVar[int]
    join: Join
    heartbeat: Heartbeat
    loaded: Loaded
    linked: Linked
    failed: Failed
    probed: Probed
    leave: Leave
    follow: Follow
    copied: Copied
    def __init__(self, join: _Optional[_Union[Join, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., loaded: _Optional[_Union[Loaded, _Mapping]] = ..., linked: _Optional[_Union[Linked, _Mapping]] = ..., failed: _Optional[_Union[Failed, _Mapping]] = ..., probed: _Optional[_Union[Probed, _Mapping]] = ..., leave: _Optional[_Union[Leave, _Mapping]] = ..., follow: _Optional[_Union[Follow, _Mapping]] = ..., copied: _Optional[_Union[Copied, _Mapping]] = ...) -> None: ...

class HeadMessage(_message.Message):
    __slots__ = ("welcome", "refuse", "load", "link", "rest", "probe", "shutdown", "drop", "heads", "serves", "copy", "append")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    REFUSE_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    LINK_FIELD_NUMBER: _ClassVar[int]
    REST_FIELD_NUMBER: _ClassVar[int]
    PROBE_FIELD_NUMBER: _ClassVar[int]
    SHUTDOWN_FIELD_NUMBER: _ClassVar[int]
    DROP_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    SERVES_FIELD_NUMBER: _ClassVar[int]
    COPY_FIELD_NUMBER: _ClassVar[int]
    APPEND_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    refuse: Refuse
    load: Load
    link: Link
    rest: Rest
    probe: Probe
    shutdown: Shutdown
    drop: Drop
    heads: Heads
    serves: Serves
    copy: Copy
    append: Append
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., refuse: _Optional[_Union[Refuse, _Mapping]] = ..., load: _Optional[_Union[Load, _Mapping]] = ..., link: _Optional[_Union[Link, _Mapping]] = ..., rest: _Optional[_Union[Rest, _Mapping]] = ..., probe: _Optional[_Union[Probe, _Mapping]] = ..., shutdown: _Optional[_Union[Shutdown, _Mapping]] = ..., drop: _Optional[_Union[Drop, _Mapping]] = ..., heads: _Optional[_Union[Heads, _Mapping]] = ..., serves: _Optional[_Union[Serves, _Mapping]] = ..., copy: _Optional[_Union[Copy, _Mapping]] = ..., append: _Optional[_Union[Append, _Mapping]] = ...) -> None: ...

class Follow(_message.Message):
    __slots__ = ("version", "address")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    version: str
    address: str
    def __init__(self, version: _Optional[str] = ..., address: _Optional[str] = ...) -> None: ...

class Copied(_message.Message):
    __slots__ = ("number",)
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    def __init__(self, number: _Optional[int] = ...) -> None: ...

class Heads(_message.Message):
    __slots__ = ("term", "others", "within")
    TERM_FIELD_NUMBER: _ClassVar[int]
    OTHERS_FIELD_NUMBER: _ClassVar[int]
    WITHIN_FIELD_NUMBER: _ClassVar[int]
    term: int
    others: _containers.RepeatedScalarFieldContainer[str]
    within: float
    def __init__(self, term: _Optional[int] = ..., others: _Optional[_Iterable[str]] = ..., within: _Optional[float] = ...) -> None: ...

class Serves(_message.Message):
    __slots__ = ("settings", "models", "authority", "whole", "number")
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    settings: str
    models: str
    authority: str
    whole: bool
    number: int
    def __init__(self, settings: _Optional[str] = ..., models: _Optional[str] = ..., authority: _Optional[str] = ..., whole: _Optional[bool] = ..., number: _Optional[int] = ...) -> None: ...

class Copy(_message.Message):
    __slots__ = ("name", "data", "first", "last", "number")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    name: str
    data: bytes
    first: bool
    last: bool
    number: int
    def __init__(self, name: _Optional[str] = ..., data: _Optional[bytes] = ..., first: _Optional[bool] = ..., last: _Optional[bool] = ..., number: _Optional[int] = ...) -> None: ...

class Append(_message.Message):
    __slots__ = ("name", "data", "number")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    name: str
    data: bytes
    number: int
    def __init__(self, name: _Optional[str] = ..., data: _Optional[bytes] = ..., number: _Optional[int] = ...) -> None: ...

class Join(_message.Message):
    __slots__ = ("version", "name", "incarnation", "tensor_host", "tensor_port", "memory", "threads", "bytes_per_second", "flops", "machine", "held", "shared", "disk", "worker", "packed", "auto")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    TENSOR_HOST_FIELD_NUMBER: _ClassVar[int]
    TENSOR_PORT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    FLOPS_FIELD_NUMBER: _ClassVar[int]
    MACHINE_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    DISK_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    PACKED_FIELD_NUMBER: _ClassVar[int]
    AUTO_FIELD_NUMBER: _ClassVar[int]
    version: str
    name: str
    incarnation: int
    tensor_host: str
    tensor_port: int
    memory: int
    threads: int
    bytes_per_second: float
    flops: float
    machine: str
    held: _containers.RepeatedCompositeFieldContainer[HeldModel]
    shared: _containers.RepeatedScalarFieldContainer[str]
    disk: float
    worker: bool
    packed: _containers.RepeatedCompositeFieldContainer[PackedFile]
    auto: bool
    def __init__(self, version: _Optional[str] = ..., name: _Optional[str] = ..., incarnation: _Optional[int] = ..., tensor_host: _Optional[str] = ..., tensor_port: _Optional[int] = ..., memory: _Optional[int] = ..., threads: _Optional[int] = ..., bytes_per_second: _Optional[float] = ..., flops: _Optional[float] = ..., machine: _Optional[str] = ..., held: _Optional[_Iterable[_Union[HeldModel, _Mapping]]] = ..., shared: _Optional[_Iterable[str]] = ..., disk: _Optional[float] = ..., worker: _Optional[bool] = ..., packed: _Optional[_Iterable[_Union[PackedFile, _Mapping]]] = ..., auto: _Optional[bool] = ...) -> None: ...

class HeldModel(_message.Message):
    __slots__ = ("pipeline", "model", "precision", "loaded")
    PIPELINE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    LOADED_FIELD_NUMBER: _ClassVar[int]
    pipeline: str
    model: str
    precision: str
    loaded: _containers.RepeatedCompositeFieldContainer[LayerRange]
    def __init__(self, pipeline: _Optional[str] = ..., model: _Optional[str] = ..., precision: _Optional[str] = ..., loaded: _Optional[_Iterable[_Union[LayerRange, _Mapping]]] = ...) -> None: ...

class LayerRange(_message.Message):
    __slots__ = ("first", "end")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    first: int
    end: int
    def __init__(self, first: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("resident", "fetched_from_peers", "packed", "pipelines")
    RESIDENT_FIELD_NUMBER: _ClassVar[int]
    FETCHED_FROM_PEERS_FIELD_NUMBER: _ClassVar[int]
    PACKED_FIELD_NUMBER: _ClassVar[int]
    PIPELINES_FIELD_NUMBER: _ClassVar[int]
    resident: int
    fetched_from_peers: int
    packed: _containers.RepeatedCompositeFieldContainer[PackedFile]
    pipelines: _containers.RepeatedCompositeFieldContainer[PipelineReport]
    def __init__(self, resident: _Optional[int] = ..., fetched_from_peers: _Optional[int] = ..., packed: _Optional[_Iterable[_Union[PackedFile, _Mapping]]] = ..., pipelines: _Optional[_Iterable[_Union[PipelineReport, _Mapping]]] = ...) -> None: ...

class PipelineReport(_message.Message):
    __slots__ = ("pipeline", "steps", "journal_bytes", "journal_spilled", "journal_given_up", "journal_replayed", "fetched_from_origin", "resident", "expert_rows", "expert_reads", "expert_asks", "expert_work", "activity", "weights", "decoding", "prompts")
    PIPELINE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_SPILLED_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_GIVEN_UP_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_REPLAYED_FIELD_NUMBER: _ClassVar[int]
    FETCHED_FROM_ORIGIN_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_FIELD_NUMBER: _ClassVar[int]
    EXPERT_ROWS_FIELD_NUMBER: _ClassVar[int]
    EXPERT_READS_FIELD_NUMBER: _ClassVar[int]
    EXPERT_ASKS_FIELD_NUMBER: _ClassVar[int]
    EXPERT_WORK_FIELD_NUMBER: _ClassVar[int]
    ACTIVITY_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    DECODING_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    pipeline: str
    steps: int
    journal_bytes: int
    journal_spilled: int
    journal_given_up: int
    journal_replayed: int
    fetched_from_origin: int
    resident: int
    expert_rows: _containers.RepeatedCompositeFieldContainer[ExpertRows]
    expert_reads: _containers.RepeatedCompositeFieldContainer[ExpertReads]
    expert_asks: _containers.RepeatedCompositeFieldContainer[ExpertAsks]
    expert_work: _containers.RepeatedCompositeFieldContainer[ExpertWork]
    activity: str
    weights: int
    decoding: _containers.RepeatedCompositeFieldContainer[ComputeParts]
    prompts: _containers.RepeatedCompositeFieldContainer[ComputeParts]
    def __init__(self, pipeline: _Optional[str] = ..., steps: _Optional[int] = ..., journal_bytes: _Optional[int] = ..., journal_spilled: _Optional[int] = ..., journal_given_up: _Optional[int] = ..., journal_replayed: _Optional[int] = ..., fetched_from_origin: _Optional[int] = ..., resident: _Optional[int] = ..., expert_rows: _Optional[_Iterable[_Union[ExpertRows, _Mapping]]] = ..., expert_reads: _Optional[_Iterable[_Union[ExpertReads, _Mapping]]] = ..., expert_asks: _Optional[_Iterable[_Union[ExpertAsks, _Mapping]]] = ..., expert_work: _Optional[_Iterable[_Union[ExpertWork, _Mapping]]] = ..., activity: _Optional[str] = ..., weights: _Optional[int] = ..., decoding: _Optional[_Iterable[_Union[ComputeParts, _Mapping]]] = ..., prompts: _Optional[_Iterable[_Union[ComputeParts, _Mapping]]] = ...) -> None: ...

class ComputeParts(_message.Message):
    __slots__ = ("attention", "feed_forward", "experts", "waiting", "head", "other")
    ATTENTION_FIELD_NUMBER: _ClassVar[int]
    FEED_FORWARD_FIELD_NUMBER: _ClassVar[int]
    EXPERTS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    OTHER_FIELD_NUMBER: _ClassVar[int]
    attention: float
    feed_forward: float
    experts: float
    waiting: float
    head: float
    other: float
    def __init__(self, attention: _Optional[float] = ..., feed_forward: _Optional[float] = ..., experts: _Optional[float] = ..., waiting: _Optional[float] = ..., head: _Optional[float] = ..., other: _Optional[float] = ...) -> None: ...

class ExpertAsks(_message.Message):
    __slots__ = ("frames", "hedged", "repeated_frames", "answers", "sent", "received", "waited", "round_trips", "queued", "computed", "taken_back", "dropped")
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    HEDGED_FIELD_NUMBER: _ClassVar[int]
    REPEATED_FRAMES_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    SENT_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    WAITED_FIELD_NUMBER: _ClassVar[int]
    ROUND_TRIPS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_FIELD_NUMBER: _ClassVar[int]
    TAKEN_BACK_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    frames: int
    hedged: int
    repeated_frames: int
    answers: int
    sent: int
    received: int
    waited: float
    round_trips: float
    queued: float
    computed: float
    taken_back: int
    dropped: int
    def __init__(self, frames: _Optional[int] = ..., hedged: _Optional[int] = ..., repeated_frames: _Optional[int] = ..., answers: _Optional[int] = ..., sent: _Optional[int] = ..., received: _Optional[int] = ..., waited: _Optional[float] = ..., round_trips: _Optional[float] = ..., queued: _Optional[float] = ..., computed: _Optional[float] = ..., taken_back: _Optional[int] = ..., dropped: _Optional[int] = ...) -> None: ...

class ExpertWork(_message.Message):
    __slots__ = ("frames", "rows", "calls", "queued", "computed")
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_FIELD_NUMBER: _ClassVar[int]
    frames: int
    rows: int
    calls: int
    queued: int
    computed: float
    def __init__(self, frames: _Optional[int] = ..., rows: _Optional[int] = ..., calls: _Optional[int] = ..., queued: _Optional[int] = ..., computed: _Optional[float] = ...) -> None: ...

class ExpertReads(_message.Message):
    __slots__ = ("hits", "misses", "bytes_read", "ahead", "ahead_used", "ahead_wasted", "guesses", "guesses_right", "guessed_about", "misses_guessed_about", "misses_foreseen")
    HITS_FIELD_NUMBER: _ClassVar[int]
    MISSES_FIELD_NUMBER: _ClassVar[int]
    BYTES_READ_FIELD_NUMBER: _ClassVar[int]
    AHEAD_FIELD_NUMBER: _ClassVar[int]
    AHEAD_USED_FIELD_NUMBER: _ClassVar[int]
    AHEAD_WASTED_FIELD_NUMBER: _ClassVar[int]
    GUESSES_FIELD_NUMBER: _ClassVar[int]
    GUESSES_RIGHT_FIELD_NUMBER: _ClassVar[int]
    GUESSED_ABOUT_FIELD_NUMBER: _ClassVar[int]
    MISSES_GUESSED_ABOUT_FIELD_NUMBER: _ClassVar[int]
    MISSES_FORESEEN_FIELD_NUMBER: _ClassVar[int]
    hits: int
    misses: int
    bytes_read: int
    ahead: int
    ahead_used: int
    ahead_wasted: int
    guesses: int
    guesses_right: int
    guessed_about: int
    misses_guessed_about: int
    misses_foreseen: int
    def __init__(self, hits: _Optional[int] = ..., misses: _Optional[int] = ..., bytes_read: _Optional[int] = ..., ahead: _Optional[int] = ..., ahead_used: _Optional[int] = ..., ahead_wasted: _Optional[int] = ..., guesses: _Optional[int] = ..., guesses_right: _Optional[int] = ..., guessed_about: _Optional[int] = ..., misses_guessed_about: _Optional[int] = ..., misses_foreseen: _Optional[int] = ...) -> None: ...

class ExpertRows(_message.Message):
    __slots__ = ("layer", "rows")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    layer: int
    rows: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, layer: _Optional[int] = ..., rows: _Optional[_Iterable[int]] = ...) -> None: ...

class Loaded(_message.Message):
    __slots__ = ("epoch", "weight_bytes", "runtime", "seconds", "shared")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    weight_bytes: int
    runtime: str
    seconds: float
    shared: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, epoch: _Optional[int] = ..., weight_bytes: _Optional[int] = ..., runtime: _Optional[str] = ..., seconds: _Optional[float] = ..., shared: _Optional[_Iterable[str]] = ...) -> None: ...

class Linked(_message.Message):
    __slots__ = ("epoch",)
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    def __init__(self, epoch: _Optional[int] = ...) -> None: ...

class Failed(_message.Message):
    __slots__ = ("epoch", "reason")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    reason: str
    def __init__(self, epoch: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Probed(_message.Message):
    __slots__ = ("round_trip", "bytes_per_second")
    ROUND_TRIP_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    round_trip: float
    bytes_per_second: float
    def __init__(self, round_trip: _Optional[float] = ..., bytes_per_second: _Optional[float] = ...) -> None: ...

class Leave(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("node", "name", "cluster", "heartbeat", "term")
    NODE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    node: int
    name: str
    cluster: str
    heartbeat: float
    term: int
    def __init__(self, node: _Optional[int] = ..., name: _Optional[str] = ..., cluster: _Optional[str] = ..., heartbeat: _Optional[float] = ..., term: _Optional[int] = ...) -> None: ...

class Refuse(_message.Message):
    __slots__ = ("reason", "again", "follows", "leader")
    REASON_FIELD_NUMBER: _ClassVar[int]
    AGAIN_FIELD_NUMBER: _ClassVar[int]
    FOLLOWS_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    reason: str
    again: bool
    follows: bool
    leader: str
    def __init__(self, reason: _Optional[str] = ..., again: _Optional[bool] = ..., follows: _Optional[bool] = ..., leader: _Optional[str] = ...) -> None: ...

class Load(_message.Message):
    __slots__ = ("epoch", "model", "stage", "stages", "first_layer", "end_layer", "blocks", "precision", "kv_type", "codec", "keep_first", "keep_end", "layers", "files", "peers", "context", "weight_memory", "experts", "workers", "absent", "asking", "asking_per_row", "degrade", "packed", "offer", "pipeline")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    FIRST_LAYER_FIELD_NUMBER: _ClassVar[int]
    END_LAYER_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    KV_TYPE_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIRST_FIELD_NUMBER: _ClassVar[int]
    KEEP_END_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_MEMORY_FIELD_NUMBER: _ClassVar[int]
    EXPERTS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    ABSENT_FIELD_NUMBER: _ClassVar[int]
    ASKING_FIELD_NUMBER: _ClassVar[int]
    ASKING_PER_ROW_FIELD_NUMBER: _ClassVar[int]
    DEGRADE_FIELD_NUMBER: _ClassVar[int]
    PACKED_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    PIPELINE_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    model: str
    stage: int
    stages: int
    first_layer: int
    end_layer: int
    blocks: int
    precision: str
    kv_type: str
    codec: str
    keep_first: int
    keep_end: int
    layers: int
    files: _containers.RepeatedCompositeFieldContainer[ModelFile]
    peers: _containers.RepeatedCompositeFieldContainer[Peer]
    context: int
    weight_memory: int
    experts: _containers.RepeatedCompositeFieldContainer[ExpertTable]
    workers: _containers.RepeatedCompositeFieldContainer[ExpertWorker]
    absent: _containers.RepeatedCompositeFieldContainer[ExpertTable]
    asking: float
    asking_per_row: float
    degrade: bool
    packed: _containers.RepeatedCompositeFieldContainer[PackedFile]
    offer: bool
    pipeline: str
    def __init__(self, epoch: _Optional[int] = ..., model: _Optional[str] = ..., stage: _Optional[int] = ..., stages: _Optional[int] = ..., first_layer: _Optional[int] = ..., end_layer: _Optional[int] = ..., blocks: _Optional[int] = ..., precision: _Optional[str] = ..., kv_type: _Optional[str] = ..., codec: _Optional[str] = ..., keep_first: _Optional[int] = ..., keep_end: _Optional[int] = ..., layers: _Optional[int] = ..., files: _Optional[_Iterable[_Union[ModelFile, _Mapping]]] = ..., peers: _Optional[_Iterable[_Union[Peer, _Mapping]]] = ..., context: _Optional[int] = ..., weight_memory: _Optional[int] = ..., experts: _Optional[_Iterable[_Union[ExpertTable, _Mapping]]] = ..., workers: _Optional[_Iterable[_Union[ExpertWorker, _Mapping]]] = ..., absent: _Optional[_Iterable[_Union[ExpertTable, _Mapping]]] = ..., asking: _Optional[float] = ..., asking_per_row: _Optional[float] = ..., degrade: _Optional[bool] = ..., packed: _Optional[_Iterable[_Union[PackedFile, _Mapping]]] = ..., offer: _Optional[bool] = ..., pipeline: _Optional[str] = ...) -> None: ...

class ExpertTable(_message.Message):
    __slots__ = ("layer", "experts")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    EXPERTS_FIELD_NUMBER: _ClassVar[int]
    layer: int
    experts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, layer: _Optional[int] = ..., experts: _Optional[_Iterable[int]] = ...) -> None: ...

class ExpertWorker(_message.Message):
    __slots__ = ("name", "host", "port", "experts")
    NAME_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    EXPERTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    host: str
    port: int
    experts: _containers.RepeatedCompositeFieldContainer[ExpertTable]
    def __init__(self, name: _Optional[str] = ..., host: _Optional[str] = ..., port: _Optional[int] = ..., experts: _Optional[_Iterable[_Union[ExpertTable, _Mapping]]] = ...) -> None: ...

class ModelFile(_message.Message):
    __slots__ = ("name", "size", "sha256")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    size: int
    sha256: str
    def __init__(self, name: _Optional[str] = ..., size: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class Peer(_message.Message):
    __slots__ = ("host", "port", "files", "head", "packed")
    HOST_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    PACKED_FIELD_NUMBER: _ClassVar[int]
    host: str
    port: int
    files: _containers.RepeatedScalarFieldContainer[int]
    head: bool
    packed: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, host: _Optional[str] = ..., port: _Optional[int] = ..., files: _Optional[_Iterable[int]] = ..., head: _Optional[bool] = ..., packed: _Optional[_Iterable[int]] = ...) -> None: ...

class PackedFile(_message.Message):
    __slots__ = ("packing", "layer", "size", "sha256")
    PACKING_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    packing: str
    layer: int
    size: int
    sha256: str
    def __init__(self, packing: _Optional[str] = ..., layer: _Optional[int] = ..., size: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class Link(_message.Message):
    __slots__ = ("epoch", "host", "port", "pipeline")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    PIPELINE_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    host: str
    port: int
    pipeline: str
    def __init__(self, epoch: _Optional[int] = ..., host: _Optional[str] = ..., port: _Optional[int] = ..., pipeline: _Optional[str] = ...) -> None: ...

class Rest(_message.Message):
    __slots__ = ("epoch", "pipeline")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PIPELINE_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    pipeline: str
    def __init__(self, epoch: _Optional[int] = ..., pipeline: _Optional[str] = ...) -> None: ...

class Drop(_message.Message):
    __slots__ = ("pipeline",)
    PIPELINE_FIELD_NUMBER: _ClassVar[int]
    pipeline: str
    def __init__(self, pipeline: _Optional[str] = ...) -> None: ...

class Probe(_message.Message):
    __slots__ = ("host", "port")
    HOST_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    host: str
    port: int
    def __init__(self, host: _Optional[str] = ..., port: _Optional[int] = ...) -> None: ...

class Shutdown(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ClusterDescription(_message.Message):
    __slots__ = ("cluster", "pipelines", "nodes", "events", "gateway_port")
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    PIPELINES_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_PORT_FIELD_NUMBER: _ClassVar[int]
    cluster: str
    pipelines: _containers.RepeatedCompositeFieldContainer[PipelineDescription]
    nodes: _containers.RepeatedCompositeFieldContainer[NodeDescription]
    events: _containers.RepeatedScalarFieldContainer[str]
    gateway_port: int
    def __init__(self, cluster: _Optional[str] = ..., pipelines: _Optional[_Iterable[_Union[PipelineDescription, _Mapping]]] = ..., nodes: _Optional[_Iterable[_Union[NodeDescription, _Mapping]]] = ..., events: _Optional[_Iterable[str]] = ..., gateway_port: _Optional[int] = ...) -> None: ...

class DismissRequest(_message.Message):
    __slots__ = ("name", "drain")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    name: str
    drain: bool
    def __init__(self, name: _Optional[str] = ..., drain: _Optional[bool] = ...) -> None: ...

class DismissAnswer(_message.Message):
    __slots__ = ("done", "message")
    DONE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    done: bool
    message: str
    def __init__(self, done: _Optional[bool] = ..., message: _Optional[str] = ...) -> None: ...

class NodeDescription(_message.Message):
    __slots__ = ("node", "name", "address", "machine", "memory", "threads", "state", "parts", "silence")
    NODE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    MACHINE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    SILENCE_FIELD_NUMBER: _ClassVar[int]
    node: int
    name: str
    address: str
    machine: str
    memory: int
    threads: int
    state: str
    parts: _containers.RepeatedCompositeFieldContainer[NodePart]
    silence: float
    def __init__(self, node: _Optional[int] = ..., name: _Optional[str] = ..., address: _Optional[str] = ..., machine: _Optional[str] = ..., memory: _Optional[int] = ..., threads: _Optional[int] = ..., state: _Optional[str] = ..., parts: _Optional[_Iterable[_Union[NodePart, _Mapping]]] = ..., silence: _Optional[float] = ...) -> None: ...

class PipelineDescription(_message.Message):
    __slots__ = ("model", "replica", "state", "epoch")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    model: str
    replica: int
    state: str
    epoch: int
    def __init__(self, model: _Optional[str] = ..., replica: _Optional[int] = ..., state: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class NodePart(_message.Message):
    __slots__ = ("model", "replica", "first_layer", "end_layer", "weight_bytes", "runtime")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    FIRST_LAYER_FIELD_NUMBER: _ClassVar[int]
    END_LAYER_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    model: str
    replica: int
    first_layer: int
    end_layer: int
    weight_bytes: int
    runtime: str
    def __init__(self, model: _Optional[str] = ..., replica: _Optional[int] = ..., first_layer: _Optional[int] = ..., end_layer: _Optional[int] = ..., weight_bytes: _Optional[int] = ..., runtime: _Optional[str] = ...) -> None: ...
