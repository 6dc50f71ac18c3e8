"""`models load`, `unload`, `alias` and `served`: the models of a running server."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from shoal.cli.asking import ChatOptions
from shoal.cli.loop import run
from shoal.cli.operator_client import OperatorClient
from shoal.cli.show import Rows, emit, err, line, out, plain
from shoal.errors import ClusterError
from shoal.observed.models import LoadedModel, ModelsView

_LOOK = 0.5  # seconds between two looks at a model that is being loaded


async def _view(asking: ChatOptions) -> ModelsView:
    async with OperatorClient(asking) as client:
        return await client.models()


async def _change(asking: ChatOptions, body: Mapping[str, object]) -> None:
    async with OperatorClient(asking) as client:
        line((await client.change_models(body)).message)


async def _load(asking: ChatOptions, model: str, replicas: int, wait: bool) -> None:
    async with OperatorClient(asking) as client:
        before = {one.name for one in (await client.models()).loaded}
        body: dict[str, object] = {"load": model, **({"replicas": replicas} if replicas else {})}
        line((await client.change_models(body)).message)
        if not wait:
            return
        with err.status(f"{model} is being loaded") as status:
            while True:
                view = await client.models()
                new = next((one for one in view.loaded if one.name not in before), None)
                if new is not None and not new.state:
                    break
                if new is None and (why := view.failed.get(model) or next((w for n, w in view.failed.items() if n.endswith(model)), "")):
                    raise ClusterError(f"{model}: {why}")
                if new is not None and new.short:
                    raise ClusterError(
                        f"{new.name} finds no room: {new.state}; it is served as soon as there is, or: shoal models unload {new.name}"
                    )
                status.update(plain(f"{model}: {new.state}" if new is not None else f"{model} is being fetched and read"))
                await asyncio.sleep(_LOOK)
        line(f"{new.name} is served by {new.serving} of {new.replicas} {'copy' if new.replicas == 1 else 'copies'}")


def load(asking: ChatOptions, model: str, replicas: int, wait: bool) -> None:
    run(_load(asking, model, replicas, wait))


def unload(asking: ChatOptions, model: str) -> None:
    run(_change(asking, {"unload": model}))


def alias(asking: ChatOptions, name: str, target: str) -> None:
    """target: '' removes it."""
    run(_change(asking, {"alias": name, "to": target or None}))


def served(asking: ChatOptions, as_json: bool) -> None:
    found: list[ModelsView] = []

    async def look() -> None:
        found.append(await _view(asking))

    run(look())
    (view,) = found
    if as_json:
        emit([{**_fields(one), "aliases": _aliases(view, one)} for one in view.loaded])
        return
    rows = [
        {
            "name": plain(one.name),
            "state": plain(one.state or "serving"),
            "copies": f"{one.serving}/{one.replicas}",
            "context": one.context,
            "quantization": one.quantization,
            "can": ", ".join(one.can),
            "aliases": plain(", ".join(_aliases(view, one)) or "-"),
        }
        for one in view.loaded
    ]
    out.print(Rows(rows) if rows else "no model is loaded")


def _fields(one: LoadedModel) -> dict[str, object]:
    return {name: getattr(one, name) for name in LoadedModel.__struct_fields__}


def _aliases(view: ModelsView, one: LoadedModel) -> list[str]:
    return [alias for alias, target in view.aliases.items() if target == one.name]
