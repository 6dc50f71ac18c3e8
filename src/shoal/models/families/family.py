"""What shoal has to know about a family of models; each is described in a file of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shoal.models.families.config import ConfigJson
from shoal.models.families.metadata import GgufMetadata
from shoal.models.families.tensor_names import GGUF, HUGGING_FACE, TensorNames
from shoal.models.spec import ModelSpec


@dataclass(frozen=True)
class Stored:
    """How files of one kind have a family's tensors."""

    names: TensorNames
    interleaved: bool = False
    """The rows that are rotated lie in pairs (convert_hf_to_gguf.py, LlamaModel.permute), not in halves."""
    norms_less_one: bool = False
    """RMS norms' weights are stored less one."""


@dataclass(frozen=True)
class Family:
    name: str
    """`model_type` in config.json."""
    title: str
    """As people write it."""
    from_config: Callable[[ConfigJson], ModelSpec]
    from_metadata: Callable[[GgufMetadata], ModelSpec] | None = None
    """None: its GGUF files say that they are another family's, or llama.cpp has none."""
    architecture: str = ""
    """`general.architecture` of its GGUF files; empty: its name."""
    aliases: tuple[str, ...] = ()
    """Other `model_type`s that are read alike."""
    biases: tuple[str, ...] = ()
    """Parts whose matrices always have a bias, by the last word of their names."""
    quantisations: tuple[str, ...] = ()
    """Of `quant_method`s, those that its tensor names cover."""
    safetensors: Stored = Stored(HUGGING_FACE)
    gguf: Stored = Stored(GGUF)
