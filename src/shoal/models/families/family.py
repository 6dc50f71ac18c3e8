"""What shoal has to know about a family of models; each is described in a file of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shoal.models.families.config import ConfigJson
from shoal.models.families.metadata import GgufMetadata
from shoal.models.families.tensor_names import GGUF, HUGGING_FACE, TensorNames
from shoal.models.spec import LayerSpec


@dataclass(frozen=True)
class Family:
    name: str
    """`model_type` in config.json."""
    title: str
    """As people write it."""
    from_config: Callable[[ConfigJson], tuple[LayerSpec, ...]]
    from_metadata: Callable[[GgufMetadata], tuple[LayerSpec, ...]] | None = None
    """Of GGUF files whose `general.architecture` is the family's name. None: its GGUF files say that they are another family's."""
    interleaved: bool = False
    """GGUF files hold the rows of queries and keys in the interleaved rotary order (convert_hf_to_gguf.py, LlamaModel.permute)."""
    gguf: TensorNames = GGUF
    safetensors: TensorNames = HUGGING_FACE
