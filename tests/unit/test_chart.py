"""The Helm chart: what it renders is valid, safe, and agrees with the product."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from shoal import __version__
from shoal.cli.app import app
from shoal.cli.options import sections
from shoal.cli.systemd_unit import JOIN_STOPS, stops_after
from shoal.config import ApiSettings, HeadSettings
from shoal.config_file import read
from shoal.leadership.keepers import KubernetesPlace, parse
from shoal.service_account import ACCOUNT
from tests.support.charts import CHART, Manifest, helm, manifests, of_kind, only, option, rendered, tool, workloads

pytestmark = [pytest.mark.slow]

POOLS: dict[str, Any] = {
    "image": {"digest": "sha256:" + "0" * 64, "pullPolicy": "Always", "pullSecrets": [{"name": "registry"}]},
    "model": "hf:org/name:Q4_K_M",
    "api": {
        "port": 8080,
        "ingress": {"enabled": True, "className": "nginx", "host": "llm.example", "tlsSecret": "tls", "annotations": {"a/b": "c"}},
    },
    "ports": {"control": 7000, "results": 7001, "tensors": 7002, "gateways": 7003},
    "gateways": {
        "enabled": True,
        "port": 8081,
        "settings": {"connections": 200, "response-cache": "64MiB"},
        "autoscaling": {"enabled": True, "maxReplicas": 5, "sequences": 12},
    },
    "metrics": {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}, "keySecret": {"name": "metrics-key"}}},
    "head": {
        "settings": {"kv-type": "fp32", "context": 4096, "prefix-cache": False, "keep-alive": 12.5},
        "minNodes": 3,
        "replicas": 2,
        "leaseSeconds": 6,
        "storage": {"storageClass": "fast"},
        "tolerations": [{"key": "head", "operator": "Exists"}],
        "extraEnv": [{"name": "HF_TOKEN_PATH", "value": "/etc/hub/token"}],
        "extraVolumes": [{"name": "hub", "secret": {"secretName": "hub"}}],
        "extraVolumeMounts": [{"name": "hub", "mountPath": "/etc/hub", "readOnly": True}],
    },
    "autoscaling": {"enabled": True, "replicasMin": 0, "replicasMax": 4, "nodes": True, "pool": "large"},
    "nodePools": [
        {"name": "large", "replicas": 3, "nodeSelector": {"size": "large"}, "settings": {"share": False, "threads": 4}},
        {"name": "experts", "role": "experts", "cache": {"persistent": False, "size": "5Gi"}, "priorityClassName": "low"},
        {"name": "everywhere", "kind": "DaemonSet", "affinity": {"nodeAffinity": {}}},
    ],
}
OPEN: dict[str, Any] = {
    "security": {"unprotected": True},
    "api": {"open": True},
    "networkPolicy": {"apiFrom": [{"namespaceSelector": {}}], "restrictNodes": False},
    "metrics": {"serviceMonitor": {"enabled": True}},
    "nodes": {"kind": "DaemonSet"},
}
SETS: dict[str, dict[str, Any]] = {"default": {}, "pools": POOLS, "open": OPEN}


@pytest.fixture(scope="module", params=SETS)
def values(request: pytest.FixtureRequest) -> dict[str, Any]:
    return SETS[request.param]


@pytest.fixture(scope="module")
def text(values: dict[str, Any]) -> str:
    return rendered(values)


@pytest.fixture(scope="module")
def made(text: str) -> list[Manifest]:
    return manifests(text)


def containers(made: list[Manifest]) -> list[Manifest]:
    specs = [one["spec"]["template"]["spec"] for one in workloads(made).values()]
    return [container for spec in specs for container in [*spec["initContainers"], *spec["containers"]]]


def test_helm_finds_nothing_wrong(values: dict[str, Any]) -> None:
    done = helm("lint", str(CHART), "--strict", values=values)
    assert done.returncode == 0 and "[WARNING]" not in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("version", ["1.29", "1.35"])
def test_what_is_rendered_is_valid_for_kubernetes(made: list[Manifest], version: str, tmp_path: Path) -> None:
    """Without what others define: Prometheus' ServiceMonitor."""
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all(one for one in made if one["kind"] != "ServiceMonitor"))
    command = [tool("kubernetes-validate"), "--strict", "--kubernetes-version", version, str(tmp_path / "all.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_policies_of_checkov_are_kept(text: str, values: dict[str, Any], tmp_path: Path) -> None:
    """But for two that are up to the image's owner: a digest, and whether it is pulled again each time."""
    (tmp_path / "all.yaml").write_text(text)
    command = [tool("checkov"), "--framework", "kubernetes", "--file", str(tmp_path / "all.yaml"), "--output", "json", "--compact"]
    done = subprocess.run([*command, "--skip-download"], capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    failed = {check["check_id"] for check in found["results"]["failed_checks"]}
    assert failed == (set() if "image" in values else {"CKV_K8S_43", "CKV_K8S_15"}), found["results"]["failed_checks"]
    assert found["summary"]["passed"] > 100 and not found["summary"]["parsing_errors"]


def test_every_container_runs_a_command_with_options_that_there_are(made: list[Manifest]) -> None:
    root: Any = typer.main.get_command(app)
    kinds = set[str]()
    for workload in workloads(made).values():
        kind, *arguments = only(workload["spec"]["template"]["spec"]["containers"])["args"]
        root.commands[kind].make_context(f"shoal {kind}", arguments)  # refuses unknown options and values that are none
        kinds.add(kind)
    assert kinds == {"serve", "join"} | ({"gateway"} if gateways(made) else set())


def test_the_settings_are_those_of_the_configuration_file(made: list[Manifest], tmp_path: Path) -> None:
    for name, config in of_kind(made, "ConfigMap").items():
        (file := tmp_path / name).write_text(config["data"]["config.toml"])
        role = name.removeprefix("sea-shoal-")
        section = read(file, sections(), must_be=True).section(role if role in ("head", "gateway") else "node")
        if role == "gateway":
            assert section == {"connections": 200, "response-cache": "64MiB"}
        if role == "large":
            assert section == {"share": False, "threads": 4}


def test_what_the_chart_sets_nobody_sets_again(made: list[Manifest]) -> None:
    """A flag outweighs the file, where a value would then do nothing."""
    for workload in workloads(made).values():
        kind, *arguments = only(workload["spec"]["template"]["spec"]["containers"])["args"]
        said = {word.partition("=")[0][2:] for word in arguments if word.startswith("--")}
        part = {"serve": "head", "gateway": "gateways"}.get(kind, "nodes")
        for flag in said:
            assert helm("template", str(CHART), values={part: {"settings": {flag: "x"}}}).returncode, flag


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"nodes": {"kind": "Deployment"}}, "/nodes/kind"),
        ({"nodes": {"replica": 3}}, "replica"),
        ({"nodePools": [{"replicas": 3}]}, "name"),
        ({"nodePools": [{"name": "head"}]}, "/nodePools/0/name"),
        ({"api": {"port": 80}}, "/api/port"),
        ({"image": {"digest": "1234"}}, "/image/digest"),
        ({"head": {"settings": {"kv_type": "fp32"}}}, "kv_type"),
        ({"api": {"ingress": {"enabled": True}}}, "api.ingress.host"),
        ({"metrics": {"serviceMonitor": {"enabled": True}}}, "keySecret.name"),
        ({"autoscaling": {"enabled": True, "nodes": True}, "nodes": {"kind": "DaemonSet"}}, "no StatefulSet of nodes that is called node"),
        ({"autoscaling": {"enabled": True, "nodes": True, "pool": "x"}}, "no StatefulSet of nodes that is called x"),
        ({"autoscaling": {"replicasMax": 0}}, "/autoscaling/replicasMax"),
        ({"gateways": {"enabled": True, "autoscaling": {"enabled": True, "cpu": 0}}}, "cpu, sequences or both"),
        ({"gateways": {"enabled": True, "autoscaling": {"enabled": True, "minReplicas": 9}}}, "minReplicas is more than maxReplicas"),
        ({"gateways": {"settings": {"port": 1}}}, "/gateways/settings"),
        ({"gateways": {"enabled": True}, "security": {"unprotected": True}}, "keys protect nothing"),
        ({"head": {"replicas": 0}}, "/head/replicas"),
        ({"head": {"settings": {"lease": "redis://r"}}}, "/head/settings"),
    ],
    ids=str,
)
def test_a_wrong_value_is_refused(wrong: dict[str, Any], words: str) -> None:
    done = helm("template", str(CHART), values=wrong)
    assert done.returncode and words in done.stderr, done.stderr


