"""An API that is open to the network: refused unless that was requested, and then said."""

from __future__ import annotations

from shoal.cli.show import err
from shoal.config import ListenerSettings
from shoal.errors import ConfigError


def check_open(settings: ListenerSettings, usable: bool, where: str = "") -> None:
    """usable: whether there is a key that is admitted. where: keys are made, if it is not on this machine. Raises ConfigError."""
    if settings.needs_key and not usable:
        raise ConfigError(
            f"--api-host {settings.api_host} is reachable from the network, and the API has no keys; make one {where}with `shoal keys create "
            "NAME`, or add --open-api to let whoever reaches it use it"
        )
    if settings.exposed and not usable:
        err.print(f"[yellow]open API:[/yellow] whoever reaches {settings.api_host} can use the model")
