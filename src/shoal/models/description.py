"""Everything about a model that the head needs: its spec, its tokenizer's files and its tensors' formats, but not its weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog

from shoal.errors import FetchError
from shoal.facts import ModelFacts
from shoal.models.manifest import Manifest, manifest
from shoal.models.matrix import stored_bytes
from shoal.models.progress import Progress, silent
from shoal.models.sources import public_name, resolve
from shoal.models.spec import Experts, Latent, ModelSpec
from shoal.models.weights import GgufWeights, Weights, open_spec, open_weights

log = structlog.get_logger()


@dataclass(frozen=True)
class Description:
    name: str
    """As shown by the API."""
    reference: str
    """What the nodes load; a hub reference is pinned to a commit."""
    path: Path
    spec: ModelSpec
    weights: Weights | None
    """None if only the description was fetched."""
    gguf: Mapping[str, Any] | None
    """A GGUF file's metadata."""
    manifest: Manifest | None = None
    """What the files are, if nodes need to know."""
    files: Mapping[str, Path] = field(default_factory=dict[str, Path])
    """The files that are on this machine, by hash."""


def describe(text: str, progress: Progress = silent) -> Description:
    """Fetches what describes a model (all of a GGUF file) and reads it. Raises what sources and weights raise."""
    source = resolve(text)
    reference = source.reference
    if reference.kind == "hub" and reference.gguf is None:
        path = source.pull_description()
        return Description(public_name(text), str(reference), path, open_spec(path), None, None)
    path = source.pull(progress)
    weights = open_weights(path)
    weights.check(range(len(weights.spec.layers)))
    meta = weights.file.meta if isinstance(weights, GgufWeights) else None
    return Description(public_name(text), str(reference), path, weights.spec, weights, meta)


def facts(description: Description) -> ModelFacts:
    """If only the description is here, its matrices count as bf16."""
    spec, weights = description.spec, description.weights
    named = {f"layers.{i}.{name}": shape for i in range(len(spec.layers)) for name, shape in spec.matrices(i).items()}
    whole = (spec.vocabulary, spec.hidden)
    sizes = {name: n * k for name, (n, k) in {**named, "embed": whole, **({} if spec.tied else {"head": whole})}.items()}
    formats: Counter[str] = Counter()
    stored = 0
    for name, size in sizes.items():
        format = "bf16" if weights is None else weights.format(name)
        formats[format] += size
        stored += stored_bytes(format, size)
    layer = spec.layers[-1]  # the first ones may be simpler
    attention, experts = layer.attention, layer.feed_forward if isinstance(layer.feed_forward, Experts) else None
    latent = isinstance(attention, Latent)
    return ModelFacts(
        family=spec.family,
        layers=len(spec.layers),
        hidden=spec.hidden,
        intermediate=layer.feed_forward.width,
        q_heads=attention.q_heads,
        kv_heads=attention.q_heads if latent else attention.kv_heads,
        head_dim=attention.nope_dim + attention.rope_dim if latent else attention.head_dim,
        value_dim=attention.value_dim if latent else attention.values,
        experts=experts.count if experts else 0,
        experts_used=experts.routing.chosen if experts else 0,
        vocabulary=spec.vocabulary,
        context=spec.context,
        parameters=sum(sizes.values()),
        bytes=stored,
        container="safetensors" if description.gguf is None else "gguf",
        quantization=formats.most_common(1)[0][0].upper(),
    )


def listed(description: Description, hash_paths: bool) -> Description:
    """Adds the list of files, with which nodes fetch them from each other: see manifest.manifest."""
    try:
        made, files = manifest(description.reference, description.path, hash_paths)
    except (OSError, FetchError) as error:
        log.warning("nodes are not told what the model's files are", reason=str(error))
        return description
    return replace(description, manifest=made, files=files)
