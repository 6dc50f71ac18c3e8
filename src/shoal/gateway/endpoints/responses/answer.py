"""The shapes of responses and their items, for the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from shoal.gateway.endpoints.responses.wire import AllowedChoice, CustomChoice, CustomFormat, NamedChoice, Status
from shoal.gateway.schema.variables import Effort
from shoal.gateway.schema.wire import ServiceTier, Shape


class TopLogprob(Shape):
    token: str
    logprob: float | None
    bytes: list[int]


class Logprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class OutputText(Shape):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[Logprob]


class InputText(Shape):
    type: Literal["input_text"]
    text: str


class OutputMessage(Shape):
    id: str
    type: Literal["message"]
    status: Status
    role: Literal["assistant"]
    content: list[OutputText]


class InputMessage(Shape):
    id: str
    type: Literal["message"]
    status: Status
    role: Literal["system", "developer", "user", "assistant"]
    content: list[Annotated[InputText | OutputText, Field(discriminator="type")]]


class FunctionCallItem(Shape):
    id: str
    type: Literal["function_call"]
    status: Status
    call_id: str
    name: str
    arguments: str


class FunctionCallOutputItem(Shape):
    id: str
    type: Literal["function_call_output"]
    status: Status
    call_id: str
    output: str | list[InputText]


class CustomToolCallItem(Shape):
    id: str
    type: Literal["custom_tool_call"]
    status: Status
    call_id: str
    name: str
    input: str


class CustomToolCallOutputItem(Shape):
    id: str
    type: Literal["custom_tool_call_output"]
    status: Status
    call_id: str
    output: str | list[InputText]


class SummaryText(Shape):
    type: Literal["summary_text"]
    text: str


class ReasoningText(Shape):
    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(Shape):
    id: str
    type: Literal["reasoning"]
    status: Status
    summary: list[SummaryText]
    content: list[ReasoningText]
    encrypted_content: str = ""  # present if it was sent


class CompactionOutput(Shape):
    id: str
    type: Literal["compaction"]
    encrypted_content: str


class InputItems(Shape):
    object: Literal["list"]
    data: list[
        Annotated[
            InputMessage
            | FunctionCallItem
            | FunctionCallOutputItem
            | CustomToolCallItem
            | CustomToolCallOutputItem
            | ReasoningItem
            | CompactionOutput,
            Field(discriminator="type"),
        ]
    ]
    first_id: str | None
    last_id: str | None
    has_more: bool


class InputTokens(Shape):
    object: Literal["response.input_tokens"]
    input_tokens: int


class DeletedResponse(Shape):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


class ResponseError(Shape):
    code: Literal["server_error", "rate_limit_exceeded"]
    message: str


class Incomplete(Shape):
    reason: Literal["max_output_tokens"]


class InputDetails(Shape):
    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(Shape):
    reasoning_tokens: int


class ResponseUsage(Shape):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Reasoning(Shape):
    effort: Effort | None
    summary: Literal["auto", "concise", "detailed"] | None


class ToldFormat(Shape):
    """What belongs to json_schema is there where it was sent."""

    type: Literal["text", "json_object", "json_schema"]
    name: str = ""
    description: str = ""
    definition: dict[str, Any] = Field(alias="schema", default_factory=dict[str, Any])
    strict: bool = False


class ToldText(Shape):
    format: ToldFormat
    verbosity: Literal["medium"]


class ToldFunction(Shape):
    type: Literal["function"]
    name: str
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool | None


class ToldCustom(Shape):
    type: Literal["custom"]
    name: str
    description: str = ""  # present if it was sent
    format: CustomFormat | None = None


class ResponseAnswer(Shape):
    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: ResponseError | None
    incomplete_details: Incomplete | None
    model: str
    output: list[Annotated[OutputMessage | ReasoningItem | FunctionCallItem | CustomToolCallItem, Field(discriminator="type")]]
    usage: ResponseUsage
    service_tier: ServiceTier
    background: Literal[False]
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None
    metadata: dict[str, str]
    frequency_penalty: float
    parallel_tool_calls: bool
    presence_penalty: float
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: Reasoning
    safety_identifier: str | None
    store: bool
    temperature: float
    text: ToldText
    tool_choice: Literal["auto", "none", "required"] | NamedChoice | CustomChoice | AllowedChoice
    tools: list[Annotated[ToldFunction | ToldCustom, Field(discriminator="type")]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    user: str = ""  # present if it was sent


class CompactedAnswer(Shape):
    """The messages of the user, and what stands for all the rest."""

    id: str
    object: Literal["response.compaction"]
    created_at: int
    output: list[Annotated[InputMessage | CompactionOutput, Field(discriminator="type")]]
    usage: ResponseUsage
