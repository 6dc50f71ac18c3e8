"""Starting kernels: the only module beside the kernels themselves that uses Triton."""

from __future__ import annotations

from typing import Any

import torch
from triton.runtime.jit import JITFunction  # pyright: ignore[reportMissingTypeStubs]


def interpreted(kernel: object) -> bool:
    """Whether Triton interprets the kernel: TRITON_INTERPRET=1 was set when Triton was imported."""
    return not isinstance(kernel, JITFunction)


def check_device(kernel: object, **tensors: torch.Tensor | None) -> None:
    """Raises ValueError unless all are where the kernel can run: on one GPU; interpreted, also in the memory of the processor."""
    places = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    if len(set(places.values())) > 1:
        raise ValueError(f"all tensors must be on one device; {', '.join(f'{name} is on {device}' for name, device in places.items())}")
    for name, device in places.items():
        if device.type != "cuda" and (device.type != "cpu" or not interpreted(kernel)):
            raise ValueError(
                f"{name} is on {device}: Triton's kernels run on a GPU; set TRITON_INTERPRET=1 before triton is imported to run them without"
            )


def launch(kernel: Any, programs: int, *arguments: torch.Tensor | float | None, **constants: object) -> None:
    """Starts that many programs of a kernel, on the GPU of its first argument."""
    first = arguments[0]
    with torch.cuda.device_of(first):
        kernel[(programs,)](*arguments, **constants)


def next_power_of_two(number: int) -> int:
    """The smallest that is not below the number."""
    return 1 << max(number - 1, 0).bit_length()


def tiles(number: int, of: int) -> int:
    """How many of that size cover the number."""
    return -(-number // of)
