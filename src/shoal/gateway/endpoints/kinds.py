"""The kinds of jobs, for answers that are taken up again."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from shoal.gateway.answers.job import Job
from shoal.gateway.endpoints.chat.job import ChatJob
from shoal.gateway.endpoints.completions.job import CompletionJob
from shoal.gateway.endpoints.messages.job import MessageJob
from shoal.gateway.endpoints.ollama.job import OllamaJob
from shoal.gateway.endpoints.responses.compaction import CompactionJob
from shoal.gateway.endpoints.responses.job import ResponseJob
from shoal.request import Request

Kind = ChatJob | CompletionJob | ResponseJob | CompactionJob | MessageJob | OllamaJob


def recalled(note: bytes, requests: Sequence[Request]) -> Job:
    """Raises msgspec.MsgspecError if the note is not of this version."""
    return msgspec.structs.replace(msgspec.msgpack.decode(note, type=Kind), requests=tuple(requests))