def test_every_value_is_used() -> None:
    templates = "".join(path.read_text() for path in (CHART / "templates").iterdir())

    def names(values: dict[str, Any]) -> set[str]:
        return set(values).union(*(names(value) for value in values.values() if isinstance(value, dict)))

    outside = {"requests", "limits", "cpu", "memory"}  # Kubernetes' own
    assert {name for name in names(yaml.safe_load((CHART / "values.yaml").read_text())) - outside if f".{name}" not in templates} == set()


def test_no_container_may_do_more_than_it_must(made: list[Manifest]) -> None:
    for workload in workloads(made).values():
        spec = workload["spec"]["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] == 10001  # the image's user
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False  # or SHOAL_PORT=tcp://…, where a Service is called shoal
    for container in containers(made):
        context = container["securityContext"]
        assert (
            context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"] and context["capabilities"] == {"drop": ["ALL"]}
        )
        assert container["resources"]["requests"] and container["resources"]["limits"]
    for workload in workloads(made).values():
        mounts = only(workload["spec"]["template"]["spec"]["containers"])["volumeMounts"]
        assert "/tmp" in {mount["mountPath"] for mount in mounts}


def test_a_pod_has_the_time_that_its_command_takes_to_stop(made: list[Manifest]) -> None:
    for workload in workloads(made).values():
        spec = workload["spec"]["template"]["spec"]
        container = only(spec["containers"])
        if command(workload) == "join":
            assert spec["terminationGracePeriodSeconds"] >= JOIN_STOPS
        else:
            _, before = container["lifecycle"]["preStop"]["exec"]["command"]
            asked = stops_after("serve", float(option(container["args"], "grace")))  # a gateway has as much to end
            assert spec["terminationGracePeriodSeconds"] >= int(before) + asked


def test_the_defaults_are_the_products_own() -> None:
    chart, values = (yaml.safe_load((CHART / name).read_text()) for name in ("Chart.yaml", "values.yaml"))
    assert chart["appVersion"] == __version__
    assert (values["api"]["port"], values["ports"]["control"]) == (ApiSettings.port, HeadSettings.control_port)
    assert values["ports"]["results"] != HeadSettings.control_port + 1  # where pairing is
    assert values["head"]["grace"] == values["gateways"]["grace"] == ApiSettings.grace
    at_head = [values["ports"][name] for name in ("control", "results", "gateways")]
    assert len({*at_head, HeadSettings.control_port + 1}) == 4  # pairing is there


def selected(made: list[Manifest], labels: dict[str, str]) -> list[Manifest]:
    """The workloads whose pods have the labels."""
    return [one for one in workloads(made).values() if labels.items() <= one["spec"]["template"]["metadata"]["labels"].items()]


def command(workload: Manifest) -> str:
    return only(workload["spec"]["template"]["spec"]["containers"])["args"][0]


def is_head(workload: Manifest) -> bool:
    return command(workload) == "serve"


def heads(made: list[Manifest]) -> Manifest:
    return only([one for one in workloads(made).values() if is_head(one)])


def gateways(made: list[Manifest]) -> list[Manifest]:
    return [one for one in workloads(made).values() if command(one) == "gateway"]


def test_each_part_finds_the_others(made: list[Manifest]) -> None:
    services = of_kind(made, "Service")
    for name, workload in workloads(made).items():
        assert workload in selected(made, workload["spec"]["selector"]["matchLabels"])
        assert selected(made, workload["spec"]["selector"]["matchLabels"]) == [workload], "pods of another one, too"
        assert workload["spec"].get("serviceName", "sea-shoal-nodes") in services
        spec = workload["spec"]["template"]["spec"]
        volumes = {v["name"] for v in spec["volumes"]} | {c["metadata"]["name"] for c in workload["spec"].get("volumeClaimTemplates", [])}
        for container in [*spec["initContainers"], *spec["containers"]]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes, name
    for name, service in services.items():
        behind = selected(made, service["spec"]["selector"])
        api = "gateway" if gateways(made) else "serve"
        expected = {"sea-shoal": api, "sea-shoal-nodes": "join", "sea-shoal-control": "serve", "sea-shoal-head": "serve"}[name]
        assert {command(one) for one in behind} == {expected}
        for workload in behind:
            ports = {port["name"] for port in only(workload["spec"]["template"]["spec"]["containers"])["ports"]}
            assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    control = services["sea-shoal-control"]
    assert control["spec"]["publishNotReadyAddresses"], "a head that waits for nodes is not ready"
    for workload in workloads(made).values():
        container = only(workload["spec"]["template"]["spec"]["containers"])
        port = control["spec"]["ports"][0]["port"]
        if container["args"][0] == "gateway":
            assert [word for word in container["args"][1:] if not word.startswith("--")] == [
                f"sea-shoal-head-{i}.sea-shoal-control:{port}" for i in range(heads(made)["spec"]["replicas"])
            ]
        if container["args"][0] == "join":
            assert container["args"][1] == f"sea-shoal-control:{control['spec']['ports'][0]['port']}"
    for ingress in of_kind(made, "Ingress").values():
        backend = ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
        assert backend["port"]["name"] in {port["name"] for port in services[backend["name"]]["spec"]["ports"]}
    for monitor in of_kind(made, "ServiceMonitor").values():
        labels = monitor["spec"]["selector"]["matchLabels"]
        (service,) = [one for one in services.values() if labels.items() <= one["metadata"]["labels"].items()]
        assert {command(one) for one in selected(made, service["spec"]["selector"])} == {"serve"}, "gateways tell what the head counts"
    for scaler in of_kind(made, "HorizontalPodAutoscaler").values():
        (target,) = gateways(made)
        assert scaler["spec"]["scaleTargetRef"]["name"] == target["metadata"]["name"] and "replicas" not in target["spec"]
        _, external = scaler["spec"]["metrics"]
        assert [one["type"] for one in scaler["spec"]["metrics"]] == ["Resource", "External"]
        scraped = services[external["external"]["metric"]["selector"]["matchLabels"]["service"]]  # as Prometheus labels what it reads there
        assert scraped["metadata"]["labels"]["app.kubernetes.io/component"] == "head-api"
        assert {command(one) for one in selected(made, scraped["spec"]["selector"])} == {"serve"}
    for budget in of_kind(made, "PodDisruptionBudget").values():
        assert not is_head(only(selected(made, budget["spec"]["selector"]["matchLabels"])))


def test_the_network_opens_the_ports_of_the_settings_and_no_other(made: list[Manifest]) -> None:
    head = only([one for one in workloads(made).values() if is_head(one)])
    nodes = [one for one in workloads(made).values() if command(one) == "join"]
    arguments = only(head["spec"]["template"]["spec"]["containers"])["args"]
    api, control, results = (int(option(arguments, name)) for name in ("port", "control-port", "results-port"))
    tensors = {int(option(only(one["spec"]["template"]["spec"]["containers"])["args"], "tensor-port")) for one in nodes}
    policies = of_kind(made, "NetworkPolicy")

    def into(name: str) -> list[tuple[set[int], list[Manifest] | None]]:
        """Ports, and whose pods may reach them; None: whoever it is."""
        return [
            (
                {port["port"] for port in rule["ports"]},
                selected(made, rule["from"][0]["podSelector"]["matchLabels"]) if "podSelector" in rule.get("from", [{}])[0] else None,
            )
            for rule in policies[name]["spec"]["ingress"]
        ]

    assert selected(made, policies["sea-shoal-head"]["spec"]["podSelector"]["matchLabels"]) == [head]
    doors = [({control, int(option(arguments, "gateway-port"))}, gateways(made))] if gateways(made) else []
    followers = [({control}, [head])] if head["spec"]["replicas"] > 1 else []
    assert into("sea-shoal-head") == [({api}, None), ({control, results}, nodes), *followers, *doors]
    for gateway in gateways(made):
        policy = policies["sea-shoal-gateways"]["spec"]
        assert selected(made, policy["podSelector"]["matchLabels"]) == [gateway]
        port = int(option(only(gateway["spec"]["template"]["spec"]["containers"])["args"], "port"))
        assert into("sea-shoal-gateways") == [({port}, None)]
        assert [({port["port"] for port in rule["ports"]}, "to" in rule) for rule in policy["egress"]] == [
            (doors[0][0], True),
            ({53}, False),
        ]
    assert selected(made, policies["sea-shoal-nodes"]["spec"]["podSelector"]["matchLabels"]) == nodes
    assert into("sea-shoal-nodes") == [(tensors, [*workloads(made).values()])]
    if "Egress" in policies["sea-shoal-nodes"]["spec"]["policyTypes"]:
        out = [({port["port"] for port in rule["ports"]}, "to" in rule) for rule in policies["sea-shoal-nodes"]["spec"]["egress"]]
        assert out == [({control, results}, True), (tensors, True), ({53}, False)]


def test_the_head_may_scale_one_set_of_nodes_and_only_if_it_is_to(made: list[Manifest], values: dict[str, Any]) -> None:
    accounts = of_kind(made, "ServiceAccount", "Role", "RoleBinding")
    head = only([one for one in workloads(made).values() if is_head(one)])["spec"]["template"]["spec"]
    if "autoscaling" not in values:
        assert not accounts and "serviceAccountName" not in head
        assert not {"replicas-min", "more-nodes"} & {word.partition("=")[0][2:] for word in only(head["containers"])["args"]}
        return
    arguments = only(head["containers"])["args"]
    assert (option(arguments, "replicas-min"), option(arguments, "replicas-max"), option(arguments, "more-nodes")) == (
        "0",
        "4",
        "kubernetes",
    )
    target = option(arguments, "stateful-set")
    assert workloads(made)[target]["kind"] == "StatefulSet" and not is_head(workloads(made)[target])
    by_kind = {kind: of_kind(made, kind)["sea-shoal-head-scale"] for kind in ("Role", "RoleBinding")}
    by_kind["ServiceAccount"] = only([*of_kind(made, "ServiceAccount").values()])
    assert only(by_kind["Role"]["rules"]) == {
        "apiGroups": ["apps"], "resources": ["statefulsets/scale"], "resourceNames": [target], "verbs": ["get", "patch"]
    }  # fmt: skip
    assert by_kind["RoleBinding"]["roleRef"]["name"] == by_kind["Role"]["metadata"]["name"]
    assert only(by_kind["RoleBinding"]["subjects"])["name"] == by_kind["ServiceAccount"]["metadata"]["name"] == head["serviceAccountName"]
    mounts = {
        name: [m["mountPath"] for m in c["volumeMounts"]] for c in [*head["initContainers"], *head["containers"]] for name in [c["name"]]
    }
    assert str(ACCOUNT) in mounts["head"] and str(ACCOUNT) not in mounts["keys"]
    files = next(volume["projected"]["sources"] for volume in head["volumes"] if volume["name"] == "account")
    assert {path for source in files for path in _paths(source)} == {"token", "ca.crt", "namespace"}


def test_several_heads_have_a_lease_that_their_account_may_hold(made: list[Manifest]) -> None:
    head = heads(made)
    spec = head["spec"]["template"]["spec"]
    arguments = only(spec["containers"])["args"]
    if head["spec"]["replicas"] == 1:
        assert not [word for word in arguments if word.startswith("--lease")] and "sea-shoal-head-lease" not in of_kind(made, "Role")
        return
    keeper = parse(option(arguments, "lease"))
    assert isinstance(keeper, KubernetesPlace) and keeper.namespace == "deep" and option(arguments, "lease-seconds") == "6"
    found, new = of_kind(made, "Role")["sea-shoal-head-lease"]["rules"]
    assert (found["resourceNames"], found["verbs"], new["verbs"]) == ([keeper.name], ["get", "update"], ["create"])
    assert {found["apiGroups"][0], found["resources"][0]} == {"coordination.k8s.io", "leases"}
    binding = of_kind(made, "RoleBinding")["sea-shoal-head-lease"]
    assert only(binding["subjects"])["name"] == spec["serviceAccountName"] == only([*of_kind(made, "ServiceAccount")])
    # A standby is never ready: nothing may wait for that.
    assert (head["spec"]["podManagementPolicy"], head["spec"]["updateStrategy"]) == ("Parallel", {"type": "OnDelete"})


def _paths(source: dict[str, Any]) -> list[str]:
    """Of the files of a projected volume's source."""
    (one,) = source.values()
    return [one["path"]] if "path" in one else [item["path"] for item in one["items"]]


def test_the_readme_names_every_value_that_it_speaks_of() -> None:
    """In code: paths of values.yaml."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    named = set(
        re.findall(
            r"`((?:head|nodes|gateways|api|security|image|metrics|networkPolicy|ports|autoscaling)\.[\w.]+)`",
            (CHART / "README.md").read_text(),
        )
    )
    assert len(named) > 10
    for path in named:
        value: Any = values
        for part in path.split("."):
            assert part in value, path
            value = value[part]
