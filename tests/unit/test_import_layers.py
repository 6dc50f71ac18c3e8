"""Who may import whom: the table of the architecture page, held by parsing the imports."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import shoal

ROOT = Path(shoal.__file__).parent
BASE = {
    "request",
    "errors",
    "config",
    "settings",
    "urls",
    "retry",
    "allowance",
    "address",
    "facts",
    "chunk_stream",
    "file_lock",
    "folders",
    "config_file",
    "environment",
    "sizes",
    "spelling",
    "pipeline_id",
    "trace_context",
    "service_account",
    "observed",
}
PURE = {"scheduler", "placement", "membership", "wire", "profiling"}
PURE_MODULES = {
    "pipeline.timing",
    "pipeline.records",
    "pipeline.hops",
    "discovery.topology",
    "discovery.changes",
    "weights.unit",
    "weights.prefetch",
    "weights.expert_reads",
    "weights.residency",
    "weights.eviction",
    "weights.expected_use",
    "weights.oracle",
    "serving.cache_control",
    "serving.response_cache",
    "serving.aliases",
    "serving.verdict",
    "serving.resting",
    *(
        f"serving.balancing.{module}"
        for module in (
            "anomalies",
            "balancer",
            "chooser",
            "circuit",
            "drawing",
            "hash_ring",
            "inquiry",
            "least",
            "limits",
            "longest_prefix",
            "nearest",
            "prefix_index",
            "ranking",
            "replica_state",
            "reports",
            "retry_budget",
            "rotation",
            "text_pieces",
        )
    ),
    "serving.scaling",
}
EFFECTS = {
    "models",
    "weights",
    "text",
    "transport",
    "executor",
    "native",
    "discovery",
    "control",
    "security",
    "triton",
    "telemetry",
    "serving",
}
ABOVE = {"pipeline", "node", "leadership"}
TOP = {"gateway", "launch", "ray_cluster", "cli", "auto", "testing", "__main__", "__init__"}
EXTRA = {  # which modules of a layer's own or a higher one a module may use beside those below it
    "wire.messages": {"scheduler.plan"},
    "executor": {"models.spec", "models.matrix", "models.weights", "models.rope", "weights", "native", "scheduler.plan", "placement.cost"},
    "telemetry": {"pipeline.timing", "pipeline.hops"},
    "control": {"security"},
}
ROOMS = (
    "http",
    "auth",
    "engine",
    "engines",
    "operator",
    "caching",
    "schema",
    "answers",
    "service",
    "upstream",
    "endpoints",
    "server",
    "standing_by",
    "app",
    "workers",
)
"""Of the gateway: each may import those before it."""
IMPURE = {"asyncio", "socket", "os", "time", "random", "secrets", "threading", "subprocess", "grpc", "numpy"}


def sources() -> list[Path]:
    return sorted(p for p in ROOT.rglob("*.py") if not p.stem.endswith(("_pb2", "_pb2_grpc")))


def is_pure(path: Path) -> bool:
    """A package or module of layer 1, or a module of a package in it."""
    return any(f"{name(path)}.".startswith(f"{pure}.") for pure in PURE | PURE_MODULES)


def name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def imported(path: Path) -> list[str]:
    return list(_imported(path))


def _imported(path: Path) -> Iterator[str]:
    """Modules that a file imports, wherever in it, those of shoal without the prefix `shoal.`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("shoal.") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path}: a relative import"
            if node.module == "shoal":
                yield from (alias.name for alias in node.names if alias.name != "__version__")
            elif (ROOT / Path(*node.module.removeprefix("shoal.").split("."))).is_dir() and node.module.startswith("shoal."):
                yield from (f"{node.module.removeprefix('shoal.')}.{alias.name}" for alias in node.names)
            else:
                yield node.module.removeprefix("shoal.")


def ours(path: Path) -> list[str]:
    return [m for m in imported(path) if m.split(".")[0] in BASE | PURE | EFFECTS | ABOVE | TOP]


