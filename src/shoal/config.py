"""The settings of each role: one frozen dataclass per role, every field documented and checked here."""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from shoal.address import is_loopback, is_wildcard, parse_address
from shoal.allowance import processors
from shoal.errors import ConfigError, ContradictorySettings
from shoal.folders import cache_dir, data_dir, state_dir, user_path
from shoal.settings import Settings, beside, composed, parse_bytes, part, setting, values_of
from shoal.urls import check_receiver, check_webhook, parse_upstream

INSTRUCTION_SETS = ("avx512", "avxvnni", "avx2", "i8mm", "dotprod", "portable")
"""For which the kernels are compiled, where the compiler knows them; of those that a processor has, the first is used."""


class Precision(enum.StrEnum):
    AUTO = "auto"
    FP32 = "fp32"
    Q8 = "q8"
    Q4 = "q4"


class KvType(enum.StrEnum):
    FP32 = "fp32"
    BF16 = "bf16"
    Q8 = "q8"
    Q4 = "q4"


class Codec(enum.StrEnum):
    RAW = "raw"
    BF16 = "bf16"
    INT8 = "int8"
    INT4 = "int4"


class Speculation(enum.StrEnum):
    """How coming tokens are guessed, to verify several in one step: docs/scheduling.md."""

    OFF = "off"
    LOOKUP = "lookup"


class CacheScope(enum.StrEnum):
    KEY = "key"
    ALL = "all"


class Balancing(enum.StrEnum):
    """Which replica takes a request: docs/balancing.md."""

    PREFIX = "prefix"
    ROUND_ROBIN = "round-robin"
    LEAST_CONNECTIONS = "least-connections"
    LEAST_LATENCY = "least-latency"
    RANDOM = "random"
    POWER_OF_TWO = "power-of-two"
    WEIGHTED = "weighted"
    LOCALITY = "locality"
    SESSION_HASH = "session-hash"


class Replicate(enum.StrEnum):
    """When a token is handed out: docs/standby.md."""

    BEFORE = "before"
    AFTER = "after"


class MoreNodes(enum.StrEnum):
    NONE = "none"
    WEBHOOK = "webhook"
    RAY = "ray"
    KUBERNETES = "kubernetes"


class NodeRole(enum.StrEnum):
    LAYERS = "layers"
    EXPERTS = "experts"
    AUTO = "auto"


class RuntimeName(enum.StrEnum):
    AUTO = "auto"
    NATIVE = "native"
    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"


def default_threads() -> int:
    """The cores that this process may use."""
    return processors().usable


