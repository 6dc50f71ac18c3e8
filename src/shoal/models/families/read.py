"""Reads what a model is from the metadata of a GGUF file or from a config.json: finds the family, which does the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from shoal.errors import CorruptModel, UnsupportedModel
from shoal.models.families import ARCHITECTURES, BY_MODEL_TYPE, FAMILIES
from shoal.models.families.config import ConfigJson
from shoal.models.families.metadata import GgufMetadata
from shoal.models.int4 import METHODS as INT4_METHODS
from shoal.models.int4 import Int4
from shoal.models.spec import ModelSpec


def _unknown(where: object, what: str) -> UnsupportedModel:
    return UnsupportedModel(f"{where}: {what} is not supported; shoal runs the families {', '.join(FAMILIES)}")


def spec_from_gguf(
    meta: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]], factors: Mapping[str, Sequence[float]], where: object
) -> ModelSpec:
    """tensors: names and shapes, rows first. factors: of the rotary embedding, by the names of their tensors without '.weight'.

    Raises CorruptModel, UnsupportedModel.
    """
    architecture = str(meta.get("general.architecture"))
    family = ARCHITECTURES.get(architecture)
    if family is None or family.from_metadata is None:
        raise _unknown(where, f"architecture '{architecture}'")
    try:
        return family.from_metadata(GgufMetadata(family.name, meta, tensors, factors, where))
    except (ValueError, TypeError, OverflowError) as error:
        raise CorruptModel(where, f"the metadata does not hold together ({error})") from None


def spec_from_config(values: Mapping[str, Any], where: object) -> ModelSpec:
    """From the content of a config.json. Raises CorruptModel, UnsupportedModel; ValueError, TypeError, OverflowError for values of other kinds."""
    name = str(values.get("model_type"))
    if (family := BY_MODEL_TYPE.get(name)) is None:
        raise _unknown(where, f"model_type '{name}'")
    if quantised := cast("Mapping[str, Any]", values.get("quantization_config") or {}):
        method = quantised.get("quant_method")
        if method in INT4_METHODS:
            Int4.of(quantised, where)
        elif method not in family.quantisations:
            raise UnsupportedModel(
                f"{where}: weights quantised by '{method}' are not supported; use a GGUF file or unquantised safetensors"
            )
    try:
        return family.from_config(ConfigJson(family.name, values, where))
    except KeyError as error:
        raise CorruptModel(where, f"config.json has no {error}") from None
