"""Which runtime runs a node's layers: the requested one, or the fastest of those installed."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import msgspec
import numpy as np
import structlog

from shoal import __version__
from shoal.config import KvType, Precision, RuntimeName
from shoal.errors import ConfigError
from shoal.executor.base import BlockPart, Runtime, RuntimeFactory, StageBatch, WeightBlock
from shoal.executor.measure import median_seconds
from shoal.executor.native_runtime import NativeRuntime
from shoal.executor.onnx_support import check_expressible
from shoal.executor.onnx_support import lacking as lacks
from shoal.executor.store import WeightStore
from shoal.folders import cache_dir
from shoal.models.spec import ModelSpec
from shoal.models.weights import Weights
from shoal.native import instruction_set, instruction_sets, missing

log = structlog.get_logger()

_TRIED_ROWS = (1, 8, 64)


_PACKAGES = {RuntimeName.ONNXRUNTIME: ("onnx", "onnxruntime"), RuntimeName.OPENVINO: ("onnx", "openvino")}
_EXTRAS = {RuntimeName.ONNXRUNTIME: "shoal[onnx]", RuntimeName.OPENVINO: "shoal[openvino]"}


def lacking(runtime: RuntimeName) -> str:
    """What this machine lacks for a runtime, and what to do about it; '' if it can be used."""
    if runtime is RuntimeName.NATIVE:
        return missing()
    absent = [name for name in _PACKAGES[runtime] if importlib.util.find_spec(name) is None]
    return f"not installed: {' and '.join(absent)}; pip install '{_EXTRAS[runtime]}'" if absent else ""


def installed() -> list[RuntimeName]:
    """The runtimes on this machine, the likely fastest first."""
    return [r for r in (RuntimeName.NATIVE, *_PACKAGES) if not lacking(r)]


def check_runtime(runtime: RuntimeName, isa: str = "") -> None:
    """Call it before anything is fetched or joined. Raises ConfigError if the requested runtime or instruction set is not here, or no runtime
    at all."""
    if isa and (here := instruction_sets()) and isa not in here:
        raise ConfigError(f"--isa {isa} cannot be used here: this processor has {', '.join(here)}")
    if runtime is not RuntimeName.AUTO:
        if reason := lacking(runtime):
            raise ConfigError(f"--runtime {runtime} cannot be used here: {reason}")
    elif not installed():
        reasons = "; ".join(f"{r} ({lacking(r)})" for r in (RuntimeName.NATIVE, RuntimeName.ONNXRUNTIME))
        raise ConfigError(f"this machine has no runtime for layers: {reasons}; one of them is enough")


def factory(runtime: RuntimeName, precision: Precision, kv_type: KvType, threads: int, isa: str = "") -> RuntimeFactory:
    """Makes what runs a model's layers. The factory raises ConfigError if the requested runtime is not
    here, UnsupportedModel if it cannot run the model."""

    def make(weights: Weights, layer: int) -> Runtime:
        chosen = fastest(weights, layer, precision, threads, isa) if runtime is RuntimeName.AUTO else runtime
        return _made(chosen, weights.spec, precision, kv_type, threads, isa)

    return make


def _made(runtime: RuntimeName, spec: ModelSpec, precision: Precision, kv_type: KvType, threads: int, isa: str) -> Runtime:
    check_runtime(runtime)
    if runtime is RuntimeName.NATIVE:
        return NativeRuntime(spec, kv_type=kv_type, precision=precision, threads=threads, isa=isa)
    # Heavy imports, needed only by nodes that run them.
    from shoal.executor.onnx_runtime import OnnxRuntime
    from shoal.executor.onnx_runtimes import OpenVino, OrtRuntime

    segments = OpenVino(threads) if runtime is RuntimeName.OPENVINO else OrtRuntime(threads)
    return OnnxRuntime(spec, segments=segments, kv_type=kv_type, precision=precision, threads=threads, isa=isa)


def able(spec: ModelSpec, model: str = "this model") -> list[RuntimeName]:
    """The runtimes on this machine that can run a model. model: what messages call it. Raises ConfigError if none can."""
    check_runtime(RuntimeName.AUTO)
    what = lacks(spec)
    able = [runtime for runtime in installed() if runtime is RuntimeName.NATIVE or not what]
    if not able:
        raise ConfigError(f"{' and '.join(installed())} cannot run {model}: it has {what}; the runtime native could, but {missing()}")
    return able


def check_model(runtime: RuntimeName, spec: ModelSpec, model: str) -> None:
    """Call it before any node is started. model: its name. Raises UnsupportedModel if the requested runtime cannot run it, ConfigError if
    none of this machine can."""
    if runtime is RuntimeName.AUTO:
        able(spec, model)
    elif runtime is not RuntimeName.NATIVE:
        check_expressible(spec, runtime, model)


def fastest(weights: Weights, at: int, precision: Precision, threads: int, isa: str, directory: Path | None = None) -> RuntimeName:
    """Times a layer that is here, the `at`th, in each runtime that can run the model, at 1, 8 and 64 rows; the result is remembered per
    machine, model shape and version."""
    candidates = able(weights.spec)
    if len(candidates) == 1:
        return candidates[0]
    spec = weights.spec
    format = weights.format(f"layers.{at}.q")
    key = "/".join(
        str(part)
        for part in (
            __version__, platform.node(), instruction_set(isa), *candidates, threads, precision, format,
            spec.hidden, sha256(msgspec.json.encode(spec.layers[at])).hexdigest(),
        )
    )  # fmt: skip
    memory = (directory or cache_dir()) / "runtimes.json"
    known = _remembered(memory)
    if key in known:
        return known[key]
    scores: dict[RuntimeName, float] = {}
    for runtime in candidates:
        try:
            scores[runtime] = _score(_made(runtime, spec, precision, KvType.BF16, threads, isa), weights, at)
        except OSError as error:  # an ONNX segment is compiled from a temporary file
            log.warning("a runtime could not be tried and is left out", runtime=str(runtime), reason=str(error))
    if not scores:
        raise ConfigError("no runtime could be tried; see the warnings above")
    if len(scores) < len(candidates):
        return min(scores, key=lambda r: scores[r])  # and tried again the next time
    best = min(scores, key=lambda r: scores[r])
    log.info("runtime chosen", runtime=str(best), microseconds_per_layer={str(r): round(s * 1e6) for r, s in scores.items()})
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        memory.write_bytes(msgspec.json.encode({**known, key: best}))
    except OSError as error:
        log.warning("the choice of a runtime could not be remembered", reason=str(error))
    return best


def _remembered(memory: Path) -> dict[str, RuntimeName]:
    try:
        return msgspec.json.decode(memory.read_bytes(), type=dict[str, RuntimeName])
    except (OSError, msgspec.DecodeError):
        return {}


def _score(runtime: Runtime, weights: Weights, layer: int) -> float:
    """The geometric mean of a layer's seconds over the numbers of rows tried."""
    spec, layers, store = weights.spec, range(layer, layer + 1), WeightStore()
    for part in (BlockPart.ATTENTION, BlockPart.FEED_FORWARD):
        store.put(WeightBlock(layer, part), runtime.pack(weights, WeightBlock(layer, part)))
    runtime.open(4)

    def step(rows: int) -> Callable[[], object]:
        batch = StageBatch(
            np.array([0, rows], np.int32),
            np.zeros(1, np.int32),
            np.array([[0, 1, 2, 3]], np.int32),
            np.zeros(rows, np.int32),
            np.zeros(0, np.int32),
            (),
        )
        flat = [np.zeros((rows, width // 2), np.float32) for _, width in spec.rotations]
        angles = [(zeros + 1, zeros) for zeros in flat]
        return lambda: runtime.forward(np.ones((rows, spec.hidden), np.float32), batch, angles, layers, store)

    return float(np.prod([median_seconds(step(rows), 7) for rows in _TRIED_ROWS]) ** (1 / len(_TRIED_ROWS)))
