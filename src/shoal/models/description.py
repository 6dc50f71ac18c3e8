"""All that the head needs of a model: what it is, its tokenizer's files, and its tensors' formats, but none of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog

from shoal.errors import FetchError
from shoal.models.manifest import Manifest, manifest
from shoal.models.sources import Progress, Reference, pin, public_name, pull, pull_description, silent
from shoal.models.spec import ModelSpec
from shoal.models.weights import GgufWeights, Weights, open_spec, open_weights

log = structlog.get_logger()


@dataclass(frozen=True)
class Description:
    name: str
    """As the API shows it."""
    reference: str
    """What the nodes load; a hub reference is pinned to a commit."""
    path: Path
    spec: ModelSpec
    weights: Weights | None
    """None where only the description was fetched."""
    gguf: Mapping[str, Any] | None
    """A GGUF file's metadata."""
    manifest: Manifest | None = None
    """What the files are, where nodes are to hear it."""
    files: Mapping[str, Path] = field(default_factory=dict[str, Path])
    """Those of them that are on this machine, by hash."""


def describe(text: str, progress: Progress = silent) -> Description:
    """Fetches what describes a model (a GGUF file whole) and reads it. Raises what sources and weights raise."""
    reference = pin(text)
    if Reference.parse(reference).kind == "hub":
        path = pull_description(reference)
        return Description(public_name(text), reference, path, open_spec(path), None, None)
    path = pull(reference, progress)
    weights = open_weights(path)
    meta = weights.file.meta if isinstance(weights, GgufWeights) else None
    resolved = str(path) if Reference.parse(reference).kind == "path" else reference
    return Description(public_name(text), resolved, path, weights.spec, weights, meta)


def listed(description: Description, hash_paths: bool) -> Description:
    """With the list of the files, by which nodes fetch them from each other: see manifest.manifest."""
    try:
        made, files = manifest(description.reference, description.path, hash_paths)
    except (OSError, FetchError) as error:
        log.warning("nodes are not told what the model's files are", reason=str(error))
        return description
    return replace(description, manifest=made, files=files)
