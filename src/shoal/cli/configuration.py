"""`shoal config`: where settings come from, and an initial file."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any

import typer

from shoal.cli.options import Json, flag, known_variables, loaded, of_file, of_models, sections
from shoal.config import EngineSettings, GatewaySettings, HeadSettings, NodeSettings
from shoal.config_file import MODELS, ConfigFile, FileKey, header
from shoal.errors import ConfigError
from shoal.folders import config_file
from shoal.settings import from_environment, values_of, variable, variables
from shoal.spelling import suggestion

app = typer.Typer(help="Show settings and where each comes from; write a configuration file.", no_args_is_help=True)

_OTHERS = {"SHOAL_CACHE", "SHOAL_HOME", "SHOAL_CONFIG", "SHOAL_WEBHOOK_SECRET"}
_SECTIONS = {
    "": "Of every command.",
    "head": "shoal up and shoal serve; its model settings hold for what run, chat, batch, plan and bench start here, too.",
    "node": "shoal join. What it says of the machine (memory, threads, runtime, journal, share, isa) holds for nodes that other commands start here, too.",
    "gateway": "shoal gateway.",
    "client": "shoal run, chat, batch and nodes: whom they ask, and how.",
    MODELS: "One model of shoal up and shoal serve, by its name or reference; a section for each. What is not set here is as in [head]. Flags "
    "override it; variables and [head] do not.",
}

Changed = Annotated[bool, flag("--changed", "Only settings that the file or the environment sets.")]


@app.command("show")
def show(changed: Changed = False, as_json: Json = False) -> None:
    """Show every setting and where it comes from: a line of the file, an environment variable, or its default.

    A flag overrides the environment, which overrides the file. Example: [bold]shoal config show --changed[/bold]
    """
    from shoal.cli.show import Rows, emit, line, out

    file = loaded()
    rows = [row for row in _rows(file) if not changed or row["source"] != "default"]
    if as_json:
        emit({"file": str(file.path), "exists": file.path.exists(), "settings": rows})
    elif rows:
        out.print(Rows([_short(row) for row in rows]))
    else:
        line(f"neither {file.path} nor the environment says anything; `shoal config init` writes a file to begin with")
    known = known_variables() | _OTHERS
    for name in variables():
        if name not in known:
            line(f"{name} is not a variable of shoal{suggestion(name, known)}")


@app.command("path")
def path() -> None:
    """Print the path of the configuration file, whether or not it exists. SHOAL_CONFIG names another file."""
    from shoal.cli.show import line_out

    line_out(str(config_file()))


@app.command("init")
def init() -> None:
    """Write a configuration file that explains every setting and sets none. An existing file is left alone."""
    from shoal.cli.show import line
    from shoal.security.private_file import write_private

    target = config_file()
    try:
        write_private(target, "\n".join(_commented()).encode(), fresh=True)
    except FileExistsError:
        raise ConfigError(f"{target} already exists and was left alone; `shoal config show` shows what it sets") from None
    line(f"{target} is written; take the # away from what you want to set")


def _rows(file: ConfigFile) -> Iterator[dict[str, Any]]:
    """Raises ConfigError for a variable that cannot be read, and for contradictory settings."""
    head = replace(from_environment(HeadSettings, {}, file=of_file(HeadSettings)), sections=of_models())
    roles = {
        "head": values_of(head),
        "node": values_of(from_environment(NodeSettings, {}, file=of_file(NodeSettings))),
        "gateway": values_of(from_environment(GatewaySettings, {}, file=of_file(GatewaySettings))),
    }
    known = sections()
    for section, keys in known.items():
        for name, key in keys.items() if section != MODELS else ():
            value, source, where = key.default, "default", None
            if (named := next((v for v in key.variables if variable(v) is not None), None)) is not None:
                value, source, where = variable(named), "environment", named
            elif (at := file.where(section, name)) is not None:
                value, source, where = file.section(section)[name], "file", at
            if source != "default":
                value = roles.get(section, {}).get(name.replace("-", "_"), value)
            yield {"section": section, "key": name, "value": _masked(key, value), "source": source, "where": where}
    for model in file.models:
        section = f"{MODELS}.{model}"
        for name, value in file.section(section).items():
            shown = _masked(known[MODELS][name], value)
            yield {"section": section, "key": name, "value": shown, "source": "file", "where": file.where(section, name)}


def _masked(key: FileKey, value: Any) -> Any:
    """The value with secrets hidden."""
    if key.secret and value:
        return "***"
    if isinstance(value, str) and "://" in value and "@" in value:
        scheme, _, rest = value.partition("://")
        return f"{scheme}://***@{rest.rpartition('@')[2]}"
    return value


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """The row for people."""
    value = row["value"]
    section = header(row["section"]) if row["section"] else ""
    return {"section": section, "key": row["key"], "value": "" if value is None else _toml(value), "from": row["where"] or "default"}


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)


def _commented() -> Iterator[str]:
    yield "# Settings of shoal. A flag overrides an environment variable, which overrides this file."
    yield "# `shoal config show` shows every setting and where it comes from."
    for section, keys in sections().items():
        yield ""
        yield from textwrap.wrap(_SECTIONS[section], 118, initial_indent="# ", subsequent_indent="# ")
        if section:
            yield f"[{MODELS}.{EngineSettings.model}]" if section == MODELS else f"[{section}]"
        for name, key in keys.items():
            yield ""
            yield from textwrap.wrap(key.help, 118, initial_indent="# ", subsequent_indent="# ")
            example = key.default if key.default is not None else {int: 0, float: 0.0, bool: False}.get(key.kind, "")
            yield f"# {name} = {_toml(example)}" + ("" if key.default is not None else "  # the default depends on the command")
    yield ""
