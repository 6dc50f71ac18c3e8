"""Where tests of Triton's kernels have their tensors."""

from __future__ import annotations

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def normal_values(*shape: int, seed: int = 0, deviation: float = 1.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The same on every device."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * deviation).to(dtype).to(DEVICE)
