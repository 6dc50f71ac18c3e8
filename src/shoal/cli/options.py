"""Flags from settings: a role's dataclass fields become a command's options, each documented once, in config.py.

Every flag has an environment variable, named in its help. Most have a key in the configuration file: a role's under [head], [node] or
[gateway], a client's under [client]. `--help` loads only this module and `commands`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.models import OptionInfo

from shoal.cli.log_format import LogFormat
from shoal.config import (
    ApiSettings,
    EngineSettings,
    GatewaySettings,
    HeadSettings,
    ModelSection,
    ModelSettings,
    NodeSettings,
    RuntimeName,
    ScalingSettings,
)
from shoal.config_file import MODELS, ConfigFile, FileKey, Sections, header, read
from shoal.errors import ConfigError, ContradictorySettings
from shoal.folders import config_file, config_is_named
from shoal.settings import Setting, Settings, composed, from_environment, settings_of

_PANELS: dict[type[Settings], str] = {EngineSettings: "Model", ApiSettings: "API", HeadSettings: "Cluster", ScalingSettings: "Autoscaling"}


_ROLES: dict[str, type[Settings]] = {"head": HeadSettings, "node": NodeSettings, "gateway": GatewaySettings}
_LOCAL = ("memory", "threads", "runtime", "journal", "journal_disk", "share", "isa")
"""The settings of [node] that hold for every node on this machine, not only for the one that `join` starts."""
_SEVERAL = ("model", "upstream")
"""The settings of a head whose flags may be given several times."""
_KEYS: dict[str, dict[str, FileKey]] = {"": {}, "head": {}, "client": {}}
_PLACES: dict[int, tuple[str, str]] = {}
"""Section and key of an option, by its `id()`; options are never freed."""
_VARIABLES: set[str] = set()


def flag(
    name: str,
    help: str,
    *,
    short: str = "",
    also: tuple[str, ...] = (),
    section: str | None = None,
    kind: type[Any] = str,
    check: Callable[[Any], object] = lambda value: None,
    secret: bool = False,
    default: Any = None,
    **more: Any,
) -> Any:
    """An option `--name` that is also read from SHOAL_NAME, and from the variables in `also` if that is not set.

    section: of the configuration file, in which it has the key `name`; None: it has none. kind, check, secret, default: as in `FileKey`
    """
    own = "SHOAL_" + name.removeprefix("--").replace("-", "_").upper()
    _VARIABLES.add(own)
    option = typer.Option(name, *([short] if short else []), envvar=[own, *also] if also else own, help=escape(help), **more)
    if section is not None:
        key = name.removeprefix("--")
        within = functools.partial(_within, name, more.get("min"), more.get("max"), check)
        _KEYS[section][key] = FileKey(kind, help, default, within, secret, (own, *also))
        _PLACES[id(option)] = (section, key)
    return option


def _within(name: str, low: float | None, high: float | None, check: Callable[[Any], object], value: Any) -> None:
    """Raises ConfigError."""
    if (low is not None and value < low) or (high is not None and value > high):
        upper = f" and at most {high:g}" if high is not None else ""
        raise ConfigError(f"{name} must be at least {low or 0:g}{upper}, not {value}")
    check(value)


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ConfigError(f"--temperature must be a number of at least 0, not {value}")
    return value


Verbose = Annotated[bool, flag("--verbose", "Log to stderr what happens.", short="-v", section="", kind=bool, default=False)]
LogLines = Annotated[
    LogFormat,
    flag(
        "--log-format",
        "Log format on stderr: text, json (one object per line), or auto (text on a terminal, else json).",
        section="",
        kind=LogFormat,
        default=LogFormat.TEXT,
    ),
]
Nodes = Annotated[int, flag("--nodes", "Nodes to start on this machine.", short="-n", section="head", kind=int, min=1, max=64)]
Threads = Annotated[int, flag("--threads", "Compute threads of each node; 0: divide the cores among them.", min=0)]
Memory = Annotated[str, flag("--memory", "Memory limit of each node, like 1GiB.")]
Runtime = Annotated[RuntimeName, flag("--runtime", "Runtime for the layers; auto times those that are installed and keeps the fastest.")]
Json = Annotated[bool, flag("--json", "Print JSON.")]
Url = Annotated[
    str,
    flag(
        "--url",
        "Server to ask, like http://127.0.0.1:8000 or …/v1; empty: start a cluster here.",
        also=("OPENAI_BASE_URL",),
        section="client",
    ),
]
Key = Annotated[
    str,
    flag("--api-key", "The server's API key, if it needs one.", also=("OPENAI_API_KEY",), section="client", secret=True, default=""),
]
MaxTokens = Annotated[int, flag("--max-tokens", "Most tokens in an answer; 0: as many as fit.", section="client", kind=int, min=0)]
Temperature = Annotated[
    float,
    flag(
        "--temperature",
        "Sampling temperature; 0 always takes the likeliest token.",
        short="-t",
        section="client",
        kind=float,
        check=_finite,
        callback=_finite,
    ),
]
Seed = Annotated[int | None, flag("--seed", "Seed of the sampling; the same seed gives the same answer.", section="client", kind=int)]


def node_settings(memory: str = "", threads: int = 0, runtime: RuntimeName = RuntimeName.AUTO) -> NodeSettings:
    """Settings of the nodes that a command starts: from its flags, then the environment, then the file. Raises ConfigError,
    also if no runtime works."""
    chosen = None if runtime is RuntimeName.AUTO else runtime
    from shoal.cli.runtime import check

    here = {name: value for name, value in of_file(NodeSettings).items() if name in _LOCAL}
    node = from_environment(NodeSettings, {"memory": memory or None, "threads": threads or None, "runtime": chosen}, file=here)

    check(node)
    return node


def sections() -> Sections:
    """Every key of the configuration file. [client] holds those whose flags have been defined so far."""
    model = FileKey(
        str,
        "The model to ask for; empty: the server's own, or that of [head] when a cluster is started here.",
        "",
        variables=("SHOAL_MODEL",),
    )
    return {
        "": _KEYS[""],
        "head": {**_of_role(HeadSettings), **_KEYS["head"]},
        "node": _of_role(NodeSettings),
        "gateway": _of_role(GatewaySettings),
        "client": {"model": model, **_KEYS["client"]},
        MODELS: {name: replace(key, variables=()) for name, key in _of_role(ModelSettings).items() if name != "model"},
    }


def _of_role(role: type[Settings]) -> dict[str, FileKey]:
    return {
        setting.name.replace("_", "-"): FileKey(
            setting.kind,
            setting.help,
            setting.default,
            functools.partial(_alone, role, setting.name),
            setting.name in ("code", "lease", "webhook"),
            ("SHOAL_" + setting.name.upper(),),
        )
        for setting in settings_of(role)
    }


def _alone(role: type[Settings], name: str, value: Any) -> None:
    """Checks one value. Others may be set elsewhere: all are checked together when they are known. Raises ConfigError."""
    with contextlib.suppress(ContradictorySettings):
        composed(role, {name: value})


def known_variables() -> set[str]:
    """Every variable that some option is read from."""
    roles = {"SHOAL_" + setting.name.upper() for role in _ROLES.values() for setting in settings_of(role)}
    return roles | _VARIABLES


def loaded() -> ConfigFile:
    """The user's configuration file; an empty one if there is none. Raises ConfigError."""
    try:
        path = config_file()
    except ConfigError:  # no home
        return ConfigFile(Path("config.toml"), {})
    return read(path, sections(), must_be=config_is_named())


