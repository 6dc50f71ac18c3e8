"""An application's OpenAPI document, and what an answer is held against it for."""

from __future__ import annotations

from typing import Any

import schemathesis
from fastapi import FastAPI
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]


def document(app: FastAPI) -> Any:
    """As whoever may ask reads it."""
    return schemathesis.openapi.from_asgi("/openapi.json", app, config=SchemathesisConfig.from_dict({"max-stream-events": 100_000}))
