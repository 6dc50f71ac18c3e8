"""Descriptions of endpoints in the OpenAPI document. Bodies are parsed by hand to get OpenAI's errors, so FastAPI cannot describe them itself."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel

from shoal.gateway.auth import gate
from shoal.gateway.auth.keyring import Keyring
from shoal.gateway.http.dialect import OPENAI, Dialect, spoken_at

_SCHEMAS = "#/components/schemas/"
_METHODS = frozenset({"get", "head", "post", "delete"})

JSON, EVENTS, FORM, BYTES = "application/json", "text/event-stream", "multipart/form-data", "application/octet-stream"
LINES = "application/x-ndjson"
"""One JSON object per line."""
_CONTRACT = "contract"
"""Where a route stores its contract."""
EVENT = {"type": "object", "required": ["data"], "properties": {name: {"type": "string"} for name in ("data", "id", "event")}}

REFUSALS = {
    400: "The request is invalid, or asks for what is not served",
    401: "No API key, or none that is good",
    403: "A web page of this origin may not use the API",
    404: "No such model, or no such thing",
    409: "X-Request-Id names a request that there is already, or the thing is not in a state for that",
    413: "The body is too large, or there is no room for it",
    414: "Path and query are too long",
    415: "The body is said to be of another media type than JSON",
    416: "The range lies beyond the file's end",
    429: "Too much is asked for now; Retry-After says when to come again",
    431: "The headers are too many or too large",
    499: "The client went away",
    503: "No model is served now, or the server is about to end; Retry-After says when to come again",
    502: "The other server that has the model did not answer as it should",
    504: "No such answer is kept, and Cache-Control asks for no other",
    508: "The request has come back from another server, to which this one sent it",
    529: "Anthropic's status for what is 503 elsewhere",
}
_OF_BODY = {JSON: (400, 413, 415), FORM: (400, 413)}
"""Refusals of a body, for all endpoints."""


Schemas = Mapping[str, Mapping[str, Any]]
"""Schemas of parameters, by name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contract:
    """What a route takes and answers, as models. Their schemas take time, and are built when the document is requested."""

    body: type[BaseModel] | None
    """The request body."""
    answer: Any
    """The answer with status 200, a model or a union of models; None: not JSON."""
    refusals: tuple[int, ...]
    """Statuses of REFUSALS that are possible, besides those of the gate and of bodies."""
    streams: bool = False
    """Whether server-sent events may take the answer's place."""
    lines: type[BaseModel] | None = None
    """Objects that may take its place, one per line."""
    media: str = JSON
    """Media type of an answer that is not JSON."""
    sent: str = JSON
    """The media type of the body."""
    query: Schemas = dataclasses.field(default_factory=dict[str, Mapping[str, Any]])
    """Query parameters that FastAPI does not know."""
    headers: Schemas = dataclasses.field(default_factory=dict[str, Mapping[str, Any]])
    """Headers that FastAPI does not know."""
    dialects: Sequence[Dialect] = (OPENAI,)
    """The forms of its refusals."""

    def responses(self) -> dict[int | str, dict[str, Any]]:
        """FastAPI's argument with that name."""
        return {200: self._done(), **self._refused()}

    def asked(self) -> dict[str, Any]:
        """The document's description of the request, besides the parameters that FastAPI knows."""
        asked: dict[str, Any] = {"parameters": [*_parameters("query", self.query), *_parameters("header", self.headers)]}
        if self.body is not None:
            schema = self.body.model_json_schema(ref_template=f"{_SCHEMAS}{self.body.__name__}.{{model}}")
            asked["requestBody"] = {"required": True, "content": {self.sent: {"schema": schema}}}
        return asked

    def _done(self) -> dict[str, Any]:
        done: dict[str, Any] = {"description": "Done"}
        if self.answer is not None:
            done["model"] = self.answer
        plain = self.answer is None and self.media != EVENTS
        content: dict[str, Any] = {self.media: {"schema": {"type": "string"}}} if plain else {}
        if self.streams or self.media == EVENTS:
            content[EVENTS] = {"itemSchema": EVENT}
        if self.lines is not None:
            content[LINES] = {"itemSchema": {"$ref": _SCHEMAS + self.lines.__name__}}
        if content:
            done["content"] = content
        return done

    def _refused(self) -> dict[int, dict[str, Any]]:
        refused: dict[int, dict[str, Any]] = {}
        for dialect in self.dialects:
            for status in {*self.refusals, *(() if self.body is None else _OF_BODY[self.sent])}:
                told = refused.setdefault(dialect.status(status), {"description": REFUSALS[dialect.status(status)]})
                if status != 499:
                    told["model"] = told["model"] | dialect.error if "model" in told else dialect.error
        return dict(sorted(refused.items()))


