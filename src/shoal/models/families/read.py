"""Reads what a model is from the metadata of a GGUF file or from a config.json: finds the family, which does the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from shoal.errors import CorruptModel, UnsupportedModel
from shoal.models.families import FAMILIES
from shoal.models.families.config import ConfigJson
from shoal.models.families.metadata import GgufMetadata
from shoal.models.spec import ModelSpec


def _unknown(where: object, what: str) -> UnsupportedModel:
    return UnsupportedModel(f"{where}: {what} is not supported; shoal runs the families {', '.join(FAMILIES)}")


def spec_from_gguf(meta: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]], factors: Sequence[float], where: object) -> ModelSpec:
    """tensors: names and shapes, rows first. factors: rope_freqs.weight, empty where the file has none.

    Raises CorruptModel, UnsupportedModel.
    """
    architecture = str(meta.get("general.architecture"))
    family = FAMILIES.get(architecture)
    if family is None or family.from_metadata is None:
        raise _unknown(where, f"architecture '{architecture}'")
    read = GgufMetadata(architecture, meta, factors, where)
    try:
        layers = family.from_metadata(read)
        vocabulary = tensors.get(family.gguf.stored("embed"), ())[:1]
        if not vocabulary:
            raise CorruptModel(where, f"no {family.gguf.stored('embed')}")
        tied = family.gguf.stored("head") not in tensors
        return ModelSpec(family.name, read.hidden, int(vocabulary[0]), read.eps, read.context, tied, layers)
    except (ValueError, TypeError, OverflowError) as error:
        raise CorruptModel(where, f"the metadata does not hold together ({error})") from None


def spec_from_config(values: Mapping[str, Any], where: object) -> ModelSpec:
    """From the content of a config.json. Raises CorruptModel, UnsupportedModel; ValueError, TypeError, OverflowError for values of other kinds."""
    name = str(values.get("model_type"))
    if (family := FAMILIES.get(name)) is None:
        raise _unknown(where, f"model_type '{name}'")
    if values.get("quantization_config"):
        method = cast("Mapping[str, Any]", values["quantization_config"]).get("quant_method")
        raise UnsupportedModel(f"{where}: weights quantised by '{method}' are not supported; use a GGUF file or unquantised safetensors")
    config = ConfigJson(values, where)
    return ModelSpec(
        family=name,
        hidden=config.hidden,
        vocabulary=config.whole("vocab_size"),
        eps=float(config.get("rms_norm_eps", 1e-6)),
        context=config.whole("max_position_embeddings"),
        tied=bool(config.get("tie_word_embeddings", False)),
        layers=family.from_config(config),
    )
