"""The settings of each role: one frozen dataclass per role, every field documented and checked here.

This, `environment` and `folders` alone read the environment. The command line derives its flags from these fields: a field `kv_blocks` of a role is the flag
`--kv-blocks`, the variable `SHOAL_KV_BLOCKS`, and the key `kv-blocks` of the configuration file. They count in this order.
"""

from __future__ import annotations

import dataclasses
import enum
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from shoal.address import is_loopback, parse_host
from shoal.allowance import processors
from shoal.errors import ConfigError
from shoal.folders import data_dir, state_dir, user_path


class Precision(enum.StrEnum):
    AUTO = "auto"
    FP32 = "fp32"
    Q8 = "q8"
    Q4 = "q4"


class KvType(enum.StrEnum):
    FP32 = "fp32"
    BF16 = "bf16"


class Codec(enum.StrEnum):
    RAW = "raw"
    BF16 = "bf16"
    INT8 = "int8"
    INT4 = "int4"


class RuntimeName(enum.StrEnum):
    AUTO = "auto"
    NATIVE = "native"
    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_bytes(text: str) -> int:
    """'1.5GiB' → 1610612736. Raises ConfigError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise ConfigError(f"'{text}' is not a size; write one like 512MiB or 1.5GiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def default_threads() -> int:
    """The cores that this process may use."""
    return processors().usable


S = TypeVar("S", bound="Settings")


def setting(default: Any, help: str, *, low: float | None = None, high: float | None = None) -> Any:
    """A documented field; numbers are checked against [low, high]."""
    return dataclasses.field(default=default, metadata={"help": help, "low": low, "high": high})


def part(role: type[S]) -> Any:
    """A role that is a part of another one: its settings count among the other's."""
    return dataclasses.field(default_factory=role, metadata={"role": role})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of the roles."""

    def __post_init__(self) -> None:
        kinds = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            if "role" in field.metadata:
                continue
            if isinstance(kinds[field.name], type) and issubclass(kinds[field.name], enum.Enum):
                self._choose(field.name, kinds[field.name])
            value, low, high = getattr(self, field.name), field.metadata.get("low"), field.metadata.get("high")
            flag = "--" + field.name.replace("_", "-")
            if value is None or isinstance(value, str | bool) or low is None:
                continue
            if not (low <= value and (high is None or value <= high)):  # a NaN fails this too
                upper = f" and at most {high:g}" if high is not None else ""
                raise ConfigError(f"{flag} must be at least {low:g}{upper}, not {value}")
        self.check()

    def _choose(self, name: str, kind: type[enum.Enum]) -> None:
        """A plain string becomes the choice that it names."""
        try:
            object.__setattr__(self, name, kind(getattr(self, name)))
        except ValueError:
            choices = ", ".join(str(choice.value) for choice in kind)
            raise ConfigError(f"--{name.replace('_', '-')} is one of {choices}, not '{getattr(self, name)}'") from None

    def check(self) -> None:
        """Checks the fields together. Raises ConfigError."""

    def _check_host(self, name: str) -> None:
        """Keeps a host in its one form. Raises ConfigError."""
        try:
            object.__setattr__(self, name, parse_host(getattr(self, name)))
        except ConfigError as error:
            raise ConfigError(f"--{name.replace('_', '-')}: {error}") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class NodeSettings(Settings):
    """A node: what it may use of its machine."""

    name: str = setting("", "The node's name in listings; the host name and a number where empty.")
    cluster: str = setting("", "The cluster to look for where no address is given; empty: the only one there is.")
    discovery: str = setting("mdns", "Where to look for it: mdns, redis://HOST:PORT (with shoal[redis]) or none.")
    code: str = setting("", "The pairing code that `shoal serve` shows; needed once, this machine then keeps a certificate.")
    pairing_port: int = setting(0, "Port that the code is presented at; 0: the one after the head's.", low=0, high=65535)
    bind: str = setting("", "Address that the tensor port listens on; empty: the one that faces the head.")
    tensor_port: int = setting(0, "TCP port for tensors; 0 takes a free one.", low=0, high=65535)
    memory: str = setting(
        "", "Most memory that weights and KV blocks may take, like 1GiB; empty: three quarters of what is free to this process."
    )
    threads: int = setting(0, "Threads that compute; 0 takes every core that this process may use.", low=0, high=1024)
    runtime: RuntimeName = setting(RuntimeName.AUTO, "What runs the layers; auto times what is installed and keeps the fastest.")
    journal: str = setting("256MiB", "Most memory for what the stage put out, kept so that a lost neighbour is refilled fast; 0: none.")
    journal_disk: str = setting("1GiB", "Most disk for what of that does not fit in memory; 0: none.")
    share: bool = setting(True, "Let other nodes fetch model files from this one, and fetch from them.")
    patience: float = setting(600.0, "Seconds to look for the head after it was lost; 0 leaves at once.", low=0, high=1e6)
    isa: str = setting("", "Instruction set of the kernels: avx512, avx2 or portable; empty takes the best.")

    def check(self) -> None:
        if self.bind:
            self._check_host("bind")
        for size in (self.memory, self.journal, self.journal_disk):
            if size:
                parse_bytes(size)
        if self.isa not in ("", "avx512", "avx2", "portable"):
            raise ConfigError(f"--isa is avx512, avx2 or portable, not '{self.isa}'")

    @property
    def compute_threads(self) -> int:
        return self.threads or default_threads()

    @property
    def journal_memory(self) -> int:
        """Bytes; at most an eighth of the memory that was granted."""
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
        "A name of the catalogue, a .gguf file, a directory, or hf:org/name[:QUANT][@revision]; `shoal models` lists what is here.",
    )
    precision: Precision = setting(Precision.AUTO, "Weights as executed; auto keeps the precision of the file.")
    kv_type: KvType = setting(KvType.BF16, "How keys and values are cached.")
    context: int = setting(8192, "Most tokens of a sequence, prompt and answer; the model's own limit where that is lower.", low=16)
    slots: int = setting(32, "Sequences that run at once.", low=1, high=4096)
    kv_tokens: int = setting(0, "Tokens that the KV pool holds; 0: what fits, up to slots times half the context.", low=0)
    step_tokens: int = setting(256, "Most tokens of one step, prefill and decode together.", low=16, high=8192)
    prompt_wait: float = setting(
        0.5, "Most seconds, about, that a running answer waits for others' prompts; 0: for as long as --step-tokens take.", low=0, high=3600
    )
    queue: int = setting(
        512, "Requests that may wait; more get 429. Counted are those of the own and of higher classes: batch work keeps nobody out.", low=1
    )
    chat_template: str = setting(
        "", "A file with a Jinja chat template, in place of the model's own; with one that has tools it can call them."
    )
    activations: Codec = setting(Codec.RAW, "Encoding of activations between nodes: raw keeps results exact, bf16 halves the bytes.")

    def check(self) -> None:
        if not self.model:
            raise ConfigError("--model must name a model; see `shoal models`")
        if self.kv_tokens and self.kv_tokens < 64:
            raise ConfigError("--kv-tokens must be 0 or at least 64")
        if self.chat_template_file is not None and not self.chat_template_file.is_file():
            raise ConfigError(f"--chat-template {self.chat_template} is no file")

    @property
    def chat_template_file(self) -> Path | None:
        """None: the model's own."""
        return user_path(self.chat_template) if self.chat_template else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ApiSettings(Settings):
    """The OpenAI-compatible API: the same on `up` and `serve`."""

    api_host: str = setting("127.0.0.1", "Address that the API listens on; beyond this machine it needs a key (`shoal keys create`).")
    trust_text: bool = setting(
        False, "Read control tokens in what users, tools and documents write, too: whoever writes text can then forge turns of a chat."
    )
    open_api: bool = setting(False, "Let the API listen beyond this machine without a key: whoever reaches it can use it.")
    port: int = setting(8000, "Port of the OpenAI-compatible API; 0 takes a free one.", low=0, high=65535)
    api_workers: int = setting(0, "Processes that serve the API, beside the head's own; 0 or 1: it serves it itself.", low=0, high=64)
    data: str = setting("", "Folder for what the API keeps: keys, responses, files, batches; empty: ~/.local/share/shoal/api.")
    cors: str = setting("", "Web pages that may use the API: origins like https://chat.example, by commas; * for all; empty: none.")
    connections: int = setting(1000, "Connections that clients may have at once, running answers and idle ones.", low=1, high=1_000_000)
    keep_alive: float = setting(30.0, "Seconds that a client's connection may idle between two requests.", low=1, high=3600)
    stall: float = setting(30.0, "Seconds in which a client that is behind has to read 32 KiB, or it is dropped.", low=1, high=3600)
    ping: float = setting(
        5.0, "Seconds of silence after which an event stream says that it lives, in a comment; 0: never.", low=0, high=3600
    )
    grace: float = setting(30.0, "Seconds that answers under way have to end when the server is told to stop.", low=0, high=3600)

    responses: int = setting(
        10000, "Most responses that are kept for previous_response_id; the ones longest unused go; 0: none are.", low=0
    )
    responses_size: str = setting("256MiB", "Most space for them on the disk.")
    responses_days: float = setting(30.0, "Days after which a response is forgotten.", low=0, high=3650)
    max_file: str = setting("100MiB", "Largest file that may be uploaded.")
    max_files: int = setting(1000, "Files that are kept, of all clients; outputs of batches are never refused, but count.", low=1)
    files_space: str = setting("1GiB", "Disk that they may take together.")
    batch_requests: int = setting(50_000, "Most requests of one batch.", low=1)
    batch_queue: int = setting(100, "Batches that may wait or run; more are refused with 429.", low=1)
    batch_concurrency: int = setting(8, "Requests of batches that run at once, below all others.", low=1, high=4096)

    def check(self) -> None:
        self._check_host("api_host")
        for flag, size in (("--max-file", self.max_file), ("--files-space", self.files_space), ("--responses-size", self.responses_size)):
            try:
                parse_bytes(size)
            except ConfigError as error:
                raise ConfigError(f"{flag}: {error}") from None
        for origin in self.origins:
            if origin != "*" and re.fullmatch(r"https?://[^/\s*]+", origin) is None:
                raise ConfigError(f"--cors takes origins like https://chat.example or http://localhost:3000, not '{origin}'")
        if self.data_folder.exists() and not self.data_folder.is_dir():
            raise ConfigError(f"--data {self.data} is a file; name a folder")

    @property
    def responses_bytes(self) -> int:
        return parse_bytes(self.responses_size)

    @property
    def data_folder(self) -> Path:
        """It need not be there yet."""
        return user_path(self.data) if self.data else data_dir() / "api"

    @property
    def origins(self) -> list[str]:
        """Of web pages that may use the API."""
        return [origin.strip() for origin in self.cors.split(",") if origin.strip()]

    @property
    def exposed(self) -> bool:
        """Whether the API listens beyond this machine."""
        return not is_loopback(self.api_host)

    @property
    def needs_key(self) -> bool:
        """Whether requests need a key even where none was made."""
        return self.exposed and not self.open_api

    @property
    def max_file_bytes(self) -> int:
        return parse_bytes(self.max_file)

    @property
    def files_space_bytes(self) -> int:
        return parse_bytes(self.files_space)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadSettings(Settings):
    """The head: the API, the scheduler and the cluster's membership."""

    engine: EngineSettings = part(EngineSettings)
    api: ApiSettings = part(ApiSettings)

    host: str = setting("127.0.0.1", "Address that nodes reach this machine at; beyond this machine they need the pairing code, once.")
    secure: bool = setting(False, "Ask for the pairing code and encrypt on this machine's own addresses too.")
    cluster: str = setting("shoal", "The cluster's name, by which nodes find it.")
    discovery: str = setting("mdns", "Where the cluster is announced: mdns, redis://HOST:PORT (with shoal[redis]) or none.")
    unprotected: bool = setting(False, "No code, no keys, no encryption: whoever reaches the ports can join and read all that is said.")
    pairing_port: int = setting(0, "Port that nodes present the code at; 0: the control port's number plus one.", low=0, high=65535)
    control_port: int = setting(7420, "Port that nodes join at; 0 takes a free one.", low=0, high=65535)
    min_nodes: int = setting(1, "Nodes to wait for before the model is loaded.", low=1, high=1024)
    heartbeat: float = setting(
        0.5, "Seconds between a node's heartbeats; after eight of them in silence it counts as lost.", low=0.05, high=60
    )
    spread: bool = setting(False, "Give every node at least one layer, even where fewer nodes would be faster.")
    spares: int = setting(0, "Nodes to keep out of the route, ready to take over from one that is lost.", low=0, high=1024)
    min_memory: str = setting("", "Least memory of a node that may join, like 1GiB; empty: any.")
    min_speed: float = setting(0.0, "Least speed of a node that may join, in GB/s of weights at decode; 0: any.", low=0)
    max_nodes: int = setting(1024, "Most nodes.", low=1, high=1024)
    pace: float = setting(5.0, "Seconds between looks at whether a stage is slower than its node measured; 0: never.", low=0, high=3600)
    step_timeout: float = setting(120.0, "Seconds after which a step without a result counts as lost.", low=1, high=1e6)
    state: str = setting("", "Folder in which requests under way are kept, so that they survive a restart of the head; none: not kept.")
    resume: float = setting(60.0, "Seconds for which a client that named its request may come back for the answer.", low=0, high=86400)
    wait: float = setting(600.0, "Seconds that requests under way wait for nodes when too few are left.", low=0, high=1e6)

    @property
    def needs_key(self) -> bool:
        """Whether requests to the API need a key even where none was made."""
        return self.api.needs_key and not self.unprotected

    @property
    def served_api(self) -> ApiSettings:
        """Those of the API as this head serves it."""
        return dataclasses.replace(self.api, open_api=not self.needs_key)

    @property
    def protected(self) -> bool:
        """Whether nodes need a certificate."""
        return self.secure or (not is_loopback(self.host) and not self.unprotected)

    def check(self) -> None:
        self._check_host("host")
        if self.secure and self.unprotected:
            raise ConfigError("--secure and --unprotected exclude each other")
        if self.min_memory:
            parse_bytes(self.min_memory)
        if self.spares >= self.max_nodes:
            raise ConfigError(f"--spares {self.spares} leaves no node to serve: --max-nodes is {self.max_nodes}")
        if self.state_folder is not None and self.state_folder.exists() and not self.state_folder.is_dir():
            raise ConfigError(f"--state {self.state} is a file; name a folder, or none")

    @property
    def state_folder(self) -> Path | None:
        return user_path(self.state) if self.state not in ("", "none") else None

    def kept_by_default(self) -> HeadSettings:
        """Requests are kept where nothing is said, too: a head that comes again at the same port finds them."""
        if self.state or not self.api.port:
            return self
        return dataclasses.replace(self, state=str(state_dir() / "heads" / str(self.api.port)))