MOST_REPLICAS = 1024
"""Of one model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NodeSettings(Settings):
    """A node: its name, how it finds its head, and the memory, threads and disk it may use."""

    name: str = setting("", "The node's name in listings; empty: the host name and a number.")
    cluster: str = setting("", "The cluster to join when no address is given; empty: the only one found.")
    discovery: str = setting("mdns", "How to look for the cluster: mdns, redis://HOST:PORT (needs shoal[redis]) or none.")
    code: str = setting("", "The pairing code that `shoal serve` shows. Needed once: this machine then keeps a certificate.")
    pairing_port: int = setting(
        0, "Port of the head that takes the pairing code; 0: the control port's number plus one.", low=0, high=65535
    )
    bind: str = setting("", "Address that the tensor port listens on; empty: the one that reaches the head.")
    tensor_port: int = setting(0, "TCP port for tensors; 0: a free one.", low=0, high=65535)
    memory: str = setting("", "Memory limit for weights and KV blocks, like 1GiB; empty: three quarters of the free memory.")
    threads: int = setting(0, "Compute threads; 0: one for every core that this process may use.", low=0, high=1024)
    runtime: RuntimeName = setting(RuntimeName.AUTO, "Runtime for the layers; auto times those that are installed and keeps the fastest.")
    journal: str = setting("256MiB", "Memory limit for the stage's recent outputs, from which a lost neighbour is refilled; 0: keep none.")
    journal_disk: str = setting("1GiB", "Disk limit for the outputs that do not fit in --journal; 0: none.")
    role: NodeRole = setting(
        NodeRole.LAYERS,
        "What the node is for: layers, or experts alone, for the stages of a Mixture-of-Experts model on other nodes; auto: whatever is faster.",
    )
    share: bool = setting(True, "Fetch model files, as they are and packed, from other nodes, and let them fetch from this one.")
    packed_cache: str = setting(
        "",
        "Folder for the weights of models that are larger than memory, as they are executed; empty: in shoal's cache; none: refuse them.",
    )
    patience: float = setting(600.0, "Seconds to look for the head after losing it; 0: exit at once.", low=0, high=1e6)
    isa: str = setting(
        "", "Instruction set of the kernels: avx512, avxvnni or avx2; i8mm or dotprod on Arm; portable; empty: the best one."
    )

    def check(self) -> None:
        if self.bind:
            self._check_host("bind")
        for size in (self.memory, self.journal, self.journal_disk):
            if size:
                parse_bytes(size)
        if self.isa not in ("", *INSTRUCTION_SETS):
            raise ConfigError(f"--isa is one of {', '.join(INSTRUCTION_SETS)}, not '{self.isa}'")

    @property
    def compute_threads(self) -> int:
        return self.threads or default_threads()

    @property
    def packed_folder(self) -> Path | None:
        """Where packed files of weights are; None: there must be none. Raises ConfigError if there is no home."""
        if self.packed_cache == "none":
            return None
        return user_path(self.packed_cache) if self.packed_cache else cache_dir() / "packed"

    @property
    def journal_memory(self) -> int:
        """Bytes; at most an eighth of the granted memory."""
        wanted = parse_bytes(self.journal or "0")
        return min(wanted, parse_bytes(self.memory) // 8) if self.memory else wanted

    @property
    def journal_disk_bytes(self) -> int:
        return parse_bytes(self.journal_disk or "0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineSettings(Settings):
    """How a model is run: the same on `up`, `serve` and `run`."""

    model: str = setting(
        "smollm2-135m",
        "A catalogue name, a .gguf file, a directory, or hf:org/name[:QUANT][@revision]; `shoal models` lists those on this machine.",
    )
    precision: Precision = setting(Precision.AUTO, "Precision of the weights in memory; auto keeps that of the file as far as it can.")
    kv_type: KvType = setting(
        KvType.BF16, "Number type of the KV cache; q8 and q4 hold about 1.9 and 2.5 times the tokens of bf16 (docs/kv-types.md)."
    )
    context: int = setting(8192, "Most tokens of a prompt and its answer together; the model's own limit applies if it is lower.", low=16)
    slots: int = setting(32, "Most sequences that run at once.", low=1, high=4096)
    kv_tokens: int = setting(0, "Size of the KV cache in tokens; 0: as many as fit, up to slots times half the context.", low=0)
    step_tokens: int = setting(256, "Most tokens in one step, prefill and decode together.", low=16, high=8192)
    prompt_wait: float = setting(
        0.5,
        "Roughly the longest that other prompts may delay a running answer, in seconds; 0: only --step-tokens limits it.",
        low=0,
        high=3600,
    )
    queue: int = setting(
        512,
        "Requests that may wait; more get 429. Only requests of the same or a higher class count, so batch work keeps nobody out.",
        low=1,
    )
    chat_template: str = setting(
        "", "A file with a Jinja chat template to use instead of the model's own, for example one that supports tools."
    )
    degrade: bool = setting(
        False,
        "Of a mixture of experts, go on without experts that no node can run now; the others get their weight. Such tokens differ, and the "
        "answer says how many they are. Without this, a step waits for them.",
    )
    prefix_cache: bool = setting(
        True, "Keep the keys and values of computed prompts for later ones that begin alike. Without it every prompt is computed whole."
    )
    speculation: Speculation = setting(
        Speculation.OFF,
        "How coming tokens are guessed, so that a step can verify several: lookup, from the prompt and the answer so far; or off. The answers "
        "are the same.",
    )
    activations: Codec = setting(Codec.RAW, "Encoding of activations between nodes: raw is exact, bf16 halves the bytes.")

    def check(self) -> None:
        if not self.model:
            raise ConfigError("--model must name a model; see `shoal models`")
        if self.kv_tokens and self.kv_tokens < 64:
            raise ConfigError("--kv-tokens must be 0 or at least 64")
        if self.chat_template_file is not None and not self.chat_template_file.is_file():
            raise ConfigError(f"--chat-template {self.chat_template} is not a file")

    @property
    def chat_template_file(self) -> Path | None:
        """None: use the model's own."""
        return user_path(self.chat_template) if self.chat_template else None