def allowed(module: str, other: str) -> bool:
    here, there = module.split(".")[0], other.split(".")[0]
    extra = EXTRA.get(module, set()) | EXTRA.get(here, set())
    if here == there or any(other == e or other.startswith(e + ".") for e in extra):
        return True
    if here in BASE:
        return there in BASE
    if here in PURE:
        return there in BASE or (here in {"membership", "profiling"} and there == "placement")
    if here in EFFECTS:
        return there in BASE | PURE
    if here in ABOVE:
        return there in BASE | PURE | EFFECTS | ABOVE
    if here == "gateway":
        return there in BASE | {"text", "serving"}
    if here == "launch":
        return there not in {"ray_cluster", "cli", "auto", "testing"}
    if here == "ray_cluster":
        return there not in {"cli", "auto", "testing"}
    return True


@pytest.mark.parametrize("path", sources(), ids=name)
def test_imports_hold_the_table(path: Path):
    assert [other for other in ours(path) if not allowed(name(path), other)] == []


@pytest.mark.parametrize("path", [p for p in sources() if is_pure(p)], ids=name)
def test_pure_modules_touch_no_world(path: Path):
    allowed_here = {"numpy"} if name(path) in ("wire.codec", "wire.routed") else set[str]()
    assert {m.split(".")[0] for m in imported(path)} & IMPURE <= allowed_here


@pytest.mark.parametrize("base", sorted(BASE))
def test_the_bottom_layer_needs_the_standard_library_and_types_alone(base: str):
    files = sorted((ROOT / base).glob("*.py")) or [ROOT / f"{base}.py"]
    outside = {m.split(".")[0] for path in files for m in imported(path)} - sys.stdlib_module_names - BASE
    assert outside <= ({"psutil"} if base == "allowance" else {"msgspec"})


def test_the_generated_stubs_have_one_door():
    users = [name(p) for p in sources() if any("_pb2" in m or m.startswith("google.protobuf") for m in imported(p))]
    assert users == ["control.protobuf"]


def test_the_extension_has_one_door():
    users = [name(p) for p in sources() if any(m.split(".")[-1] == "_kernels" for m in imported(p))]
    assert users == ["native"]


def test_nothing_imports_the_simulation():
    users = [name(p) for p in sources() if any(m.split(".")[0] == "testing" for m in ours(p)) and not name(p).startswith("testing")]
    assert users == []


def test_nothing_imports_the_triton_kernels():
    """Nor torch and Triton, which they alone need."""
    users = {name(p).split(".")[0] for p in sources() if {m.split(".")[0] for m in imported(p)} & {"torch", "triton"}}
    assert users == {"triton"}


def test_ray_has_one_door():
    """A machine without it has every other command."""
    users = {name(p) for p in sources() if any(m.split(".")[0] == "ray" for m in imported(p))}
    assert users == {"ray_cluster.api", "ray_cluster.keeper", "ray_cluster.cluster"}


def test_three_modules_read_the_environment():
    users = [name(p) for p in sources() if "os.environ" in p.read_text() or "getenv" in p.read_text()]
    assert set(users) <= {
        "settings",
        "environment",
        "folders",
        "launch.environment",
    }  # launch.environment hands its environment on to the nodes it starts


def test_one_module_asks_how_large_the_machine_is():
    asked = ("cpu_count", "virtual_memory", "sched_getaffinity", "process_cpu_count", "SC_PHYS_PAGES", "SC_NPROCESSORS")
    assert [name(p) for p in sources() if any(word in p.read_text() for word in asked)] == ["allowance"]


@pytest.mark.parametrize("path", [p for p in sources() if name(p).startswith("gateway.")], ids=name)
def test_rooms_of_the_gateway_import_those_below_alone(path: Path):
    def room(module: str) -> int:
        return ROOMS.index(module.split(".")[1])

    assert [other for other in ours(path) if other.startswith("gateway.") and room(other) > room(name(path))] == []


def test_the_map_of_packages_names_every_one():
    page = (ROOT.parents[1] / "docs" / "architecture.md").read_text()
    table = page.partition("## The packages\n")[2].partition("\n## ")[0]
    named = re.findall(r"^\| `(\w+)` \| \S", table, re.MULTILINE)
    assert named == sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
