"""Settings come from what was given, else the environment, else the defaults, and are checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal import config, errors
from shoal.config import (
    ApiSettings,
    CacheScope,
    Codec,
    EngineSettings,
    HeadSettings,
    KvType,
    NodeRole,
    NodeSettings,
    Precision,
    RuntimeName,
)
from shoal.environment import hub_endpoint
from shoal.errors import ConfigError
from shoal.settings import Settings, composed, from_environment, parse_bytes, settings_of
from shoal.sizes import human_bytes
from shoal.urls import parse_upstream

ROLES: list[type[Settings]] = [NodeSettings, EngineSettings, HeadSettings]


@pytest.mark.parametrize(
    "where",
    ["", "env", "http://a:4318", "https://otlp.example/api/x/v1/traces", "grpc://[fd00::5]:4317", "grpcs://b", "http://127.0.0.1:1/"],
)
def test_where_traces_can_go(where: str):
    assert ApiSettings(traces=where).traces == where


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("collector:4318", "is no place for traces; write http://HOST:4318"),
        ("http://", "is no place"),
        ("http://a:0", "is no place"),
        ("ftp://a:1", "is no place"),
        ("http://a:x", "write http://HOST:4318"),
        ("http://[::1", "write http://HOST:4318"),
        ("http://a:99999", "write http://HOST:4318"),
        ("http://me:secret@a:4318", "takes no password"),
        ("http://me:secret@a:x", "is no place"),
        ("http://me:secret@[::1", "is no place"),
        ("http://a/\nb", "is no place"),
        ("http://a/#part", "is no place"),
        ("grpc://a:4317/v1/traces", "more than a host and a port"),
        ("http://a:1/?x=1", "more than a host and a port"),
        ("http://a b:1", "is not a host"),
    ],
)
def test_where_they_cannot(where: str, why: str):
    with pytest.raises(ConfigError, match=f"--traces.*{why}") as raised:
        ApiSettings(traces=where)
    assert "secret" not in str(raised.value)


def test_the_share_of_traced_requests_is_one():
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="--trace-sample"):
            ApiSettings(trace_sample=share)


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("512", 512), ("1KiB", 1024), ("1.5GiB", 3 << 29), ("2 gb", 2 * 10**9), (" 7MB ", 7 * 10**6), ("1TiB", 1 << 40)],
)
def test_sizes(text: str, size: int):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "1GiBB", "1e9", "1.GiB", "nan"])
def test_what_is_no_size_is_refused(text: str):
    with pytest.raises(errors.ConfigError, match="512MiB"):
        parse_bytes(text)


@pytest.mark.parametrize("role", ROLES)
def test_every_setting_is_documented(role: type[Settings]):
    assert all(setting.help.endswith(".") for setting in settings_of(role))


@pytest.mark.parametrize("role", ROLES)
def test_the_defaults_hold(role: type[Settings]):
    assert from_environment(role, {}, {}) == role()


@pytest.mark.parametrize(
    "bad",
    [
        {"port": -1},
        {"port": 65536},
        {"max_file": "large"},
        {"files_space": ""},
        {"response_cache": "much"},
        {"response_cache_ttl": -1},
        {"response_cache_ttl": float("nan")},
        {"response_cache_scope": "some"},
        {"batch_concurrency": 0},
        {"min_nodes": 0},
        {"slots": 0},
        {"context": 15},
        {"step_tokens": 15},
        {"queue": 0},
        {"heartbeat": 0.01},
        {"kv_tokens": 63},
        {"model": ""},
    ],
)
def test_what_is_out_of_range_is_refused_by_flag(bad: dict[str, object]):
    with pytest.raises(errors.ConfigError, match="--" + next(iter(bad)).replace("_", "-")):
        composed(HeadSettings, bad)


def test_the_response_cache_is_off_unless_it_has_a_size():
    assert ApiSettings().response_cache_bytes == 0
    assert ApiSettings(response_cache="256MiB").response_cache_bytes == 256 << 20
    assert ApiSettings().response_cache_scope is CacheScope.KEY
    assert from_environment(HeadSettings, {}, {"SHOAL_RESPONSE_CACHE_SCOPE": "all"}).api.response_cache_scope is CacheScope.ALL
    assert from_environment(HeadSettings, {}, {}, {"response_cache_ttl": 5.0}).api.response_cache_ttl == 5


def test_a_node_has_one_of_three_roles():
    assert NodeSettings().role is NodeRole.LAYERS
    for role in NodeRole:
        assert from_environment(NodeSettings, {}, {"SHOAL_ROLE": role.value}).role is role
        assert from_environment(NodeSettings, {}, {}, {"role": role.value}).role is role
    with pytest.raises(errors.ConfigError, match=r"--role is one of layers, experts, auto, not 'both'"):
        composed(NodeSettings, {"role": "both"})


def test_a_chat_template_is_a_file(tmp_path: Path):
    with pytest.raises(errors.ConfigError, match=r"--chat-template .* is not a file"):
        EngineSettings(chat_template=str(tmp_path))
    (tmp_path / "t.jinja").touch()
    assert EngineSettings(chat_template=str(tmp_path / "t.jinja")).chat_template_file == tmp_path / "t.jinja"


def test_requests_are_kept_where_they_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(config, "state_dir", lambda: tmp_path)
    assert HeadSettings().state_folder is None
    assert HeadSettings(api=ApiSettings(port=81)).kept_by_default().state_folder == tmp_path / "heads" / "81"
    assert HeadSettings(api=ApiSettings(port=0)).kept_by_default().state_folder is None
    assert HeadSettings(state="none").kept_by_default().state_folder is None
    assert HeadSettings(state="/x").kept_by_default().state_folder == Path("/x")
    (tmp_path / "file").touch()
    with pytest.raises(errors.ConfigError, match="--state"):
        HeadSettings(state=str(tmp_path / "file"))


@pytest.mark.parametrize("bad", [{"isa": "sse"}, {"memory": "much"}, {"threads": -1}, {"tensor_port": 70000}])
def test_a_nodes_settings_are_checked(bad: dict[str, object]):
    with pytest.raises(errors.ConfigError):
        NodeSettings(**bad)  # pyright: ignore[reportArgumentType]


def test_what_is_given_goes_before_the_environment():
    environment = {"SHOAL_SLOTS": "4", "SHOAL_KV_TYPE": "fp32", "SHOAL_HEARTBEAT": "2.5"}
    settings = from_environment(HeadSettings, {"slots": 9, "kv_type": None}, environment)
    assert (settings.engine.slots, settings.engine.kv_type, settings.heartbeat) == (9, KvType.FP32, 2.5)


@pytest.mark.parametrize(("name", "value"), [("SLOTS", "many"), ("SLOTS", ""), ("PRECISION", "fp8"), ("HEARTBEAT", "soon")])
def test_a_variable_that_cannot_be_read_is_named(name: str, value: str):
    with pytest.raises(errors.ConfigError, match=f"SHOAL_{name}"):
        from_environment(HeadSettings, {}, {f"SHOAL_{name}": value})


@pytest.mark.parametrize(
    ("variable", "field", "value"),
    [
        ("SHOAL_PRECISION", "precision", Precision.Q4),
        ("SHOAL_ACTIVATIONS", "activations", Codec.INT8),
        ("SHOAL_KV_TYPE", "kv_type", KvType.BF16),
    ],
)
def test_choices_are_read_by_value(variable: str, field: str, value: object):
    assert getattr(from_environment(EngineSettings, {}, {variable: str(value)}), field) is value


def test_threads_default_to_the_cores_of_this_process():
    assert NodeSettings(threads=3).compute_threads == 3
    assert NodeSettings().compute_threads >= 1
    assert NodeSettings().runtime is RuntimeName.AUTO


def test_the_hub_is_the_public_one_unless_another_is_named():

    assert hub_endpoint({"HF_ENDPOINT": "https://x"}) == "https://x"
    assert hub_endpoint({}) is None


# The tree of errors


def tree() -> list[type[errors.ShoalError]]:
    return [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.ShoalError)]


def test_the_tree_is_drawn_whole():
    assert errors.__doc__ is not None
    assert [e.__name__ for e in tree() if e.__name__ not in errors.__doc__] == []


def test_errors_carry_facts():
    assert errors.InvalidRequest("m", "p", "c").code == "c"
    assert (errors.NotEnoughMemory(10, 4).needed, errors.QueueFull(3, 2).limit) == (10, 2)
    assert "6 B missing" in str(errors.NotEnoughMemory(10, 4))
    assert errors.HashMismatch("n", "a", "b").actual == "b"
    assert "same shoal" in str(errors.VersionMismatch(1, 2))


@pytest.mark.parametrize(("text", "shared"), [("false", False), ("0", False), ("true", True)])
def test_sharing_can_be_turned_off(text: str, shared: bool):
    assert NodeSettings().share
    assert from_environment(NodeSettings, {}, {"SHOAL_SHARE": text}).share is shared


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 29, "1.5 GiB"), (1 << 50, "1024.0 TiB")]
)
def test_sizes_for_people(count: int, text: str):
    assert human_bytes(count) == text


# The API


@pytest.mark.parametrize(
    ("cors", "origins"),
    [("", []), ("*", ["*"]), ("https://a.example, http://localhost:3000,", ["https://a.example", "http://localhost:3000"])],
)
def test_origins_are_read_by_commas(cors: str, origins: list[str]):
    assert ApiSettings(cors=cors).origins == origins


@pytest.mark.parametrize(
    "cors", ["chat.example", "https://a.example/", "https://*.example", "ftp://a.example", "https://a.example https://b.example"]
)
def test_what_is_no_origin_is_refused(cors: str):
    with pytest.raises(errors.ConfigError, match="--cors"):
        ApiSettings(cors=cors)


@pytest.mark.parametrize("name", ["connections", "keep_alive", "stall", "grace"])
def test_bounds_of_the_api_are_positive(name: str):
    with pytest.raises(errors.ConfigError, match=f"--{name.replace('_', '-')}"):
        composed(HeadSettings, {name: -1})


@pytest.mark.parametrize(("text", "value"), [("false", False), ("0", False), ("no", False), ("true", True), ("1", True)])
def test_switches_are_read_from_the_environment(text: str, value: bool) -> None:
    assert from_environment(HeadSettings, {}, {"SHOAL_SPREAD": text}).spread is value


def test_a_heartbeat_that_is_no_number_is_refused() -> None:
    with pytest.raises(ConfigError):
        HeadSettings(heartbeat=float("nan"))


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://other:8000/v1", "http://other:8000/v1"),
        ("http://Other:8000/", "http://other:8000/v1"),
        ("https://[fd00::5]:8443", "https://[fd00::5]:8443/v1"),
        ("https://api.example/openai/v1/", "https://api.example/openai/v1"),
    ],
)
def test_an_upstream_is_a_base_url(text: str, url: str) -> None:
    assert ApiSettings(upstream=text).upstreams == [parse_upstream(text)] == [url]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("other:8000", "not the URL"),
        ("ftp://other", "not the URL"),
        ("http://", "not the URL"),
        ("http://other:0", "not the URL"),
        ("http://other:99999", "Port out of range"),
        ("http://a b/v1", "not the URL"),
        ("http://me:pass@other/v1", "--upstream-key-file"),
        ("http://me:pass@other:x/v1", "not the URL"),
        ("http://other/v1?key=1", "more than a host"),
        ("http://10.0.0.256/v1", "not a host"),
        ("http://one/v1,http://ONE", "twice"),
        ("http://localhost:8000/v1", "this server itself"),
    ],
)
def test_what_is_no_upstream_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as refused:
        ApiSettings(upstream=text)
    assert "me:pass" not in str(refused.value)


def test_several_upstreams_are_read_by_commas() -> None:
    settings = from_environment(HeadSettings, {}, {"SHOAL_UPSTREAM": "http://one , http://two:1/v1", "SHOAL_BALANCE": "round-robin"})
    assert settings.api.upstreams == ["http://one/v1", "http://two:1/v1"] and settings.api.balance == "round-robin"


def test_a_server_without_a_model_needs_upstreams() -> None:
    with pytest.raises(ConfigError, match="needs --upstream"):
        composed(HeadSettings, {"model": "none"})
    assert composed(HeadSettings, {"model": "none", "upstream": "http://one"}).models == []
    with pytest.raises(ConfigError, match="needs --upstream"):
        ApiSettings(upstream_key_file="keys")
