"""Flags from settings: a role's dataclass fields become a command's options, each documented once, in config.py.

Every flag has an environment variable, which the help names. This module and `commands` are all that `--help` loads.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer
from rich.markup import escape

from shoal.config import ApiSettings, EngineSettings, HeadSettings, NodeSettings, RuntimeName, Settings, from_environment
from shoal.errors import ConfigError

_PANELS: dict[type[Settings], str] = {EngineSettings: "Model", ApiSettings: "API", HeadSettings: "Cluster"}


def flag(name: str, help: str, *, short: str = "", also: tuple[str, ...] = (), **more: Any) -> Any:
    """An option `--name` that is also read from SHOAL_NAME, and from the variables in `also` where that is not set."""
    own = "SHOAL_" + name.removeprefix("--").replace("-", "_").upper()
    return typer.Option(name, *([short] if short else []), envvar=[own, *also] if also else own, help=escape(help), **more)


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ConfigError(f"--temperature is a number of at least 0, not {value}")
    return value


Nodes = Annotated[int, flag("--nodes", "Nodes to start on this machine.", short="-n", min=1, max=64)]
Threads = Annotated[int, flag("--threads", "Threads of each node; 0 shares the cores.", min=0)]
Memory = Annotated[str, flag("--memory", "Most memory of each node, like 1GiB.")]
Runtime = Annotated[RuntimeName, flag("--runtime", "What runs the layers; auto times what is installed and keeps the fastest.")]
Json = Annotated[bool, flag("--json", "Print JSON.")]
Url = Annotated[
    str,
    flag("--url", "A server to ask, like http://127.0.0.1:8000 or …/v1; empty: start a cluster here.", also=("OPENAI_BASE_URL",)),
]
Key = Annotated[str, flag("--api-key", "The server's API key, where it asks for one.", also=("OPENAI_API_KEY",))]
MaxTokens = Annotated[int, flag("--max-tokens", "Most tokens of an answer; 0: as many as fit.", min=0)]
Temperature = Annotated[float, flag("--temperature", "0 takes the likeliest token.", short="-t", callback=_finite)]
Seed = Annotated[int | None, flag("--seed", "The same seed draws the same answer.")]


def node_settings(memory: str = "", threads: int = 0, runtime: RuntimeName = RuntimeName.AUTO) -> NodeSettings:
    """What a command says of the nodes that it starts, over the environment. Raises ConfigError, also where they could run nothing."""
    chosen = None if runtime is RuntimeName.AUTO else runtime
    node = from_environment(NodeSettings, {"memory": memory or None, "threads": threads or None, "runtime": chosen})
    from shoal.cli.runtime import check

    check(node.runtime)
    return node


def _panel(role: type[Settings], field: str) -> str | None:
    """Under which heading of the help a field's flag is found; None: among the command's own."""
    declaring = next(base for base in role.__mro__ if field in inspect.get_annotations(base))
    return _PANELS.get(declaring)


def _derived(role: type[Settings], field: dataclasses.Field[Any], kind: Any) -> inspect.Parameter:
    """The option of one field."""
    dashed = field.name.replace("_", "-")
    default = "" if field.default in ("", 0, False) else f" [default: {field.default}]"
    option = typer.Option(
        f"--{dashed}" + (f"/--no-{dashed}" if field.default is True else ""),
        *(["-m"] if field.name == "model" else []),
        envvar="SHOAL_" + field.name.upper(),
        help=escape(field.metadata["help"] + default),
        show_default=False,
        rich_help_panel=_panel(role, field.name),
    )
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option])


def settings(role: type[Settings], *, leave_out: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Gives a command the role's fields as options, and passes it the role's settings as `settings`."""

    def wrap(command: Callable[..., Any]) -> Callable[..., Any]:
        hints = get_type_hints(role)
        fields = [f for f in dataclasses.fields(role) if f.name not in leave_out]

        @functools.wraps(command)
        def run(**values: Any) -> Any:
            given = {f.name: values.pop(f.name) for f in fields}
            return command(settings=from_environment(role, given), **values)

        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "settings"]
        derived = [_derived(role, f, hints[f.name]) for f in fields]
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + derived
        run.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
        del run.__wrapped__  # pyright: ignore[reportAttributeAccessIssue]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return wrap
