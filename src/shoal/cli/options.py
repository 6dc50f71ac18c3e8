"""Flags from settings: a role's dataclass fields become a command's options, each documented once, in config.py."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer
from rich.markup import escape

from shoal.config import ApiSettings, EngineSettings, HeadSettings, NodeSettings, RuntimeName, Settings, from_environment
from shoal.executor.runtimes import check_runtime

_PANELS: dict[type[Settings], str] = {EngineSettings: "Model", ApiSettings: "API", HeadSettings: "Cluster"}

Nodes = Annotated[int, typer.Option("--nodes", "-n", min=1, max=64, help="Nodes to start on this machine.")]
Threads = Annotated[int, typer.Option("--threads", min=0, help="Threads of each node; 0 shares the cores.")]
Memory = Annotated[str, typer.Option("--memory", help="Most memory of each node, like 1GiB.")]
Runtime = Annotated[
    RuntimeName, typer.Option("--runtime", help="What runs the layers; auto times what is installed and keeps the fastest.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def node_settings(memory: str = "", threads: int = 0, runtime: RuntimeName = RuntimeName.AUTO) -> NodeSettings:
    """What a command says of the nodes that it starts, over the environment. Raises ConfigError, also where they could run nothing."""
    chosen = None if runtime is RuntimeName.AUTO else runtime
    node = from_environment(NodeSettings, {"memory": memory or None, "threads": threads or None, "runtime": chosen})
    check_runtime(node.runtime)
    return node


def _panel(role: type[Settings], field: str) -> str | None:
    """Under which heading of the help a field's flag is found; None: among the command's own."""
    declaring = next(base for base in role.__mro__ if field in inspect.get_annotations(base))
    return _PANELS.get(declaring)


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
        derived: list[inspect.Parameter] = []
        for f in fields:
            flag = "--" + f.name.replace("_", "-")
            flag += f"/--no-{flag[2:]}" if f.default is True else ""
            default = "" if f.default in ("", 0, False) else f" [default: {f.default}]"
            option = typer.Option(
                flag,
                *(["-m"] if f.name == "model" else []),
                help=escape(f.metadata["help"] + default),
                show_default=False,
                rich_help_panel=_panel(role, f.name),
            )
            derived.append(
                inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[hints[f.name] | None, option])
            )
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + derived
        run.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
        del run.__wrapped__  # pyright: ignore[reportAttributeAccessIssue]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return wrap
