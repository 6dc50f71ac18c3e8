"""Quantisations according to the names of GGUF files. What a file really contains is in its header."""

from __future__ import annotations

import re

from shoal.models.matrix import FORMATS

_LABEL = re.compile(
    r"(?<![A-Za-z0-9])((?:UD-)?(?:I?Q\d+(?:_[A-Z0-9]+)*|TQ\d_\d|MXFP4(?:_MOE)?|NVFP4|BF16|FP?16|FP?32))(?![A-Za-z0-9])", re.IGNORECASE
)
_PART = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)", re.IGNORECASE)
_MIXTURE = re.compile(r"_(?:xxl|xl|l|m|s|xs|xxs|moe)$")  # which tensors get more bits, or that only the experts have these


def label(path: str) -> str:
    """'Q4_K_M' of 'Q4_K_M/Model-Q4_K_M-00001-of-00002.gguf'; '' if the name does not say."""
    found = _LABEL.findall(_PART.sub("", path).removesuffix(".gguf"))
    return re.sub(r"^FP(?=\d)", "F", found[-1].upper()) if found else ""


def runnable(quantization: str) -> bool:
    """Whether shoal runs the quantisation of a label; '' may be anything, so it counts as runnable."""
    base = quantization.removeprefix("UD-").lower()
    plain = _MIXTURE.sub("", base)
    return not base or base in FORMATS or plain in FORMATS or (plain[:2] == "iq" and any(f.startswith(f"{plain}_") for f in FORMATS))