def of_file(role: type[Settings]) -> dict[str, Any]:
    """A role's values in the configuration file, by field. Raises ConfigError."""
    section = next((name for name, of in _ROLES.items() if of is role), "head")
    return {key.replace("-", "_"): value for key, value in loaded().section(section).items()}


def of_models(typed: Collection[str] = ()) -> tuple[ModelSection, ...]:
    """What the configuration file says of single models. typed: fields that the command line sets, which goes before it. Raises
    ConfigError."""
    file, found = loaded(), list[ModelSection]()
    for name in file.models:
        section = f"{MODELS}.{name}"
        values = file.section(section)
        where = f"{file.where(section, next(iter(values)))}: {header(section)}"
        fields = {key.replace("-", "_"): value for key, value in values.items()}
        found.append(ModelSection(name, where, {field: value for field, value in fields.items() if field not in typed}))
    return tuple(found)


def from_file(context: typer.Context, parameter: str, section: str, value: Any) -> Any:
    """An option's value: the file's if neither the command line nor the environment sets it. Raises ConfigError."""
    return value if said(context, parameter) else loaded().section(section).get(parameter.replace("_", "-"), value)


def said(context: typer.Context, parameter: str) -> bool:
    """Whether the command line or the environment sets an option."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")


def _typed(context: typer.Context, parameter: str) -> bool:
    """Whether the command line sets an option."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"


