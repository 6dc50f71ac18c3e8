"""`shoal service`: a head or a node that starts with the machine and is kept running by systemd."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from shoal.cli.options import flag, with_one_text
from shoal.cli.systemd_unit import Account, stops_after, unit
from shoal.config import HeadSettings
from shoal.environment import shell
from shoal.errors import ConfigError, ShoalError
from shoal.settings import from_environment

app = typer.Typer(help="Keep `shoal serve` or `shoal join` running with systemd.", no_args_is_help=True)

_KINDS = ("serve", "join")
_SECRETS = ("--code", "--api-key")
_KEPT_OUT = "put it into the service's environment file instead, as {variable}=…"

System = Annotated[bool, flag("--system", "A system service, started at boot; without it, a service of your user.")]


class ServiceFailed(ShoalError):
    """A systemctl command failed."""


@dataclass(frozen=True)
class Place:
    """Where a manager's units are, and how to talk to it."""

    system: bool

    @property
    def folder(self) -> Path:
        if self.system:
            return Path("/etc/systemd/system")
        return shell().config_home / "systemd" / "user"

    @property
    def environment_file(self) -> Path:
        return (Path("/etc") if self.system else shell().config_home) / "shoal" / "service.env"

    def unit(self, kind: str) -> Path:
        return self.folder / f"shoal-{kind}.service"

    def command(self, *arguments: str) -> list[str]:
        return ["systemctl", *([] if self.system else ["--user"]), *arguments]

    @property
    def installed(self) -> list[str]:
        return [kind for kind in _KINDS if self.unit(kind).exists()]


@app.command(context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True})
def install(
    context: typer.Context,
    command: Annotated[list[str], typer.Argument(metavar="serve|join [ARGUMENTS]...", help="The command to run, as you would type it.")],
    system: System = False,
    account: Annotated[str, flag("--account", "Account that a system service runs as; empty: the user who called sudo.")] = "",
    no_start: Annotated[bool, flag("--no-start", "Write the unit without starting or enabling it.")] = False,
) -> None:
    """Write a unit, start it and enable it. Example: [bold]shoal service install join 192.168.1.20:7420 --memory 4GiB[/bold]

    If the head is on another machine, this node needs a certificate first: run [bold]shoal join --code …[/bold] once, as the same user.
    """
    from shoal.cli.show import line_out

    place, kind = Place(system), command[0]
    _refuse_secrets(command)
    stops = _stops(context, command)
    owner = _account(account) if system else None
    if account and not system:
        raise ConfigError("--account is for system services; add --system")
    path = place.unit(kind)
    text = unit([_program(), *command], stops, owner)
    before = path.read_text() if path.exists() else None
    _write(path, text)
    line_out(f"{'wrote' if before is None else 'replaced' if before != text else 'left as it was:'} {path}")
    _tell_environment(place)
    todo = [
        place.command("daemon-reload"),
        *([place.command("enable", path.name), place.command("restart", path.name)] if not no_start else []),
    ]
    _carry_out(todo)
    if no_start:
        line_out(f"to start it: {shlex.join(place.command('enable', '--now', path.name))}")
    if not system:
        line_out(_lingering())


@app.command()
def uninstall(
    kind: Annotated[str, typer.Argument(metavar="[serve|join]", help="Which service; both if neither is given.")] = "",
    system: System = False,
) -> None:
    """Stop a service and remove its unit. Models, keys and certificates stay."""
    from shoal.cli.show import line_out

    place = Place(system)
    for name in _chosen(place, kind):
        path = place.unit(name)
        try:
            _carry_out([place.command("disable", "--now", path.name)])
        finally:  # a unit that cannot be stopped must not start again either
            _remove(path)
            line_out(f"removed {path}")
    _carry_out([place.command("daemon-reload")])


@app.command()
def status(system: System = False) -> None:
    """Show the services and whether they run. Exit status 1 if one does not."""
    from shoal.cli.show import line_out

    place = Place(system)
    if not place.installed:
        line_out(f"no service: there is neither {' nor '.join(str(place.unit(kind)) for kind in _KINDS)}")
        return
    well = True
    for kind in place.installed:
        path = place.unit(kind)
        known = [_answer(place.command(question, path.name)) for question in ("is-active", "is-enabled")]
        well = well and known[0] == "active"
        line_out(f"{path.name}: {known[0]}, {known[1]} ({path})")
    journal = ["journalctl", *([] if system else ["--user"]), "--follow", *(f"--unit={place.unit(kind).name}" for kind in place.installed)]
    line_out(f"what it writes: {shlex.join(journal)}")
    if not well:
        raise typer.Exit(1)