@dataclasses.dataclass(frozen=True)
class Setting:
    """One of a role. role: the one that declares it, the role itself or a part of it."""

    name: str
    kind: type[Any]
    default: Any
    help: str
    role: type[Settings]


def settings_of(role: type[Settings]) -> list[Setting]:
    """Those of its parts among them."""
    found: list[Setting] = []
    kinds = get_type_hints(role)
    for field in dataclasses.fields(role):
        if "role" in field.metadata:
            found += settings_of(field.metadata["role"])
        else:
            found.append(Setting(field.name, kinds[field.name], field.default, field.metadata["help"], role))
    return found


def values_of(settings: Settings) -> dict[str, Any]:
    """By name, those of the parts among them."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        values.update(values_of(value) if isinstance(value, Settings) else {field.name: value})
    return values


def composed(role: type[S], values: Mapping[str, Any]) -> S:
    """A role's settings, from those that are not the defaults, by name; others' are left alone. Raises ConfigError."""
    own = {
        field.name: composed(field.metadata["role"], values) if "role" in field.metadata else values[field.name]
        for field in dataclasses.fields(role)
        if "role" in field.metadata or field.name in values
    }
    return role(**own)


def _boolean(text: str) -> bool:
    """Raises ValueError."""
    known = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False, "": False}
    if text.lower() not in known:
        raise ValueError("write true or false")
    return known[text.lower()]


def variable(name: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """What the environment says; None where it says nothing."""
    return environment.get(name)


def variables(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The names of shoal's own that are set."""
    return sorted(name for name in environment if name.startswith("SHOAL_"))


def from_environment(
    role: type[S], given: Mapping[str, Any], environment: Mapping[str, str] = os.environ, file: Mapping[str, Any] | None = None
) -> S:
    """A role's settings: what was given, else the environment, else the file, else the defaults. Raises ConfigError.

    file: values by field; fields of other roles are left alone
    """
    values: dict[str, Any] = {}
    for setting in settings_of(role):
        name, variable = setting.name, "SHOAL_" + setting.name.upper()
        if given.get(name) is not None:
            values[name] = given[name]
        elif variable in environment:
            kind: Any = _boolean if setting.kind is bool else setting.kind
            try:
                values[name] = kind(environment[variable])
            except ValueError as error:
                raise ConfigError(f"{variable}={environment[variable]!r}: {error}") from error
        elif file is not None and name in file:
            values[name] = file[name]
    return composed(role, values)
