"""The runtimes for ONNX segments, ONNX Runtime and OpenVINO, behind one small protocol."""

from __future__ import annotations

import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import onnx

from shoal.executor.base import Floats

# OpenVINO compiles code for each new number of rows; padding to these keeps them few.
_ROWS = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192)


class Segment(Protocol):
    def run(self, **inputs: Floats) -> list[Floats]:
        """Outputs in the graph's order, each [rows, width]."""
        ...


class SegmentRuntime(Protocol):
    @property
    def name(self) -> str: ...
    def compile(self, model: onnx.ModelProto) -> Segment: ...


class OrtRuntime:
    """All sessions of a process share one thread pool: separate pools would compete for the cores."""

    name = "onnxruntime"

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._ort = _onnxruntime(threads)

    def compile(self, model: onnx.ModelProto) -> Segment:
        options = self._ort.SessionOptions()
        options.log_severity_level = 3
        if _shared_threads[0] == self._threads:
            options.use_per_session_threads = False
        else:  # the pool was made for another number of threads; only tests get here
            options.intra_op_num_threads = self._threads
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Weights in a file beside the graph are mapped, prepacked and released; inside the graph they would stay in memory twice.
        with tempfile.TemporaryDirectory() as home:
            path = str(Path(home) / "segment.onnx")
            save: Any = onnx.save_model  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            save(model, path, save_as_external_data=True, location="weights", size_threshold=1024)
            session = self._ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return _OrtSegment(session)


_shared_threads: list[int] = []


@cache
def _onnxruntime(threads: int) -> Any:
    import onnxruntime  # pyright: ignore[reportMissingTypeStubs]

    if not _shared_threads:
        cast(Any, onnxruntime).set_global_thread_pool_sizes(threads, 1)
        _shared_threads.append(threads)
    return onnxruntime


class _OrtSegment:
    def __init__(self, session: Any) -> None:
        self._session = session

    def run(self, **inputs: Floats) -> list[Floats]:
        return self._session.run(None, inputs)


class OpenVino:
    name = "openvino"

    def __init__(self, threads: int) -> None:
        # When imported, openvino sends an event to Google Analytics and leaves an id in ~/intel. There is no switch for that,
        # but without the package that sends the event it does not happen.
        sys.modules.setdefault("openvino_telemetry", cast(Any, None))
        import openvino

        self._core: Any = openvino.Core()
        self._options = {
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 32,
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        }

    def compile(self, model: onnx.ModelProto) -> Segment:
        read = self._core.read_model(model.SerializeToString())
        return _OpenVinoSegment(self._core.compile_model(read, "CPU", self._options))


class _OpenVinoSegment:
    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        self._outputs = range(len(compiled.outputs))

    def run(self, **inputs: Floats) -> list[Floats]:
        rows = len(next(iter(inputs.values())))
        padded = next((n for n in _ROWS if n >= rows), rows)
        if padded > rows:
            inputs = {name: np.concatenate([x, np.zeros((padded - rows, x.shape[1]), np.float32)]) for name, x in inputs.items()}
        self._request.infer(inputs, share_inputs=True)
        return [self._request.get_output_tensor(i).data[:rows].copy() for i in self._outputs]
