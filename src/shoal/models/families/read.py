"""Reads what a model is from the metadata of a GGUF file or from a config.json: finds the family, which does the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from shoal.errors import CorruptModel, UnsupportedModel
from shoal.models.families import ARCHITECTURES, BY_MODEL_TYPE, FAMILIES
from shoal.models.families.config import ConfigJson
from shoal.models.families.family import Family
from shoal.models.families.metadata import GgufMetadata
from shoal.models.int4 import METHODS as INT4_METHODS
from shoal.models.int4 import Int4
from shoal.models.spec import ModelSpec


def _unknown(where: object, what: str) -> UnsupportedModel:
    return UnsupportedModel(f"{where}: {what} is not supported; shoal runs the families {', '.join(FAMILIES)}")


_NONSENSE = (ValueError, TypeError, ArithmeticError, AttributeError)
"""What comes of values of other kinds, or of sizes that cannot be."""


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
        spec = family.from_metadata(GgufMetadata(family.name, meta, tensors, factors, where))
        spec.check(where)
    except _NONSENSE as error:
        raise CorruptModel(where, f"the metadata does not hold together ({error})") from None
    return spec


def spec_from_config(values: Mapping[str, Any], where: object) -> ModelSpec:
    """From the content of a config.json. Raises CorruptModel, UnsupportedModel."""
    name = str(values.get("model_type"))
    if (family := BY_MODEL_TYPE.get(name)) is None:
        raise _unknown(where, f"model_type '{name}'")
    try:
        _check_quantisation(family, cast("Mapping[str, Any]", values.get("quantization_config") or {}), where)
        spec = family.from_config(ConfigJson(family.name, values, where))
        spec.check(where)
    except KeyError as error:
        raise CorruptModel(where, f"config.json has no {error}") from None
    except _NONSENSE as error:
        raise CorruptModel(where, f"not a model's configuration ({error})") from None
    return spec


def _check_quantisation(family: Family, told: Mapping[str, Any], where: object) -> None:
    method = told.get("quant_method") if told else None
    if method in INT4_METHODS:
        Int4.of(told, where)
    elif told and method not in family.quantisations:
        raise UnsupportedModel(f"{where}: weights quantised by '{method}' are not supported; use a GGUF file or unquantised safetensors")
