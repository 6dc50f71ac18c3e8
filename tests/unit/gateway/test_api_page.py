"""The API's pages say of every parameter what becomes of it, and of every error what it means."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ollama
import pytest
from anthropic.resources.beta.messages import Messages as BetaMessages
from anthropic.resources.messages import Messages
from ollama import Client
from openai.resources.batches import Batches
from openai.resources.chat.completions import Completions
from openai.resources.completions import Completions as LegacyCompletions
from openai.resources.embeddings import Embeddings
from openai.resources.responses import Responses

from shoal.config import ApiSettings
from shoal.gateway.endpoints.batches.wire import BatchRequest
from shoal.gateway.endpoints.chat.wire import ChatRequest
from shoal.gateway.endpoints.completions.wire import CompletionRequest
from shoal.gateway.endpoints.embeddings.wire import EmbeddingRequest
from shoal.gateway.endpoints.messages.wire import CountRequest, MessagesRequest
from shoal.gateway.endpoints.ollama.wire import ChatRequest as OllamaChatRequest
from shoal.gateway.endpoints.ollama.wire import EmbeddingsRequest, EmbedRequest, GenerateRequest, Options, ShowRequest
from shoal.gateway.endpoints.responses.wire import ResponseRequest
from shoal.gateway.endpoints.tokens import DetokenizeRequest, TokenizeRequest
from shoal.gateway.http import faults
from shoal.gateway.schema.wire import Wire
from tests.support.app import app_of
from tests.support.engine import FakeEngine

PAGES = {path.name: path.read_text() for path in (Path(__file__).parents[3] / "docs").glob("api*.md")}
TEXT = "\n".join(PAGES.values())
SECTIONS = {part.partition("\n")[0]: part for part in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]}


@pytest.mark.parametrize(
    ("body", "title"),
    [
        (ChatRequest, "Chat and completions"),
        (CompletionRequest, "Chat and completions"),
        (ResponseRequest, "Responses"),
        (EmbeddingRequest, "Embeddings"),
        (TokenizeRequest, "Tokens"),
        (DetokenizeRequest, "Tokens"),
        (BatchRequest, "Batches"),
        (MessagesRequest, "Anthropic's API"),
        (CountRequest, "Anthropic's API"),
        (GenerateRequest, "Ollama's API"),
        (OllamaChatRequest, "Ollama's API"),
        (EmbedRequest, "Ollama's API"),
        (EmbeddingsRequest, "Ollama's API"),
        (ShowRequest, "Ollama's API"),
        (Options, "Ollama's API"),
    ],
)
def test_every_parameter_is_told_in_its_endpoint_s_section(body: type[Wire], title: str) -> None:
    told = set(re.findall(r"`/?([a-z0-9_]+)[^`]*`", SECTIONS[title]))
    assert {name for name in (*body.model_fields, *body.inert) if name not in told} == set()


@pytest.mark.parametrize(
    ("method", "body"),
    [
        (Completions.create, ChatRequest),
        (LegacyCompletions.create, CompletionRequest),
        (Responses.create, ResponseRequest),
        (Embeddings.create, EmbeddingRequest),
        (Batches.create, BatchRequest),
        (Messages.create, MessagesRequest),
        (BetaMessages.create, MessagesRequest),
        (Messages.count_tokens, CountRequest),
        (BetaMessages.count_tokens, CountRequest),
        (Client.generate, GenerateRequest),
        (Client.chat, OllamaChatRequest),
        (Client.embed, EmbedRequest),
        (Client.embeddings, EmbeddingsRequest),
        (Client.show, ShowRequest),
        (ollama.Options, Options),
    ],
)
def test_every_parameter_of_the_sdks_is_known(method: Callable[..., Any], body: type[Wire]) -> None:
    own = {"self", "extra_headers", "extra_query", "extra_body", "timeout", "betas"}  # betas: a header
    assert set(inspect.signature(method).parameters) - own - {*body.model_fields, *body.inert} == set()


def test_every_code_of_an_error_is_told() -> None:
    codes = set(re.findall(r'(?:code=|, )"([a-z_]+)"', inspect.getsource(faults.fault))) - {"id"}
    assert len(codes) > 10
    assert {code for code in codes if f"`{code}`" not in SECTIONS["Errors"]} == set()


def test_every_endpoint_is_told(tmp_path: Path) -> None:
    paths = list(app_of(FakeEngine(), ApiSettings(data=str(tmp_path))).openapi()["paths"])
    assert len(paths) > 15
    plain = {re.sub(r"\{name.*\}", "NAME", path).replace("{id}", "ID") for path in paths}
    assert {path for path in plain if path not in TEXT and path.removeprefix("/v1") not in TEXT} == set()
