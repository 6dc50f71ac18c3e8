"""The models in Ollama's listings."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from shoal.errors import NotReady
from shoal.gateway.engine import Engine
from shoal.gateway.engines import Engines
from shoal.gateway.schema.moment import moment
from shoal.serving.aliases import standing

_LATEST = ":latest"
"""The tag that Ollama appends to a name without one."""
_FOREVER = 100 * 365 * 86400
"""Seconds until a model that stays loaded is said to be unloaded; clients expect a time."""


def tags(engines: Engines) -> list[dict[str, Any]]:
    """The answer of /api/tags: the models that are there and their aliases, which have the digest of what they stand for."""
    there = {engine.name: engine for engine in engines.all}
    aliases = {alias: engines.resolve(alias) for alias in standing(engines.aliases, there)}
    return [tag(engine, engine.name) for engine in there.values()] + [tag(there[model], alias) for alias, model in aliases.items()]


def tag(engine: Engine, name: str) -> dict[str, Any]:
    """A model's entry under one of its names."""
    name, facts = tagged(name), engine.facts
    digest = hashlib.sha256(msgspec.json.encode([engine.name, facts])).hexdigest()
    return {
        "name": name,
        "model": name,
        "modified_at": moment(engine.created),
        "size": facts.bytes,
        "digest": digest,
        "details": _details(engine),
    }


def running(engines: Engines) -> list[dict[str, Any]]:
    """The answer of /api/ps: the models that are loaded."""
    out: list[dict[str, Any]] = []
    for engine in engines.all:
        try:
            longest = engine.longest()
        except NotReady:
            continue
        shown = {key: value for key, value in tag(engine, engine.name).items() if key != "modified_at"}
        out.append({**shown, "expires_at": moment(engine.created + _FOREVER), "size_vram": 0, "context_length": longest})
    return out


def shown(engine: Engine) -> dict[str, Any]:
    """The answer of /api/show."""
    tokenizer = engine.tokenizer
    capabilities = [("completion", True), ("tools", tokenizer.tool_format), ("thinking", tokenizer.reasoning_format), ("embedding", True)]
    return {
        "license": "",
        "modelfile": "",
        "parameters": "",
        "template": "" if tokenizer.template is None else tokenizer.template.source,
        "modified_at": moment(engine.created),
        "details": _details(engine),
        "model_info": _info(engine),
        "capabilities": [name for name, has in capabilities if has],
    }


def tagged(name: str) -> str:
    return name if ":" in name else name + _LATEST


def named(name: str, engines: Engines) -> str:
    """The name here for a client's name of a model: Ollama's default tag may be present or absent."""
    names = {*engines.names, *engines.aliases}
    bare = name.removesuffix(_LATEST)
    return next((each for each in (name, bare, tagged(name)) if each in names), bare)


def _info(engine: Engine) -> dict[str, Any]:
    """Named like GGUF metadata. The context is the one that is served, which may be less than the model supports."""
    facts = engine.facts
    try:
        context = engine.longest()
    except NotReady:
        context = facts.context
    sizes = {
        "block_count": facts.layers,
        "context_length": context,
        "embedding_length": facts.hidden,
        "feed_forward_length": facts.intermediate,
        "attention.head_count": facts.q_heads,
        "attention.head_count_kv": facts.kv_heads,
        "attention.key_length": facts.head_dim,
        "attention.value_length": facts.value_dim or facts.head_dim,
        "vocab_size": facts.vocabulary,
        **({"expert_count": facts.experts, "expert_used_count": facts.experts_used} if facts.experts else {}),
    }
    general = {"general.architecture": facts.family, "general.basename": engine.name, "general.parameter_count": facts.parameters}
    return {**general, **{f"{facts.family}.{name}": value for name, value in sizes.items()}}


def _details(engine: Engine) -> dict[str, Any]:
    facts = engine.facts
    return {
        "parent_model": "",
        "format": facts.container,
        "family": facts.family,
        "families": [facts.family],
        "parameter_size": _human(facts.parameters),
        "quantization_level": facts.quantization,
    }


def _human(parameters: int) -> str:
    """A number of parameters in Ollama's form: 134.52M, 1.5B."""
    if parameters >= 10**9:
        return f"{parameters / 1e9:.1f}B"
    return f"{parameters / 1e6:.2f}M" if parameters >= 10**6 else f"{parameters / 1e3:.2f}K"
