"""What tensors the functions refuse."""

from __future__ import annotations

import torch


def named(dtypes: tuple[torch.dtype, ...]) -> str:
    return " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def check_tensor(name: str, tensor: object, dimensions: int, dtypes: tuple[torch.dtype, ...]) -> None:
    """Raises TypeError if it is no tensor, or of another type; ValueError if it has other dimensions, or is sparse."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, not {type(tensor).__name__}")
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name} must be {named(dtypes)}, not {named((tensor.dtype,))}")
    if tensor.dim() != dimensions:
        raise ValueError(f"{name} must have {dimensions} dimension{'s' * (dimensions > 1)}; its shape is {tuple(tensor.shape)}")
    if tensor.layout is not torch.strided:
        raise ValueError(f"{name} must be dense, not {tensor.layout}")
