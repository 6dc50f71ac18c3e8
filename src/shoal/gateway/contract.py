"""What the OpenAPI document says of an endpoint. Bodies are parsed by hand, for OpenAI's errors; so the document is told of them here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from shoal.gateway import gate
from shoal.gateway.keyring import Keyring

_SCHEMAS = "#/components/schemas/"
_METHODS = frozenset({"get", "post", "delete"})

JSON, EVENTS, FORM, BYTES = "application/json", "text/event-stream", "multipart/form-data", "application/octet-stream"
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
}
_OF_BODY = {JSON: (400, 413, 415), FORM: (400, 413)}
"""How a body is refused, whichever endpoint it is for."""


Schemas = Mapping[str, Mapping[str, Any]]
"""Of parameters, by their names."""


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    error: ErrorDetail


def contract(
    body: type[BaseModel] | None,
    answer: type[BaseModel] | None,
    *refusals: int,
    streams: bool = False,
    media: str = JSON,
    sent: str = JSON,
    query: Schemas | None = None,
    headers: Schemas | None = None,
) -> dict[str, Any]:
    """A route's arguments.

    body:     what is sent
    answer:   what comes with 200; None: something that is no JSON
    refusals: statuses of REFUSALS that may come, beside those of the gate and of bodies
    streams:  server-sent events may come in its place
    media:    of an answer that is no JSON
    sent:     of the body
    query, headers: of the request, those that FastAPI does not know of
    """
    done: dict[str, Any] = {"description": "Done"}
    if answer is not None:
        done["model"] = answer
    content: dict[str, Any] = {} if answer is not None or media == EVENTS else {media: {"schema": {"type": "string"}}}
    if streams or media == EVENTS:
        content[EVENTS] = {"itemSchema": EVENT}
    if content:
        done["content"] = content
    refused = {s: _refusal(s) for s in sorted({*refusals, *(() if body is None else _OF_BODY[sent])})}
    extra: dict[str, Any] = {}
    if body is not None:
        schema = body.model_json_schema(ref_template=f"{_SCHEMAS}{body.__name__}.{{model}}")
        extra["requestBody"] = {"required": True, "content": {sent: {"schema": schema}}}
    extra["parameters"] = [*_parameters("query", query), *_parameters("header", headers)]
    kind = Response if answer is None else JSONResponse
    return {"responses": {200: done, **refused}, "response_model": None, "response_class": kind, "openapi_extra": extra}


def _parameters(where: str, schemas: Schemas | None) -> list[dict[str, Any]]:
    return [{"name": name, "in": where, "schema": dict(schema)} for name, schema in (schemas or {}).items()]


def _refusal(status: int) -> dict[str, Any]:
    told = {"description": REFUSALS[status]}
    return told if status == 499 else {**told, "model": ErrorAnswer}


def describe(app: FastAPI, keyring: Keyring, needs_key: bool) -> None:
    """Gives the application its document: FastAPI's, with what it does not know of.

    needs_key: even where none was made
    """

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        key: dict[str, list[str]] = {"key": []}
        app.openapi_schema["security"] = [key] if needs_key or keyring.required else [key, {}]
        return app.openapi_schema

    app.openapi = document


def _document(app: FastAPI) -> dict[str, Any]:
    made = get_openapi(title=app.title, version=app.version, routes=app.routes)
    components = made.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for path, operations in made["paths"].items():
        for method in _METHODS & operations.keys():
            operation = operations[method]
            _name_schemas(operation.get("requestBody", {}).get("content", {}).values(), schemas)
            _add_gate(operation, method.upper(), path)
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer", "description": "A key of `shoal keys create`"}}
    return made


def _name_schemas(contents: Iterable[dict[str, Any]], schemas: dict[str, Any]) -> None:
    """A body's schema and those inside of it move to where the document's references look for them."""
    for content in contents:
        name = content["schema"]["title"]
        inner = content["schema"].pop("$defs", {})
        schemas.update({name: content["schema"], **{f"{name}.{each}": schema for each, schema in inner.items()}})
        content["schema"] = {"$ref": _SCHEMAS + name}


def _add_gate(operation: dict[str, Any], method: str, path: str) -> None:
    responses = operation["responses"]
    responses.pop("422", None)  # bodies and queries are refused with 400 here
    for status in gate.refusals(method, path):
        responses.setdefault(
            str(status), {"description": REFUSALS[status], "content": {JSON: {"schema": {"$ref": f"{_SCHEMAS}ErrorAnswer"}}}}
        )
    operation["responses"] = dict(sorted(responses.items()))
    if not gate.asks_key(path):
        operation["security"] = []
    else:
        operation.setdefault("parameters", []).extend(_parameters("header", gate.HEADERS))
