"""Environment variables of other programs and libraries, and the folders of theirs that shoal reads."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from shoal.errors import ConfigError
from shoal.folders import cache_dir, user_path

_SILENCE = {
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime 1.29 and later: device id and event database under ~/.cache/Microsoft, events over HTTPS
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub: detects agents and tells the hub which one runs it
    "HF_XET_TELEMETRY_ENABLED": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "DO_NOT_TRACK": "1",  # https://donottrack.sh, for other software that respects it
}


def keep_quiet(environment: MutableMapping[str, str] = os.environ) -> None:
    """Turns off the telemetry of libraries. Each reads its variable when it is first imported."""
    environment.update(_SILENCE)


def mute_grpc(environment: MutableMapping[str, str] = os.environ) -> None:
    """Stops gRPC from writing to stderr; its errors say the same. Call it before gRPC is imported."""
    environment.setdefault("GRPC_VERBOSITY", "NONE")


def keep_to_own_folders(environment: MutableMapping[str, str] = os.environ) -> None:
    """Moves the files of the hub's client (logs, chunks) into shoal's cache. The user's token and cache are read where they are."""
    base = environment.get("XDG_CACHE_HOME") or "~/.cache"
    theirs = environment.get("HF_HOME") or f"{base}/huggingface"
    environment.setdefault("HF_TOKEN_PATH", os.path.expanduser(f"{theirs}/token"))
    environment.setdefault("HF_HUB_CACHE", os.path.expanduser(f"{theirs}/hub"))
    with contextlib.suppress(ConfigError):  # no home: code that needs one reports it
        environment["HF_HOME"] = str(cache_dir(environment) / "huggingface")


def environment_with(**changes: str) -> dict[str, str]:
    """This process's environment with changes, for a child process."""
    return {**os.environ, **changes}


def otlp_protocol(environment: Mapping[str, str] = os.environ) -> str:
    """How traces are sent, where the standard variables say where to: 'grpc', or 'http/protobuf', which is the default."""
    names = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    return next((value for name in names if (value := environment.get(name))), "http/protobuf")


@dataclasses.dataclass(frozen=True)
class Shell:
    """The shell that a service is installed from. user and caller (who called sudo) are '' if unknown."""

    config_home: Path
    user: str
    caller: str
    own: tuple[str, ...]
    """Names of the SHOAL_ variables set in it."""


def shell(environment: Mapping[str, str] = os.environ) -> Shell:
    """Raises ConfigError if there is no home."""
    own = tuple(sorted(name for name in environment if name.startswith("SHOAL_")))
    config_home = user_path(environment.get("XDG_CONFIG_HOME") or "~/.config")
    return Shell(config_home, environment.get("USER", ""), environment.get("SUDO_USER", ""), own)


def hub_endpoint(environment: Mapping[str, str] = os.environ) -> str | None:
    """Address of the hub that `hf:` models come from; None: the public one."""
    return environment.get("HF_ENDPOINT")


def hub_folders(environment: Mapping[str, str] = os.environ) -> list[Path]:
    """Where the hub's own tools store models."""
    base = environment.get("XDG_CACHE_HOME") or "~/.cache"
    return _folders(environment.get("HF_HUB_CACHE") or f"{environment.get('HF_HOME') or f'{base}/huggingface'}/hub")


def ollama_folders(environment: Mapping[str, str] = os.environ) -> list[Path]:
    """Where Ollama stores models: the user's, and those of its service."""
    if chosen := environment.get("OLLAMA_MODELS"):
        return _folders(chosen)
    return _folders("~/.ollama/models", "/usr/share/ollama/.ollama/models", "/var/lib/ollama/.ollama/models", "/var/lib/ollama/models")


def lmstudio_folders() -> list[Path]:
    """Where LM Studio stores models, in newer and older versions."""
    return _folders("~/.lmstudio/models", "~/.cache/lm-studio/models")


def _folders(*texts: str) -> list[Path]:
    """The folders that exist."""
    found: list[Path] = []
    for text in texts:
        with contextlib.suppress(ConfigError, OSError):  # no home; a folder of another user
            if (path := user_path(text)).is_dir():
                found.append(path)
    return found
