"""A configuration file: what it may say, and how a mistake in it is told, with its line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shoal.cli.configuration import _commented
from shoal.cli.options import sections
from shoal.config import HeadSettings, KvType, NodeSettings, from_environment, settings_of
from shoal.config_file import ConfigFile, lines, read
from shoal.errors import ConfigError


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
        ("[whatever]", 1, r"there are \[head\], \[node\], \[client\]"),
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


def test_the_command_line_goes_before_the_environment_and_that_before_the_file() -> None:
    file = {"slots": 3, "queue": 4, "context": 64, "of_another_role": 1}
    settings = from_environment(HeadSettings, {"slots": 9}, {"SHOAL_SLOTS": "8", "SHOAL_QUEUE": "7"}, file)
    assert (settings.engine.slots, settings.engine.queue, settings.engine.context, settings.api.port) == (9, 7, 64, 8000)


def test_every_setting_of_a_role_has_its_key_and_its_help() -> None:
    known = sections()
    for section, role in (("head", HeadSettings), ("node", NodeSettings)):
        for setting in settings_of(role):
            assert known[section][setting.name.replace("_", "-")].default == setting.default
    assert all(key.help and key.variables for keys in known.values() for key in keys.values())


def test_the_file_to_begin_with_sets_nothing_and_is_right_when_all_of_it_is_set(tmp_path: Path) -> None:
    text = "\n".join(_commented())
    assert all(written(tmp_path, text).section(name) == {} for name in sections())
    everything = re.sub(r"^# ([\w-]+ = )", r"\1", text, flags=re.MULTILINE)
    everything = everything.replace("nodes = 0", "nodes = 1")
    file = written(tmp_path, everything)
    assert {name: set(file.section(name)) for name in sections()} == {name: set(keys) for name, keys in sections().items()}
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