def _listed(models: str) -> list[str]:
    """'a,b' → ['a', 'b']; a file's name may have commas."""
    return [models] if user_path(models).exists() else [name.strip() for name in models.split(",") if name.strip()]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListenerSettings(Settings):
    """How a process serves the API to its clients: the same at a head and at a gateway."""

    api_host: str = setting(
        "127.0.0.1", "Address that the API listens on. If other machines can reach it, requests need a key (`shoal keys create`)."
    )
    open_api: bool = setting(False, "Allow the API to listen beyond this machine without keys. Anyone who can reach it can use it.")
    port: int = setting(8000, "Port of the OpenAI-compatible API; 0: a free one.", low=0, high=65535)
    data: str = setting("", "Folder for the API's keys, responses, files and batches; empty: ~/.local/share/shoal/api.")
    cors: str = setting(
        "", "Origins of web pages that may use the API, like https://chat.example, separated by commas; *: all; empty: none."
    )
    connections: int = setting(1000, "Most client connections at once, busy or idle.", low=1, high=1_000_000)
    keep_alive: float = setting(30.0, "Seconds that a client's connection may be idle between two requests.", low=1, high=3600)
    stall: float = setting(30.0, "Seconds in which a slow client must read 32 KiB; otherwise it is disconnected.", low=1, high=3600)
    ping: float = setting(5.0, "Seconds of silence after which an event stream sends a comment to stay alive; 0: never.", low=0, high=3600)
    grace: float = setting(30.0, "Seconds that running answers have to finish when the server is told to stop.", low=0, high=3600)
    response_cache: str = setting("0", "Disk limit for answers that are given again to equal requests, like 256MiB; 0: keep none.")
    response_cache_ttl: float = setting(3600.0, "Seconds for which an answer is given again.", low=0, high=1e9)
    response_cache_scope: CacheScope = setting(CacheScope.KEY, "Who gets an answer again: the key that asked for it, or all.")

    def check(self) -> None:
        self._check_host("api_host")
        self._check_size("response_cache")
        for origin in self.origins:
            if origin != "*" and re.fullmatch(r"https?://[^/\s*]+", origin) is None:
                raise ConfigError(f"--cors takes origins like https://chat.example or http://localhost:3000, not '{origin}'")
        if self.data_folder.exists() and not self.data_folder.is_dir():
            raise ConfigError(f"--data {self.data} is a file; name a folder")

    def _check_size(self, name: str) -> None:
        """Raises ConfigError."""
        try:
            parse_bytes(getattr(self, name))
        except ConfigError as error:
            raise ConfigError(f"--{name.replace('_', '-')}: {error}") from None

    @property
    def response_cache_bytes(self) -> int:
        return parse_bytes(self.response_cache)

    @property
    def data_folder(self) -> Path:
        """It may not exist yet."""
        return user_path(self.data) if self.data else data_dir() / "api"

    @property
    def origins(self) -> list[str]:
        """Origins of web pages that may use the API."""
        return [origin.strip() for origin in self.cors.split(",") if origin.strip()]

    @property
    def exposed(self) -> bool:
        """Whether the API listens beyond this machine."""
        return not is_loopback(self.api_host)

    @property
    def needs_key(self) -> bool:
        """Whether requests need a key even if none was created."""
        return self.exposed and not self.open_api


