"""What a cluster leaves behind: files in shoal's own folders, nothing anywhere else, and no word to anybody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from signal import SIGTERM

import pytest

from tests.support.cluster import Cluster, cluster, gone
from tests.support.recording_proxy import RecordingProxy

pytestmark = [pytest.mark.real, pytest.mark.slow]


def left(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def places(folder: Path) -> dict[str, str]:
    """Of a user who has nothing yet."""
    for name in ("home", "tmp", "work"):
        (folder / name).mkdir()
    return {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp")}


def without_ours(environment: dict[str, str]) -> dict[str, str]:
    mine = ("SHOAL_", "XDG_", "HF_", "ORT_", "DO_NOT_TRACK", "TMP", "TEMP")
    return {**{key: value for key, value in os.environ.items() if not key.startswith(mine)}, **environment}


def test_a_cluster_s_life_leaves_nothing_outside_its_own_folders_and_tells_nobody(tmp_path: Path, smollm2: Path) -> None:
    """With every runtime that is installed, because `auto` times them all."""
    home = places(tmp_path)
    logs = tmp_path / "logs"
    logs.mkdir()
    inside = ["env", *(f"--unset={key}" for key in os.environ if key not in without_ours({})), f"--chdir={tmp_path / 'work'}"]
    with RecordingProxy().running() as proxy, cluster(logs) as made:
        environment = {**proxy.environment, **home}
        flags = ("--secure", "--nodes", "1", "--api-workers", "2", "--model", str(smollm2), "--memory", "600MiB", "--threads", "1")
        ports = ("--port", str(made.port), "--control-port", str(made.control_port))
        head = made.start("up", *ports, *flags, before=inside, **environment)
        made.until_ready()
        node = made.start(
            "join", f"127.0.0.1:{made.control_port}", "--threads", "1", "--memory", "600MiB", "--name", "more", before=inside, **environment
        )
        node.until_said(" as more")
        assert "more" in _nodes(made, inside, environment)
        asking = made.start("run", "Hello", "--url", made.url, "--max-tokens", "2", before=inside, **environment)
        assert asking.wait() == 0, asking.describe()
        doctor = made.start("doctor", before=inside, **environment)
        assert doctor.wait() == 0, doctor.describe()
        assert "onnxruntime  installed" in doctor.said  # or this would show little
        families = [*head.family(), *node.family()]
        node.signal(SIGTERM)
        node.wait()
        head.signal(SIGTERM)
        assert head.wait() == 0, head.describe()
        gone(families)
        assert proxy.asked == []
    assert left(tmp_path / "tmp") == left(tmp_path / "work") == []
    ours: dict[str, set[str]] = {}
    for path in left(tmp_path / "home"):
        where, shoal, inside_it = path.partition("/shoal/")
        if shoal:
            ours.setdefault(where, set()).add(inside_it.split("/")[0])
        else:
            assert path in (".cache", ".local", ".local/share") or path.endswith("/shoal"), path
    assert ours[".cache"] <= {"runtimes.json", "peers", "hashes", "huggingface"} and "runtimes.json" in ours[".cache"]
    assert ours[".local/share"] == {"api", "keys"}
    assert ours.keys() == {".cache", ".local/share"}


def _nodes(made: Cluster, inside: list[str], environment: dict[str, str]) -> str:
    listed = made.start("nodes", "--head", f"127.0.0.1:{made.control_port}", before=inside, **environment)
    assert listed.wait() == 0, listed.describe()
    return listed.said


RUN = """
import numpy as np, onnx
from onnx import TensorProto, helper
import shoal
from shoal.executor.onnx_runtimes import OpenVino, OrtRuntime
values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 4]) for name in "xy"]
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
(out,) = {runtime}(1).compile(model).run(x=np.array([[-1, 2, -3, 4]], np.float32))
assert out.tolist() == [[0, 2, 0, 4]], out
"""


@pytest.mark.parametrize("runtime", ["OrtRuntime", "OpenVino"])
def test_a_runtime_as_a_library_uses_it(tmp_path: Path, runtime: str) -> None:
    with RecordingProxy().running() as proxy:
        environment = without_ours({**proxy.environment, **places(tmp_path)})
        code = RUN.replace("{runtime}", runtime)
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path / "work", env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert proxy.asked == []
    assert [left(tmp_path / name) for name in ("home", "tmp", "work")] == [[], [], []]


def test_the_hub_s_client_keeps_its_logs_and_chunks_beside_the_models_and_the_user_s_token_where_it_was(tmp_path: Path) -> None:
    environment = without_ours(places(tmp_path))
    code = """
from shoal.environment import keep_to_own_folders
keep_to_own_folders()
from huggingface_hub import constants
import hf_xet
print(constants.HF_TOKEN_PATH, constants.HF_HUB_DISABLE_TELEMETRY, sep="\\n")
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [str(tmp_path / "home/.cache/huggingface/token"), "True"], done.stderr
    assert all(path.startswith(".cache/shoal/huggingface") for path in left(tmp_path / "home") if path.count("/") >= 2)
    assert not (tmp_path / "home/.cache/huggingface").exists()
