"""`witness`: keeps the lease by which one of a cluster's heads leads."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from shoal.address import Address, is_loopback, is_wildcard, parse_host
from shoal.cli.loop import run
from shoal.cli.relocation import move_in
from shoal.cli.show import line
from shoal.cli.waiting import stop_signal
from shoal.errors import ConfigError
from shoal.file_lock import locked
from shoal.folders import state_dir, user_path
from shoal.leadership.clock import elapsed
from shoal.leadership.ledger import WitnessLedger
from shoal.leadership.witness_server import WitnessServer
from shoal.security.certificates import Role
from shoal.security.credentials import Credentials
from shoal.security.private_file import check_writable


def witness(host: str, port: int, credentials: str, ledger: str, unprotected: bool) -> None:
    """Serves until Ctrl-C. Raises ConfigError."""
    move_in()
    host = parse_host(host)
    shown = _credentials(credentials) if credentials else None
    if shown is None and not is_loopback(host) and not unprotected:
        raise ConfigError(
            "a witness that other machines reach needs a certificate, or anybody could take the lease: run `shoal nodes certify --witness "
            "--output witness.pem` on the head's machine, and give the file here with --credentials; or --unprotected"
        )
    path = user_path(ledger) if ledger else state_dir() / "witness" / "leases.json"
    check_writable(path)
    with path.with_name(path.name + ".lock").open("ab") as lock:
        if not locked(lock.fileno()):
            raise ConfigError(f"another witness uses {path}; stop it, or name another file with --ledger")
        run(_serve(host, port, shown, path))


def _credentials(path: str) -> Credentials:
    """Raises ConfigError."""
    credentials = Credentials.load(user_path(path))
    credentials.check(datetime.now(UTC))
    if credentials.role is not Role.WITNESS:
        raise ConfigError(f"{path} is a {credentials.role}'s certificate; make a witness's with `shoal nodes certify --witness`")
    return credentials


async def _serve(host: str, port: int, credentials: Credentials | None, path: Path) -> None:
    stop = stop_signal()
    server = WitnessServer(WitnessLedger(path, elapsed), credentials)
    await server.start(host, port)
    address = Address("HOST" if is_wildcard(host) else host, server.port)
    line(f"witness at {address}: give each head --standby and --lease witness://{address}")
    try:
        await stop.wait()
    finally:
        await server.stop()