@dataclasses.dataclass(frozen=True, kw_only=True)
class ApiSettings(ListenerSettings):
    """The API: the same on `up` and `serve`."""

    trust_text: bool = setting(
        False, "Also read control tokens in text from users, tools and documents. Whoever writes such text can then forge chat turns."
    )
    api_workers: int = setting(0, "Separate processes that serve the API; 0 or 1: the head serves it itself.", low=0, high=64)

    responses: int = setting(
        10000, "Most responses kept for previous_response_id; the least recently used are dropped; 0: keep none.", low=0
    )
    responses_size: str = setting("256MiB", "Disk limit for kept responses.")
    responses_days: float = setting(30.0, "Days after which a kept response is deleted.", low=0, high=3650)
    max_file: str = setting("100MiB", "Largest file that may be uploaded.")
    max_files: int = setting(1000, "Most files kept, of all clients together. Batch outputs count but are never refused.", low=1)
    files_space: str = setting("1GiB", "Disk limit for all files together.")
    batch_requests: int = setting(50_000, "Most requests in one batch.", low=1)
    batch_queue: int = setting(100, "Batches that may wait or run; more get 429.", low=1)
    batch_concurrency: int = setting(8, "Batch requests that run at once, after all other requests.", low=1, high=4096)

    traces: str = setting(
        "",
        "Where OpenTelemetry traces of requests go (needs shoal[traces]): http://HOST:4318, grpc://HOST:4317, https and grpcs with TLS, "
        "or env: what the OTEL_EXPORTER_OTLP_ variables say; empty: nowhere.",
    )
    trace_sample: float = setting(1.0, "Share of requests that are traced, 0 to 1, where the client does not say it.", low=0, high=1)

    upstream: str = setting(
        "",
        "Another OpenAI-compatible server, like http://192.168.1.21:8000/v1, that answers for the models which it has; several are "
        "separated by commas. With --model none, upstreams alone answer.",
    )
    upstream_key_file: str = setting(
        "", "A file with the keys of upstreams: lines of a URL and its key, or a key alone for all others. Only its owner may read it."
    )
    upstream_wait: float = setting(
        300.0, "Seconds that an upstream may be silent, before or within an answer, until it counts as failed.", low=0.1, high=86400
    )
    balance: Balancing = setting(
        Balancing.PREFIX, "Which copy of a model, or which upstream, takes a request: docs/balancing.md tells when to use which."
    )

    def check(self) -> None:
        super().check()
        self._check_upstreams()
        if self.traces not in ("", "env"):
            check_receiver(self.traces)
        for name in ("max_file", "files_space", "responses_size"):
            self._check_size(name)

    def _check_upstreams(self) -> None:
        """Raises ConfigError."""
        if len(set(self.upstreams)) < len(self.upstreams):
            raise ConfigError("--upstream names a server twice; it is asked for as many requests as it takes")
        for url in self.upstreams:
            parts = urlsplit(url)
            host = parts.hostname or ""
            port = parts.port or (443 if parts.scheme == "https" else 80)
            here = host == self.api_host or (is_loopback(host) and (is_loopback(self.api_host) or is_wildcard(self.api_host)))
            if here and port == self.port:
                raise ContradictorySettings(f"--upstream {url} is this server itself (--port {self.port}); name another one")
        if self.upstream_key_file and not self.upstreams:
            raise ContradictorySettings("--upstream-key-file has keys for upstreams: it needs --upstream")

    @property
    def upstreams(self) -> list[str]:
        """Base URLs of other servers. Raises ConfigError."""
        return [parse_upstream(url.strip()) for url in self.upstream.split(",") if url.strip()]

    @property
    def responses_bytes(self) -> int:
        return parse_bytes(self.responses_size)

    @property
    def max_file_bytes(self) -> int:
        return parse_bytes(self.max_file)

    @property
    def files_space_bytes(self) -> int:
        return parse_bytes(self.files_space)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalingSettings(Settings):
    """Of a model, or of all that have none of their own."""

    replicas_min: int = setting(1, "Fewest replicas of a model; 0: none while nobody asks for it.", low=0, high=MOST_REPLICAS)
    replicas_max: int = setting(1, "Most replicas of a model.", low=1, high=MOST_REPLICAS)
    queue_target: float = setting(4.0, "Requests that may wait for each replica.", low=0.1, high=1e6)
    first_token_target: float = setting(2.0, "Seconds in which 95 of 100 requests get their first token.", low=0.001, high=3600)
    slots_target: float = setting(
        0.75, "Share of a replica's slots that is taken, and of the tokens per second that it can do.", low=0.05, high=1
    )
    scale_tolerance: float = setting(0.1, "Share by which a figure may miss its target before anything changes.", low=0, high=0.5)
    scale_up_after: float = setting(15.0, "Seconds that load has to ask for more replicas.", low=0, high=86400)
    scale_down_after: float = setting(300.0, "Seconds that load has to be content with fewer replicas.", low=0, high=86400)
    scale_up_cooldown: float = setting(30.0, "Seconds between two additions of replicas.", low=0, high=86400)
    scale_down_cooldown: float = setting(300.0, "Seconds between any change and a removal of replicas.", low=0, high=86400)
    scale_idle: float = setting(
        600.0, "With --replicas-min 0: seconds without a request after which the last replica goes.", low=0, high=1e7
    )
    forecast: bool = setting(False, "Add replicas before the traffic of the day and the week needs them (needs shoal[forecast]).")
    more_nodes: MoreNodes = setting(MoreNodes.NONE, "Whom to ask for nodes where replicas do not fit on those that are there.")
    webhook: str = setting("", "With --more-nodes webhook: where the wish for nodes is sent, like https://HOST/PATH.")
    webhook_secret_file: str = setting("", "File with the secret that webhooks are signed with; empty: SHOAL_WEBHOOK_SECRET holds it.")
    stateful_set: str = setting("", "With --more-nodes kubernetes: name of the StatefulSet whose pods are the nodes.")

    def check(self) -> None:
        if self.replicas_min > self.replicas_max:
            raise ContradictorySettings(f"--replicas-min {self.replicas_min} is more than --replicas-max {self.replicas_max}")
        if (self.more_nodes is MoreNodes.WEBHOOK) != bool(self.webhook):
            raise ContradictorySettings("--more-nodes webhook and --webhook URL belong together; give both, or none")
        if self.webhook_secret_file and not self.webhook:
            raise ContradictorySettings("--webhook-secret-file is of no use without --webhook URL")
        if self.webhook:
            check_webhook(self.webhook)
        if (self.more_nodes is MoreNodes.KUBERNETES) != bool(self.stateful_set):
            raise ContradictorySettings("--more-nodes kubernetes and --stateful-set NAME belong together; give both, or none")
        if self.stateful_set and re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", self.stateful_set) is None:
            raise ConfigError(f"--stateful-set {self.stateful_set} is no name of an object of Kubernetes")

    @property
    def on(self) -> bool:
        """Whether anything is scaled. With the bounds that are the defaults, a model has the copies that somebody asks for."""
        return (self.replicas_min, self.replicas_max) != (1, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings(Settings):
    """How one model is served: keys of [models.NAME] in the configuration file. What is not set there is as for all models."""

    _DASHES: ClassVar[str] = ""

    engine: EngineSettings = part(EngineSettings)

    replicas: int = setting(1, "Copies of the model, on different nodes; as many as the nodes have memory for.", low=1, high=MOST_REPLICAS)
    priority: int = setting(
        0,
        "Where memory is short, models of a higher priority are placed first; none is unloaded on demand for one of a lower priority.",
        low=-100,
        high=100,
    )
    nodes: str = setting("", "Names of the only nodes that may serve it, separated by commas; empty: all.")
    batch_size: int = setting(
        0, "Sequences that are gathered before all of them are admitted; needs batch-delay; 0: as many as slots.", low=0, high=4096
    )
    batch_delay: float = setting(
        0.0, "Most seconds that a sequence waits for others, to be admitted with them; 0: each is admitted at once.", low=0, high=60
    )

    def check(self) -> None:
        if self.nodes and not self.pinned:
            raise ConfigError(f"nodes are names of nodes, separated by commas, not '{self.nodes}'")
        for name in self.pinned:
            if not name.isprintable():
                raise ConfigError(f"{name!r} is no node's name")
        if self.batch_size and not self.batch_delay:
            raise ContradictorySettings("batch-size gathers sequences for at most batch-delay seconds: set that, too")
        if self.batch_size > self.engine.slots:
            raise ContradictorySettings(f"batch-size {self.batch_size} would never be reached: slots is {self.engine.slots}")

    @property
    def pinned(self) -> frozenset[str]:
        """Names of the only nodes that may serve it; empty: all."""
        return frozenset(name for part in self.nodes.split(",") if (name := part.strip()))

    @property
    def gathered(self) -> int:
        """Sequences that are gathered before all of them are admitted; see batch_delay."""
        return self.batch_size or self.engine.slots


@dataclasses.dataclass(frozen=True)
class ModelSection:
    """What the configuration file says of one model. name: as it stands there. where: for people. values: by field of ModelSettings."""

    name: str
    where: str
    values: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatewaySettings(ListenerSettings):
    """A gateway: a machine that serves the API of a head elsewhere."""

    name: str = setting("", "The gateway's name in the head's log and in its certificate; empty: the host name.")
    code: str = setting("", "The pairing code that `shoal serve` shows. Needed once: this machine then keeps a certificate.")
    pairing_port: int = setting(
        0, "Port of the head that takes the pairing code; 0: the control port's number plus one.", low=0, high=65535
    )
    data: str = setting("", "Folder for the gateway's own response cache; empty: ~/.local/share/shoal/gateway.")

    @property
    def data_folder(self) -> Path:
        return user_path(self.data) if self.data else data_dir() / "gateway"

    def serving(self, head: ApiSettings) -> ApiSettings:
        """A head's settings, as this gateway serves its API."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(ListenerSettings)}
        return dataclasses.replace(head, **{**own, "data": str(self.data_folder)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadSettings(Settings):
    """The head: the API, the scheduler and the cluster's membership."""

    engine: EngineSettings = part(EngineSettings)
    api: ApiSettings = part(ApiSettings)
    scaling: ScalingSettings = part(ScalingSettings)

    host: str = setting("127.0.0.1", "Address of this machine for the nodes. Nodes on other machines need the pairing code once.")
    secure: bool = setting(False, "Require the pairing code and encrypt even between processes of this machine.")
    cluster: str = setting("shoal", "The cluster's name, under which nodes find it.")
    discovery: str = setting("mdns", "How the cluster is announced: mdns, redis://HOST:PORT (needs shoal[redis]) or none.")
    unprotected: bool = setting(
        False, "No pairing code, no keys, no encryption. Anyone who can reach the ports can join and read everything."
    )
    pairing_port: int = setting(0, "Port that takes the pairing code from nodes; 0: the control port's number plus one.", low=0, high=65535)
    control_port: int = setting(7420, "Port that nodes connect to; 0: a free one.", low=0, high=65535)
    results_port: int = setting(0, "Port that nodes send their results to; 0: a free one.", low=0, high=65535)
    gateway_port: int = setting(
        0, "Port for gateways, which serve the API from other machines (`shoal gateway`); 0: there are none.", low=0, high=65535
    )
    min_nodes: int = setting(1, "Nodes to wait for before loading the model.", low=1, high=1024)
    on_demand: bool = setting(
        False, "Load a model of this machine when a request asks for it; one that has no room takes that of the least used."
    )
    load_wait: float = setting(300.0, "Seconds that a request waits for the model that it loads.", low=1, high=86400)
    idle: float = setting(
        0.0, "Seconds after which a model that nobody asks for is unloaded; needs --on-demand; 0: never.", low=0, high=1e7
    )
    replicas: int = setting(
        0,
        "Copies of each model, on different nodes; as many as the nodes have memory for; 0: one, or --replicas-min.",
        low=0,
        high=MOST_REPLICAS,
    )
    heartbeat: float = setting(
        0.5, "Seconds between a node's heartbeats. A node that misses eight in a row counts as lost.", low=0.05, high=60
    )
    spread: bool = setting(False, "Give every node at least one layer, even where fewer nodes would be faster.")
    spares: int = setting(0, "Nodes to keep idle, ready to replace one that is lost.", low=0, high=1024)
    min_memory: str = setting("", "Minimum memory of a node that joins, like 1GiB; empty: any.")
    min_speed: float = setting(0.0, "Minimum speed of a node that joins, in GB/s of weights read at decode; 0: any.", low=0)
    max_nodes: int = setting(1024, "Most nodes in the cluster.", low=1, high=1024)
    pace: float = setting(5.0, "Seconds between checks for a stage that is slower than its node measured; 0: never.", low=0, high=3600)
    step_timeout: float = setting(120.0, "Seconds after which a step without a result counts as lost.", low=1, high=1e6)
    state: str = setting("", "Folder for running requests, so that they survive a restart of the head; none: do not keep them.")
    resume: float = setting(60.0, "Seconds in which a client that named its request may come back for the answer.", low=0, high=86400)
    wait: float = setting(600.0, "Seconds that running requests wait for nodes when too few are left.", low=0, high=1e6)
    lease: str = setting(
        "",
        "Who decides which of several heads leads: redis://HOST:PORT, etcd://HOST:2379, kubernetes, or witness://HOST:7430; empty: this head is "
        "the only one.",
    )
    lease_seconds: float = setting(
        2.0, "Seconds for which a head holds the lease: the longer, the later a lost head is noticed.", low=0.5, high=600
    )
    standby: str = setting(
        "", "HOST:PORT of the head to stand by for: keep a copy of its requests, and lead when it is lost. It needs the same --lease."
    )
    code: str = setting("", "The pairing code of that head. Needed once, on another machine: this one then keeps a certificate.")
    replicate: Replicate = setting(
        Replicate.BEFORE, "When a token is handed out: before, when the standbys with a copy have it, too; after: at once."
    )

    sections: tuple[ModelSection, ...] = beside(())
    """Of single models."""

    def of_model(self, section: ModelSection | None) -> ModelSettings:
        """How a model is served. section: what is said of it alone; None: nothing. Raises ConfigError."""
        values = {**values_of(self), "replicas": self.first_replicas}
        if section is None:
            return composed(ModelSettings, values)
        try:
            model = composed(ModelSettings, {**values, **section.values})
            self._check_replicas(model.replicas, "replicas =")
        except ConfigError as error:
            raise ConfigError(f"{section.where}: {error}") from None
        return model

    @property
    def models(self) -> list[str]:
        """What --model names, the default first; empty: upstreams alone answer."""
        return [] if self.engine.model == "none" else _listed(self.engine.model)

    @property
    def needs_key(self) -> bool:
        """Whether requests to the API need a key even if none was created."""
        return self.api.needs_key and not self.unprotected

    @property
    def served_api(self) -> ApiSettings:
        """The API's settings, as this head serves it."""
        return dataclasses.replace(self.api, open_api=not self.needs_key)

    @property
    def protected(self) -> bool:
        """Whether nodes need a certificate."""
        return self.secure or (not is_loopback(self.host) and not self.unprotected)

    def check(self) -> None:
        self._check_host("host")
        if self.secure and self.unprotected:
            raise ContradictorySettings("--secure and --unprotected exclude each other")
        if self.min_memory:
            parse_bytes(self.min_memory)
        if not self.models and not self.api.upstreams:
            raise ContradictorySettings("--model none serves what other servers have: it needs --upstream")
        if self.idle and not self.on_demand:
            raise ContradictorySettings("--idle unloads models that requests load again: it needs --on-demand")
        if self.standby:
            try:
                object.__setattr__(self, "standby", str(parse_address(self.standby)))
            except ConfigError as error:
                raise ConfigError(f"--standby: {error}") from None
        elif self.code:
            raise ContradictorySettings("--code pairs a standby: it needs --standby HOST:PORT")
        if self.lease and self.state == "none":
            raise ContradictorySettings("--lease needs a folder for running requests: --state must not be none")
        if self.spares >= self.max_nodes:
            raise ContradictorySettings(f"--spares {self.spares} leaves no node to serve: --max-nodes is {self.max_nodes}")
        self._check_scaling()
        if self.state_folder is not None and self.state_folder.exists() and not self.state_folder.is_dir():
            raise ConfigError(f"--state {self.state} is a file; name a folder, or none")
        for section in self.sections:
            self.of_model(section)

    def _check_scaling(self) -> None:
        """Raises ConfigError."""
        scaling = self.scaling
        if not scaling.on:
            used = {"--forecast": scaling.forecast, "--more-nodes": scaling.more_nodes is not MoreNodes.NONE}
            if flag := next((flag for flag, given in used.items() if given), None):
                raise ContradictorySettings(f"{flag} is for models that are scaled: give --replicas-max, or --replicas-min 0, too")
            return
        if self.replicas:
            self._check_replicas(self.replicas, "--replicas")
        if self.idle:
            raise ContradictorySettings(
                "--idle and --replicas-max exclude each other: with --replicas-min 0, models go after --scale-idle seconds"
            )

    def _check_replicas(self, replicas: int, setting: str) -> None:
        """Raises ConfigError."""
        scaling = self.scaling
        if scaling.on and not max(scaling.replicas_min, 1) <= replicas <= scaling.replicas_max:
            bounds = f"--replicas-min {scaling.replicas_min} and --replicas-max {scaling.replicas_max}"
            raise ContradictorySettings(f"{setting} {replicas} is not within {bounds}; leave it out to begin with the fewest")

    @property
    def first_replicas(self) -> int:
        """Copies with which a model begins."""
        return self.replicas or max(self.scaling.replicas_min, 1)

    @property
    def state_folder(self) -> Path | None:
        return user_path(self.state) if self.state not in ("", "none") else None

    def kept_by_default(self) -> HeadSettings:
        """These settings with a state folder named after the port, so that a restarted head finds its requests; unchanged if one is set."""
        if self.state or not self.api.port:
            return self
        return dataclasses.replace(self, state=str(state_dir() / "heads" / str(self.api.port)))
