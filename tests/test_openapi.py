"""The OpenAPI document is true: a fuzzer that is driven by it finds nothing else than what it says."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from shoal.gateway.app import create_app
from tests.support.engine import FakeEngine

CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]

app = create_app(FakeEngine())
schema = schemathesis.openapi.from_asgi("/openapi.json", app)


@schema.parametrize()
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_comes_back_is_what_the_document_says(case: Any) -> None:
    case.call_and_validate(checks=CHECKS)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models", "/health"])
def test_every_endpoint_is_in_the_document(path: str) -> None:
    assert path in app.openapi()["paths"]


def test_a_lie_would_be_noticed() -> None:
    """The checks are not blind: a document that promises something else is found out."""
    lying = create_app(FakeEngine())
    document = lying.openapi()
    document["components"]["schemas"]["ModelList"]["required"].append("never_there")
    document["components"]["schemas"]["ModelList"]["properties"]["never_there"] = {"type": "integer"}
    operation = schemathesis.openapi.from_asgi("/openapi.json", lying)["/v1/models"]["GET"]
    with pytest.raises(FailureGroup) as found:
        operation.Case().call_and_validate(checks=CHECKS)
    assert "never_there" in str(found.value.exceptions)
