"""What the OpenAPI document says of an endpoint. Bodies are parsed by hand, for OpenAI's errors; so the document is told of them here."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

_REF = "#/components/schemas/{model}"
_BODIES: dict[str, type[BaseModel]] = {}

EVENTS = "text/event-stream"
EVENT = {"type": "object", "required": ["data"], "properties": {name: {"type": "string"} for name in ("data", "id", "event")}}

REFUSALS = {
    400: "The request is invalid, or asks for what is not served",
    404: "No such model, or no such thing",
    409: "X-Request-Id names a request that there is already",
    413: "The body is too large",
    429: "Too much is asked for now; Retry-After says when to come again",
    499: "The client went away",
    503: "No model is served now; Retry-After says when to come again",
}


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    error: ErrorDetail


def contract(
    body: type[BaseModel] | None, answer: type[BaseModel] | None, *refusals: int, streams: bool = False, media: str = "application/json"
) -> dict[str, Any]:
    """A route's arguments.

    body:     what is sent, as JSON
    answer:   what comes with 200; None: something that is no JSON
    refusals: statuses of REFUSALS that may come
    streams:  server-sent events may come in its place
    media:    of an answer that is no JSON
    """
    done: dict[str, Any] = {"description": "Done"}
    if answer is not None:
        done["model"] = answer
    content: dict[str, Any] = {} if answer is not None or media == EVENTS else {media: {"schema": {"type": "string"}}}
    if streams or media == EVENTS:
        content[EVENTS] = {"itemSchema": EVENT}
    if content:
        done["content"] = content
    refused: dict[int, Any] = {
        s: {"description": REFUSALS[s]} if s == 499 else {"description": REFUSALS[s], "model": ErrorAnswer} for s in refusals
    }
    made: dict[str, Any] = {"responses": {200: done, **refused}, "response_model": None}
    if body is not None:
        _BODIES[body.__name__] = body
        schema = {"$ref": _REF.format(model=body.__name__)}
        made["openapi_extra"] = {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
    return made


def describe(app: FastAPI) -> None:
    """Gives the application its document: FastAPI's, with the bodies that it does not know of."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, routes=app.routes)
            schemas = made.setdefault("components", {}).setdefault("schemas", {})
            for name, body in _BODIES.items():
                schema = body.model_json_schema(ref_template=_REF)
                schemas.update(schema.pop("$defs", {}))
                schemas[name] = schema
            for path in made["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)  # bodies and queries are refused with 400 here
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document
