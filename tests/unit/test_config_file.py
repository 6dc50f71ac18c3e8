"""A configuration file: what it may say, and how a mistake in it is told, with its line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.cli.configuration import _commented
from shoal.cli.options import sections
from shoal.config import MOST_REPLICAS, HeadSettings, KvType, ModelSection, ModelSettings, NodeSettings, Precision
from shoal.config_file import ConfigFile, header, lines, read
from shoal.errors import ConfigError
from shoal.settings import from_environment, settings_of


def written(folder: Path, text: str) -> ConfigFile:
    path = folder / "config.toml"
    path.write_text(text)
    return read(path, sections())


GOOD = """\
log-format = "json"

[head]
port = 9000   # a comment
kv-type = "fp32"
heartbeat = 2
spread = true

[node]
memory = "4GiB"
threads = 3

[client]
"api-key" = "sk-test-12345678"
temperature = 0.5
"""


def test_what_it_says_is_read_with_its_lines(tmp_path: Path) -> None:
    file = written(tmp_path, GOOD)
    assert file.section("") == {"log-format": "json"}
    assert file.section("head") == {"port": 9000, "kv-type": KvType.FP32, "heartbeat": 2.0, "spread": True}
    assert file.section("node") == {"memory": "4GiB", "threads": 3}
    assert file.where("head", "kv-type") == f"{tmp_path / 'config.toml'}:5"
    assert file.where("client", "api-key") == f"{tmp_path / 'config.toml'}:14"
    assert file.where("head", "slots") is None


def test_no_file_says_nothing_unless_it_was_named(tmp_path: Path) -> None:
    assert read(tmp_path / "none.toml", sections()).section("head") == {}
    with pytest.raises(ConfigError, match=r"SHOAL_CONFIG names .*none\.toml, which does not exist; `shoal config init`"):
        read(tmp_path / "none.toml", sections(), must_be=True)


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ("[head]\n\nprot = 1", 3, r"\[head\] has no key 'prot' \(did you mean 'port'\?\)"),
        ("[head]\nkv_type = 'fp32'", 2, r"did you mean 'kv-type'\?"),
        ("[node]\nslots = 4", 2, r"\[node\] has no key 'slots'; it belongs under \[head\]"),
        ("\nport = 1", 2, r"no key 'port' outside of the sections; it belongs under \[head\]"),
        ("[head]\nverbose = true", 2, "it belongs before the first section"),
        ("[heads]\nport = 1", 1, r"there is no section \[heads\] \(did you mean 'head'\?\)"),
        ("[whatever]", 1, r"there are \[head\], \[node\], \[gateway\], \[client\]"),
        ("[head]\nport = '80'", 2, "port is a whole number, not '80'"),
        ("[head]\nport = 80.5", 2, "port is a whole number, not 80.5"),
        ("[head]\nport = true", 2, "port is a whole number, not true"),
        ("[head]\nspread = 1", 2, "spread is true or false, not 1"),
        ("[node]\nmemory = 4", 2, r"memory is text in quotes, like \"…\", not 4"),
        ("[head]\ncors = ['a']", 2, "cors is text in quotes, .* not a TOML list"),
        ("[head]\nport = 70000", 2, "--port must be at least 0 and at most 65535"),
        ("[head]\nheartbeat = nan", 2, "--heartbeat must be at least 0.05"),
        ("[node]\nmemory = 'much'", 2, "'much' is not a size"),
        ("[head]\nprecision = 'q44'", 2, r"precision is one of auto, fp32, q8, q4, not 'q44' \(did you mean 'q4'\?\)"),
        ("[client]\nmax-tokens = -1", 2, "--max-tokens must be at least 0"),
        ("[client]\ntemperature = inf", 2, "--temperature"),
        ("[client]\napi-key = 5", 2, r"api-key is text in quotes, like \"…\", not \*\*\*"),
        ("[head]\nport = ", 2, "this is not TOML"),
        ("[head]\nspread = True", 2, "this is not TOML: .*; write true or false"),
        ("[head]\nmodel = tinyllama", 2, "this is not TOML: .*; write text in quotes"),
        ("[head]\nport = 1\nport = 2", 3, "this is not TOML"),
        ("[head", 1, "this is not TOML"),
        ("[models.x]\ncontex = 1", 2, r"\[models\.x\] has no key 'contex' \(did you mean 'context'\?\)"),
        ('\n[models."org/x:Q8_0"]\ncontex = 1', 3, r'\[models\."org/x:Q8_0"\] has no key \'contex\''),
        ("[models.x]\nport = 1", 2, r"\[models\.x\] has no key 'port'; it belongs under \[head\]"),
        ("[models.x]\nmodel = 'y'", 2, r"has no key 'model'; it belongs under \[head\]"),
        ("[head]\npriority = 1", 2, r"\[head\] has no key 'priority'; it belongs under \[models\.NAME\]"),
        ("[models.x]\ncontext = {a = 1}", 2, "context is a whole number, not a TOML dict"),
        ("[models.x]\n\ncontext = 4", 3, "--context must be at least 16"),
        ("[models.x]\npriority = 101", 2, "priority must be at least -100 and at most 100, not 101"),
        ("[models.x]\nreplicas = 0", 2, "replicas must be at least 1"),
        ("[models.x]\nbatch-delay = -1", 2, "batch-delay must be at least 0"),
        ("[models.x]\nnodes = ' , '", 2, "nodes are names of nodes, separated by commas"),
        ('[models.x]\nnodes = "a\\u0007"', 2, "is no node's name"),
        ("[models.x]\nchat-template = 'none.jinja'", 2, "--chat-template none.jinja is not a file"),
        ("[models]\ncontext = 64", 2, r"\[models\] holds a section for each model: \[models\.NAME\]"),
        ('[models.""]\ncontext = 64', 1, r"\[models\] holds a section for each model"),
        ("[model.x]\ncontext = 64", 1, r"there is no section \[model\] \(did you mean 'models'\?\)"),
        ("\n[models.qwen2.5-coder-1.5b]\ncontext = 64", 2, r'a name with a dot needs quotes: \[models\."qwen2\.5-coder-1\.5b"\]'),
        ("[models.a.b]\ncontext = 64\n[models.a.c]\ncontext = 64", 1, r'a name with a dot needs quotes: \[models\."a\.b"\]'),
    ],
)
def test_a_mistake_is_told_with_its_line_and_what_to_do(tmp_path: Path, text: str, line: int, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        written(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'config.toml'}:{line}: ")
    assert "\n" not in str(caught.value)


def test_what_is_not_text_or_cannot_be_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b"[head]\nmodel = '\xff'\n")
    with pytest.raises(ConfigError, match=r"config\.toml:2: this is not UTF-8"):
        read(path, sections())
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match=r"cannot read .*config\.toml"):
        read(path, sections())


def test_lines_are_found_past_strings_of_several_lines() -> None:
    text = 'a = """\n[head]\nport = 1\n"""\nhead.slots = 3\n[ node ]\n\n  "threads" = 2\n'
    found = lines(text)
    assert found["", "a"] == 1 and found["head", "slots"] == 5 and found["node", "threads"] == 8
    assert ("head", "port") not in found


MODELS_OF = """\
[models.plain]
context = 512
precision = "q8"
nodes = "desk, attic"