def contract(body: type[BaseModel] | None, answer: Any, *refusals: int, **more: Any) -> dict[str, Any]:
    """A route's arguments; `more`: further fields of Contract."""
    return {
        "response_model": None,
        "response_class": Response if answer is None else JSONResponse,
        "openapi_extra": {_CONTRACT: Contract(body=body, answer=answer, refusals=refusals, **more)},
    }


def _parameters(where: str, schemas: Schemas) -> list[dict[str, Any]]:
    return [{"name": name, "in": where, "schema": dict(schema)} for name, schema in schemas.items()]


def describe(app: FastAPI, routers: Sequence[APIRouter], keyring: Keyring, needs_key: bool) -> None:
    """Gives the application its document: FastAPI's, completed with the contracts.

    routers:   all of the application's
    needs_key: whether a key is required even if none was created
    """

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, routers)
        ways: list[dict[str, list[str]]] = [{"key": []}, {"x-api-key": []}]
        app.openapi_schema["security"] = ways if needs_key or keyring.required else [*ways, {}]
        return app.openapi_schema

    async def told(request: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(document))  # building it takes a third of a second

    app.openapi = document
    app.add_route("/openapi.json", told, include_in_schema=False)


def _in_full(route: APIRoute) -> APIRoute:
    """The same route with the models of its contract, only for the document."""
    agreed: Contract | None = (route.openapi_extra or {}).get(_CONTRACT)
    if agreed is None:
        return route
    responses, asked = agreed.responses() | route.responses, agreed.asked()
    kind, methods = route.response_class, route.methods
    return APIRoute(
        route.path, route.endpoint, methods=methods, response_model=None, response_class=kind, responses=responses, openapi_extra=asked
    )


def _document(app: FastAPI, routers: Sequence[APIRouter]) -> dict[str, Any]:
    routes = [_in_full(route) for router in routers for route in router.routes if isinstance(route, APIRoute)]
    made = get_openapi(title=app.title, version=app.version, routes=routes)
    components = made.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for path, operations in made["paths"].items():
        for method in _METHODS & operations.keys():
            operation = operations[method]
            _name_schemas(operation.get("requestBody", {}).get("content", {}).values(), schemas)
            _add_gate(operation, method.upper(), path)
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    components["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "A key of `shoal keys create`"},
        "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "The same, as Anthropic's clients send it"},
    }
    return made


def _name_schemas(contents: Iterable[dict[str, Any]], schemas: dict[str, Any]) -> None:
    """Moves a body's schema and those inside it to where the document's references point."""
    for content in contents:
        name = content["schema"]["title"]
        inner = content["schema"].pop("$defs", {})
        schemas.update({name: content["schema"], **{f"{name}.{each}": schema for each, schema in inner.items()}})
        content["schema"] = {"$ref": _SCHEMAS + name}


def _may_be(content: dict[str, Any], ref: str) -> None:
    """Adds a shape to those that an answer may have."""
    shapes = content.get("schema", {})
    kinds = [*(shapes.get("anyOf") or ([shapes] if shapes else []))]
    if {"$ref": ref} not in kinds:
        kinds.append({"$ref": ref})
    content["schema"] = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}


def _add_gate(operation: dict[str, Any], method: str, path: str) -> None:
    responses = operation["responses"]
    responses.pop("422", None)  # invalid bodies and queries are refused with 400 here
    for dialect in spoken_at(path):
        for status in map(dialect.status, gate.refusals(method, path)):
            told = responses.setdefault(str(status), {"description": REFUSALS[status], "content": {}})
            _may_be(told["content"].setdefault(JSON, {}), f"{_SCHEMAS}{dialect.error.__name__}")
    operation["responses"] = dict(sorted(responses.items()))
    if not gate.asks_key(path):
        operation["security"] = []
    else:
        operation.setdefault("parameters", []).extend(_parameters("header", gate.HEADERS))