def _derived(setting: Setting, several: bool) -> inspect.Parameter:
    """The option of one setting, under the heading of its role; a node's settings are among the command's own options. several: it may be
    given more than once."""
    dashed = setting.name.replace("_", "-")
    default = "" if setting.default in ("", 0, False) else f" [default: {setting.default}]"
    option = typer.Option(
        f"--{dashed}" + (f"/--no-{dashed}" if setting.default is True else ""),
        *(["-m"] if setting.name == "model" else []),
        envvar="SHOAL_" + setting.name.upper(),
        help=escape(setting.help + (" May be given several times." if several else "") + default),
        show_default=False,
        rich_help_panel=_PANELS.get(setting.role),
    )
    kind = list[setting.kind] if several else setting.kind
    return inspect.Parameter(setting.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option])


def _place(parameter: inspect.Parameter) -> tuple[str, str] | None:
    """The section and the key of a command's own option."""
    for option in getattr(parameter.annotation, "__metadata__", ()):
        if isinstance(option, OptionInfo):
            return _PLACES.get(id(option))
    return None


def with_one_text(given: Mapping[str, Any]) -> dict[str, Any]:
    """Values from a command line: several models or upstreams are one text, as settings have them."""
    return {**given, **{name: ",".join(given[name] or ()) or None for name in _SEVERAL if name in given}}


def settings(role: type[Settings], *, leave_out: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Gives a command the role's fields as options, and passes it the role's settings as `settings`.

    The command's own options are read from the file too. A parameter `typed`, if it has one, gets typer's context.
    """

    def wrap(command: Callable[..., Any]) -> Callable[..., Any]:
        offered = [setting for setting in settings_of(role) if setting.name not in leave_out]
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "settings"]
        wants_context = any(p.name == "typed" for p in own)
        several = role is HeadSettings  # which may serve several models, and have several upstreams
        places = {p.name: place for p in own if (place := _place(p)) is not None}

        @functools.wraps(command)
        def run(typed: typer.Context, **values: Any) -> Any:
            given = {setting.name: values.pop(setting.name) for setting in offered}
            given = with_one_text(given) if several else given
            file = loaded()
            for name, (section, key) in places.items():
                if not said(typed, name):
                    values[name] = file.section(section).get(key, values[name])
            if wants_context:
                values["typed"] = typed
            chosen = from_environment(role, given, file=of_file(role))
            if isinstance(chosen, HeadSettings):
                chosen = replace(chosen, sections=of_models([name for name in given if _typed(typed, name)]))
            return command(settings=chosen, **values)

        derived = [_derived(setting, several and setting.name in _SEVERAL) for setting in offered]
        context = [] if wants_context else [inspect.Parameter("typed", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + context + derived
        run.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
        del run.__wrapped__
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return wrap
