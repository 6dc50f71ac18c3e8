"""The commands, and how their errors are reported."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import sys
from typing import Annotated, Any, cast

import typer

from shoal import __version__
from shoal.cli import commands, configuration, fleet, garbage, keys, models, nodes, ray, service
from shoal.cli.log_format import LogFormat
from shoal.cli.options import LogLines, Verbose, from_file, loaded, sections
from shoal.environment import keep_to_own_folders, mute_grpc
from shoal.errors import ConfigError, ShoalError, UserError

app = typer.Typer(
    name="shoal",
    help="One large language model across the machines you already have.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"shoal {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")] = False,
    verbose: Verbose = False,
    log_format: LogLines = LogFormat.TEXT,
) -> None:
    from shoal.cli.logs import log_to_stderr
    from shoal.cli.show import line

    warning = ""
    with contextlib.suppress(ConfigError):  # reported by the command that needs the file, and not by one that helps
        verbose, log_format = from_file(context, "verbose", "", verbose), from_file(context, "log_format", "", log_format)
        warning = loaded().warning(sections())
    log_to_stderr(logging.INFO if verbose else logging.WARNING, log_format)
    if warning:
        line(warning, "yellow")


commands.register(app)
app.add_typer(configuration.app, name="config")
app.add_typer(fleet.app, name="fleet")
app.add_typer(keys.app, name="keys")
app.add_typer(models.app, name="models")
app.add_typer(nodes.app, name="nodes")
app.add_typer(ray.app, name="ray")
app.add_typer(service.app, name="service")


def _say(error: Exception) -> None:
    from rich.text import Text

    from shoal.cli.show import err

    if err.log is not None:
        err.log.error(str(error))
    else:
        err.print(Text.assemble(("error:", "red"), f" {error}"), soft_wrap=True)


def _show_usage(error: Any) -> None:
    """Prints what is wrong with the command line."""
    from shoal.cli.show import err

    error.message = error.message.removeprefix("Value error, ")  # typer has it from pydantic
    if err.log is not None:
        err.log.error(error.format_message())
    else:
        error.show()


def _open_streams() -> None:
    """Opens stdin, stdout and stderr if the parent closed them. Otherwise sockets get their numbers, and libuv aborts a process that closes one."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None and os.open(os.devnull, os.O_RDWR) == number:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - lives as long as the process


def main() -> None:
    """Runs the command line. Exit status: 0, 1 if something failed, 2 if the user can fix it, 130 after Ctrl-C."""
    garbage.postpone()
    _open_streams()
    keep_to_own_folders()
    mute_grpc()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal with another encoding shows what it can
    try:
        status = app(standalone_mode=False, prog_name="shoal")
        sys.stdout.flush()
    except ShoalError as error:
        _say(error)
        sys.exit(2 if isinstance(error, UserError) else 1)
    except typer.TyperException as error:
        _show_usage(cast(Any, error))
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        # An error of a file or disk: something on this machine needs repair, and a traceback would not help.
        _say(error)
        sys.exit(1)
    sys.exit(status if isinstance(status, int) else 0)
