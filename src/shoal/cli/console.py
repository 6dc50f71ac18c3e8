"""`shoal console`: opens the web page of a running head."""

from __future__ import annotations

import webbrowser

import httpx2

from shoal.address import is_loopback
from shoal.cli.asking import base_url
from shoal.cli.options import of_file
from shoal.cli.show import line, line_out
from shoal.config import ApiSettings
from shoal.errors import ClusterError
from shoal.settings import from_environment

_PATIENCE = 10.0  # seconds


def console(server: str) -> None:
    """server: '': the one that the settings of this machine name. Raises ClusterError, ConfigError."""
    url = base_url(server) or here()
    _check(url)
    address = f"{url}/console/"
    line_out(address)
    if not webbrowser.open(address):
        line("no browser could be opened here; open the address in one")


def here() -> str:
    settings = from_environment(ApiSettings, {}, file=of_file(ApiSettings))
    host = settings.api_host
    reached = "127.0.0.1" if host in ("0.0.0.0", "::") or is_loopback(host) else host
    return f"http://{f'[{reached}]' if ':' in reached else reached}:{settings.port or ApiSettings.port}"


def _check(url: str) -> None:
    """Raises ClusterError if there is no console."""
    try:
        answer = httpx2.get(f"{url}/console/", timeout=_PATIENCE, trust_env=False)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        why = str(error) or type(error).__name__
        raise ClusterError(
            f"{url} does not answer: {why}; start `shoal up` or `shoal serve`, or name another server: shoal console http://HOST:8000"
        ) from error
    if answer.status_code == 503 and answer.headers.get("content-type", "").startswith("text/html"):
        raise ClusterError(
            f"the console of {url} was not built: run `make console` in the folder of its sources and start it again, or install a wheel"
        )
    if answer.status_code != 200:
        raise ClusterError(f"{url} has no console (status {answer.status_code}); is a shoal of this version running there?")