["models"."org/Repo:Q4_K_M"]   # a comment
priority = -3
batch-size = 4
batch-delay = 1

[ models . 'file.gguf' ]
kv-type = "fp32"
"""


def test_sections_of_models_are_read_by_their_names_with_their_lines(tmp_path: Path) -> None:
    file = written(tmp_path, MODELS_OF)
    assert file.models == ["plain", "org/Repo:Q4_K_M", "file.gguf"]
    assert file.section("models.plain") == {"context": 512, "precision": Precision.Q8, "nodes": "desk, attic"}
    assert file.section("models.org/Repo:Q4_K_M") == {"priority": -3, "batch-size": 4, "batch-delay": 1.0}
    assert file.section("models.file.gguf") == {"kv-type": KvType.FP32}
    for section, key, line in (("plain", "nodes", 4), ("org/Repo:Q4_K_M", "batch-size", 8), ("file.gguf", "kv-type", 12)):
        assert file.where(f"models.{section}", key) == f"{tmp_path / 'config.toml'}:{line}"


@pytest.mark.parametrize(
    "text", ["models.x.context = 64", "[models]\nx.context = 64", "[models]\nx = {context = 64}", '["models"]\n"x" = {"context" = 64}']
)
def test_toml_has_several_ways_to_write_a_section(tmp_path: Path, text: str) -> None:
    file = written(tmp_path, text)
    assert file.section("models.x") == {"context": 64}
    assert file.where("models.x", "context") == f"{tmp_path / 'config.toml'}:{len(text.splitlines())}"


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=20))
def test_a_model_may_have_any_name_and_its_header_is_shown_as_it_may_be_written(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    written_as = header(f"models.{name}")
    file = written(tmp_path_factory.mktemp("names"), f"\n{written_as}\npriority = 7\n")
    assert file.models == [name] and file.section(f"models.{name}") == {"priority": 7}
    assert (file.where(f"models.{name}", "priority") or "").endswith("config.toml:3")


def test_settings_that_go_together_may_be_set_in_any_order(tmp_path: Path) -> None:
    """Each is wrong without the others, which may also be set elsewhere."""
    file = written(tmp_path, "[head]\nidle = 900\non-demand = true\n[models.x]\nbatch-size = 64\nbatch-delay = 0.1\nslots = 64\n")
    head = from_environment(HeadSettings, {}, {}, {k.replace("-", "_"): v for k, v in file.section("head").items()})
    values = {key.replace("-", "_"): value for key, value in file.section("models.x").items()}
    assert (head.idle, head.of_model(ModelSection("x", "here", values)).gathered) == (900, 64)
    assert written(tmp_path, "[head]\nreplicas-max = 4\nreplicas-min = 2\n").section("head")
    for values, words in (
        ({"idle": 900.0}, "needs --on-demand"),
        ({"replicas_min": 5, "replicas_max": 4}, "is more than --replicas-max 4"),
    ):
        with pytest.raises(ConfigError, match=words):
            from_environment(HeadSettings, {}, {}, values)


def test_the_copies_that_a_section_asks_for_are_within_the_bounds_of_scaling() -> None:
    head = from_environment(HeadSettings, {}, {}, {"replicas_min": 2, "replicas_max": 4})
    assert head.of_model(None).replicas == 2, "it begins with the fewest"
    assert head.of_model(ModelSection("x", "shoal.toml:7", {"replicas": 3})).replicas == 3
    with pytest.raises(ConfigError, match=r"shoal.toml:7: replicas = 5 is not within --replicas-min 2 and --replicas-max 4"):
        head.of_model(ModelSection("x", "shoal.toml:7", {"replicas": 5}))


def test_as_many_copies_as_scaling_may_begin_with_may_be_asked_for() -> None:
    head = from_environment(HeadSettings, {}, {}, {"replicas_min": 100, "replicas_max": MOST_REPLICAS})
    assert head.of_model(None).replicas == 100
    assert from_environment(HeadSettings, {}, {}, {"replicas": MOST_REPLICAS}).of_model(None).replicas == MOST_REPLICAS
    with pytest.raises(ConfigError, match=r"--replicas must be at least 0 and at most 1024"):
        from_environment(HeadSettings, {}, {}, {"replicas": MOST_REPLICAS + 1})


def test_the_command_line_goes_before_the_environment_and_that_before_the_file() -> None:
    file = {"slots": 3, "queue": 4, "context": 64, "of_another_role": 1}
    settings = from_environment(HeadSettings, {"slots": 9}, {"SHOAL_SLOTS": "8", "SHOAL_QUEUE": "7"}, file)
    assert (settings.engine.slots, settings.engine.queue, settings.engine.context, settings.api.port) == (9, 7, 64, 8000)


def test_every_setting_of_a_role_has_its_key_and_its_help() -> None:
    known = sections()
    for section, role in (("head", HeadSettings), ("node", NodeSettings)):
        for setting in settings_of(role):
            assert known[section][setting.name.replace("_", "-")].default == setting.default
    for setting in settings_of(ModelSettings):
        assert setting.name == "model" or known["models"][setting.name.replace("_", "-")].default == setting.default
    assert all(key.help and (key.variables or name == "models") for name, keys in known.items() for key in keys.values())


def test_the_file_to_begin_with_sets_nothing_and_is_right_when_all_of_it_is_set(tmp_path: Path) -> None:
    text = "\n".join(_commented())
    assert all(written(tmp_path, text).section(name) == {} for name in sections())
    everything = re.sub(r"^# ([\w-]+ = )", r"\1", text, flags=re.MULTILINE)
    everything = everything.replace("nodes = 0", "nodes = 1")
    file = written(tmp_path, everything)
    (model,) = file.models
    said = {name: set(file.section(f"models.{model}" if name == "models" else name)) for name in sections()}
    assert said == {name: set(keys) for name, keys in sections().items()}
    assert from_environment(HeadSettings, {}, {}, {k.replace("-", "_"): v for k, v in file.section("head").items()}) == HeadSettings()


def test_secrets_that_others_can_read_are_warned_of(tmp_path: Path) -> None:
    file = written(tmp_path, GOOD)
    file.path.chmod(0o644)
    assert "holds api-key, and other users can read it: chmod 600" in file.warning(sections())
    file.path.chmod(0o600)
    assert file.warning(sections()) == ""
    redis = written(tmp_path, "[node]\ndiscovery = 'redis://:pw@10.0.0.1:6379'")
    redis.path.chmod(0o640)
    assert "holds discovery" in redis.warning(sections())
    plain = written(tmp_path, "[head]\nport = 1\ndiscovery = 'redis://10.0.0.1:6379'")
    plain.path.chmod(0o644)
    assert plain.warning(sections()) == ""
