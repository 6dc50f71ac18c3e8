"""The package without what it needs; and its kernels compiled for GPUs, which the interpreter does not show to be possible."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import shoal
from shoal import triton as package

SOURCE = Path(shoal.__file__).parents[1]


def in_a_process(code: str, *path: Path, interpreted: bool = False, cache: Path | None = None) -> str:
    """What the code printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, [*path, *sys.path]))
    if interpreted:
        environment["TRITON_INTERPRET"] = "1"
    if cache is not None:
        environment["TRITON_CACHE_DIR"] = str(cache)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_is_missing_here() -> None:
    assert package.missing() == ""
    with pytest.raises(AttributeError, match="no attribute 'softmax'"):
        getattr(package, "softmax")  # noqa: B009


@pytest.mark.slow
def test_what_is_missing_is_said_and_the_package_imports_all_the_same() -> None:
    code = """
import importlib.util, sys
importlib.util.find_spec = lambda name, *_: None
from shoal import triton
print(triton.missing())
try:
    triton.top_k_gating
except ImportError as error:
    print(error)
print(sorted({"torch", "triton"} & set(sys.modules)))
"""
    why = "torch and triton cannot be imported, which the Triton kernels need; install shoal[triton]"
    assert in_a_process(code).splitlines() == [why, why, "[]"]


@pytest.mark.slow
def test_tensors_of_a_processor_need_the_interpreter() -> None:
    code = """
import torch
from shoal.triton import Gating, top_k_gating
try:
    print(top_k_gating(torch.tensor([[1.0, 3.0, 2.0]]), Gating(2))[1].tolist())
except ValueError as error:
    print(error)
"""
    assert "logits is on cpu: Triton's kernels run on a GPU; set TRITON_INTERPRET=1" in in_a_process(code)
    assert in_a_process(code, interpreted=True).strip() == "[[1, 2]]"


COMPILE = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from shoal.triton.gating_kernels import choose_backward_kernel, choose_kernel
from shoal.triton.int8_kernels import dequantise_kernel, int8_matmul_kernel

POINTERS = {"codes": "*i8", "ids": "*i64", "weights": "*fp32", "weights_gradient": "*fp32", "scale": "*fp32", "selection_bias": "*fp32"}

def built(kernel, target, dtype="*fp32", scale="*fp32", **constants):
    pointers = {**dict.fromkeys(("logits", "logits_gradient", "x", "out"), dtype), **POINTERS, "scale": scale}
    signature = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in kernel.arg_names}
    made = compile(ASTSource(kernel, signature, constants), target=target, options={"num_warps": 4, "enable_fp_fusion": False})
    assert made.asm["ptx" if target.backend == "cuda" else "amdgcn"]
    print(kernel.__name__, target.arch)

for target in (GPUTarget("cuda", 80, 32), GPUTarget("cuda", 90, 32), GPUTarget("hip", "gfx942", 64)):
    for dtype in ("*fp32", "*bf16"):
        both = dict(dtype=dtype, scale="fp32", EXPERTS=60, CHOSEN=6, RENORMALISED=True)
        for scores, bias in ((0, {"selection_bias": None}), (1, {}), (2, {})):
            groups = dict(GROUPS=6, GROUPS_CHOSEN=3, BEST_TWO=True, BLOCK_GROUPS=8, BLOCK_SIZE=16, BLOCK_ROWS=2, BLOCK_CHOSEN=8)
            built(choose_kernel, target, SCORES=scores, **both, **groups, **bias)
            built(choose_backward_kernel, target, SCORES=scores, **both, BLOCK_ROWS=4, BLOCK_EXPERTS=64)
    for dtype in ("*fp32", "*fp16", "*bf16"):
        built(dequantise_kernel, target, dtype, BLOCK_ROWS=4, BLOCK_COLUMNS=512)
        built(int8_matmul_kernel, target, dtype, BLOCK_ROWS=16, BLOCK_OUTPUTS=32, BLOCK_INPUTS=32, IN_FLOAT32=False)
"""


@pytest.mark.slow
def test_every_kernel_compiles_for_gpus_of_nvidia_and_amd(tmp_path: Path) -> None:
    printed = in_a_process(COMPILE, cache=tmp_path).splitlines()
    assert len(printed) == 54