def _chosen(place: Place, kind: str) -> list[str]:
    if kind and kind not in _KINDS:
        raise ConfigError(f"a service runs {' or '.join(_KINDS)}, not {kind}")
    found = [name for name in place.installed if kind in ("", name)]
    if not found:
        raise ConfigError(f"there is no service to remove: no {' and no '.join(str(place.unit(k)) for k in ([kind] if kind else _KINDS))}")
    return found


def _program() -> str:
    """The `shoal` program that was called. Raises ConfigError."""
    called = Path(sys.argv[0])
    found = shutil.which(sys.argv[0]) if called.name == "shoal" else str(Path(sys.executable).with_name("shoal"))
    if found is None or not os.access(found, os.X_OK):
        raise ConfigError("the command shoal is not installed with this Python; install shoal and run it as `shoal`")
    return os.path.abspath(found)


def _stops(context: typer.Context, command: list[str]) -> float:
    """Seconds that the command has to end. Raises ConfigError, and the command line's errors if it is invalid."""
    kind, *arguments = command
    if kind not in _KINDS:
        raise ConfigError(f"a service runs {' or '.join(_KINDS)}, not {kind}")
    root: Any = context.find_root().command
    parsed: dict[str, Any] = root.commands[kind].make_context(f"shoal {kind}", list(arguments)).params
    if kind == "join":
        return stops_after(kind, 0)
    return stops_after(kind, from_environment(HeadSettings, with_one_text(parsed)).api.grace)


def _refuse_secrets(command: list[str]) -> None:
    """Refuses secrets: anybody can read a unit."""
    for word in command:
        if (option := word.partition("=")[0]) in _SECRETS:
            variable = "SHOAL_" + option.removeprefix("--").replace("-", "_").upper()
            how = (
                "a code is good once: run `shoal join --code …` by hand first"
                if option == "--code"
                else _KEPT_OUT.format(variable=variable)
            )
            raise ConfigError(f"{option} must not be in a unit, which others can read; {how}")
        if "://" in word and "@" in word.partition("://")[2].partition("/")[0]:
            raise ConfigError(
                f"a URL with a password does not belong into a unit, which others can read; {_KEPT_OUT.format(variable='SHOAL_DISCOVERY')}"
            )


def _account(name: str) -> Account:
    try:
        import pwd
    except ImportError:
        raise ConfigError("there is no systemd on this system") from None
    name = name or shell().caller
    if not name:
        raise ConfigError("--system needs --account NAME: the account whose models, keys and certificates the service uses")
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        raise ConfigError(f"there is no account {name}; useradd --system --create-home {name} makes one") from None
    if found.pw_uid == 0:
        raise ConfigError("a shoal service must not run as root; choose another --account")
    return Account(name, found.pw_dir)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot write {path}: {error.strerror or error}" + ("; --system needs root" if isinstance(error, PermissionError) else "")
    )


def _tell_environment(place: Place) -> None:
    """Says that a service does not get the shell's variables."""
    from shoal.cli.show import line_out

    if own := shell().own:
        line_out(f"it does not see {', '.join(own)} of this shell: what it is to have belongs into {place.environment_file}")


def _carry_out(commands: list[list[str]]) -> None:
    """Runs the commands, or shows which must be run. Raises ServiceFailed."""
    from shoal.cli.show import line_out

    if shutil.which("systemctl") is None:
        for command in commands:
            line_out(f"systemctl is not here; where it is, run: {shlex.join(command)}")
        return
    for command in commands:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            left = "; ".join(shlex.join(other) for other in commands[commands.index(command) :])
            raise ServiceFailed(f"{done.stderr.strip() or f'status {done.returncode}'}; what was left to run: {left}")
        line_out(f"ran {shlex.join(command)}")


def _answer(command: list[str]) -> str:
    if shutil.which("systemctl") is None:
        return "unknown (systemctl is not here)"
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return done.stdout.strip() or done.stderr.strip() or f"status {done.returncode}"


def _lingering() -> str:
    """A user's services end with the last session, unless the user lingers, which is the user's decision."""
    user = shell().user or Path.home().name
    lingers = Path("/var/lib/systemd/linger", user).exists()
    ask = "it starts with the machine, because you linger" if lingers else "it runs while you are logged in"
    return ask if lingers else f"{ask}; to have it run from boot on: loginctl enable-linger {shlex.quote(user)}"
