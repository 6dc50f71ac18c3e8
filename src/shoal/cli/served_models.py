"""`models load`, `unload`, `alias` and `served`: the models of a running server."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from time import monotonic

import msgspec

from shoal.cli.asking import ChatOptions
from shoal.cli.loop import run
from shoal.cli.operator_client import OperatorClient
from shoal.cli.show import Rows, emit, err, line, line_out, out, plain
from shoal.errors import ClusterError, UnknownModel
from shoal.models.sources import public_name
from shoal.observed.models import LoadedModel, ModelsView, UpstreamView
from shoal.serving.aliases import resolved
from shoal.sizes import human_bytes

_LOOK = 0.5  # seconds between two looks at a model that is being loaded
_PATIENCE = 30.0  # seconds for which further copies are waited for


async def _view(asking: ChatOptions) -> ModelsView:
    async with OperatorClient(asking) as client:
        return await client.models()


async def _change(asking: ChatOptions, body: Mapping[str, object]) -> None:
    async with OperatorClient(asking) as client:
        line((await client.change_models(body)).message)


async def _load(asking: ChatOptions, model: str, replicas: int, wait: bool) -> None:
    name, began = public_name(model), monotonic()
    async with OperatorClient(asking) as client:
        line((await client.change_models({"load": model, **({"replicas": replicas} if replicas else {})})).message)
        if not wait:
            return
        with err.status(f"{name} is being loaded") as status:
            while not (one := _served(await client.models(), name)) or (one.serving < one.replicas and monotonic() - began < _PATIENCE):
                status.update(plain(f"{name} is being loaded"))
                await asyncio.sleep(_LOOK)
        rest = "" if one.serving == one.replicas else "; the others wait for nodes"
        line(f"{name} is served by {one.serving} of {one.replicas} {'copy' if one.replicas == 1 else 'copies'}{rest}")


def _served(view: ModelsView, name: str) -> LoadedModel | None:
    """None: not yet. Raises ClusterError if it will not be soon."""
    one = next((one for one in view.loaded if one.name == name), None)
    if one is None and (why := view.failed.get(name)):
        raise ClusterError(f"{name}: {why}")
    if one is not None and one.short:
        raise ClusterError(f"{name} finds no room: {one.state}; it is served as soon as there is some, or: shoal models unload {name}")
    return one if one is not None and not one.state else None


def load(asking: ChatOptions, model: str, replicas: int, wait: bool) -> None:
    try:
        run(_load(asking, model, replicas, wait))
    except KeyboardInterrupt:
        line(f"the server goes on loading it; to end that: shoal models unload {public_name(model)}")
        raise


def unload(asking: ChatOptions, model: str) -> None:
    run(_change(asking, {"unload": model}))


def alias(asking: ChatOptions, name: str, target: str) -> None:
    """target: '' removes it."""
    run(_change(asking, {"alias": name, "to": target or None}))


def served(asking: ChatOptions, as_json: bool) -> None:
    view = run(_view(asking))
    if as_json:
        here = [{**_fields(one), "aliases": _aliases(view, one), "upstreams": _upstreams(view, one.name)} for one in view.loaded]
        elsewhere = [{"name": name, "upstreams": _upstreams(view, name)} for name in _elsewhere(view)]
        emit([*here, *elsewhere])
        return
    rows = [
        {
            "name": plain(one.name),
            "state": plain(one.state or "serving"),
            "copies": f"{one.serving}/{one.replicas}",
            "context": one.context,
            "quantization": one.quantization,
            "priority": one.priority,
            "nodes": plain(", ".join(name if name not in one.absent else f"{name} (absent)" for name in one.nodes) or "all"),
            "can": ", ".join(one.can),
            "aliases": plain(", ".join(_aliases(view, one)) or "-"),
        }
        for one in view.loaded
    ]
    unloaded = {**dict.fromkeys(view.loading, "it is being fetched and read"), **view.failed}
    out.print(Rows(rows) if rows else "no model is loaded")
    if view.upstreams:
        out.print(Rows([_upstream(each) for each in view.upstreams]))
    for name, state in unloaded.items():
        line(f"{name}: {state}")


def _upstream(one: UpstreamView) -> dict[str, str]:
    models = ", ".join(model.name for model in one.models)
    return {"upstream": plain(one.url), "state": plain(one.state or "serving"), "models": plain(models or "-")}


def _upstreams(view: ModelsView, model: str) -> list[dict[str, str]]:
    """Those that have a model."""
    return [{"url": one.url, "state": one.state} for one in view.upstreams if any(each.name == model for each in one.models)]


def _elsewhere(view: ModelsView) -> list[str]:
    """Names of the models that upstreams alone have."""
    here = {one.name for one in view.loaded}
    return [name for name in dict.fromkeys(model.name for one in view.upstreams for model in one.models) if name not in here]


def known(asking: ChatOptions, name: str, as_json: bool) -> None:
    """What the server knows of a model that it served at least once. name: or an alias."""
    view = run(_view(asking))
    target = resolved(view.aliases, name)
    one = next((one for one in view.known if one.name == target), None)
    if one is None:
        raise UnknownModel(name, [one.name for one in view.known])
    if as_json:
        emit(msgspec.to_builtins(one))
        return
    about = f"version {one.version}, {one.family}, {one.quantization}, {one.parameters / 1e6:,.0f} M parameters, {human_bytes(one.bytes)}"
    line_out(f"{one.name} ({one.reference}): {about}")
    line_out(f"sequences of up to {one.context} tokens; {', '.join(one.can)}")
    for file in one.files:
        line_out(f"{file.name}  {human_bytes(file.size)}  {file.sha256 or 'not hashed'}")


def _fields(one: LoadedModel) -> dict[str, object]:
    return {name: getattr(one, name) for name in LoadedModel.__struct_fields__}


def _aliases(view: ModelsView, one: LoadedModel) -> list[str]:
    return [alias for alias, target in view.aliases.items() if target == one.name]
