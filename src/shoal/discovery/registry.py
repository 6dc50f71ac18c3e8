"""Opens the registry that a setting names."""

from __future__ import annotations

from importlib.util import find_spec

from shoal.discovery.base import Registry
from shoal.discovery.static import StaticRegistry
from shoal.errors import ConfigError

CHOICES = "mdns, none, redis://[:PASSWORD@]HOST:PORT[/DB] or rediss://…"


def check_installed() -> None:
    """Raises ConfigError if Redis cannot be used."""
    if find_spec("redis") is None:
        raise ConfigError("--discovery redis://… needs the redis package, which is not installed; pip install 'shoal[redis]'")


def open_registry(setting: str) -> Registry:
    """The registry of `--discovery`. Nothing is sent yet. Raises ConfigError."""
    # Each is imported on demand: a node with a given address needs neither zeroconf nor redis.
    if setting == "none":
        return StaticRegistry()
    if setting == "mdns":
        from shoal.discovery.mdns import MdnsRegistry

        return MdnsRegistry()
    if setting.startswith(("redis://", "rediss://")):
        check_installed()
        from shoal.discovery.redis import RedisRegistry

        return RedisRegistry(setting)
    shown = f" {setting[:40]!r}" if setting.isalnum() else ""  # anything else may contain a password
    raise ConfigError(f"--discovery{shown} is not one of {CHOICES}")
