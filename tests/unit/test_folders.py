"""Where things are kept: by shoal's own variables, else the system's custom."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from shoal.errors import ConfigError
from shoal.folders import cache_dir, config_file, data_dir, keys_dir, named, state_dir

Folder = Callable[[Mapping[str, str]], Path]


@pytest.mark.parametrize(
    ("folder", "variable", "plain"),
    [
        (cache_dir, "XDG_CACHE_HOME", ".cache/shoal"),
        (data_dir, "XDG_DATA_HOME", ".local/share/shoal"),
        (state_dir, "XDG_STATE_HOME", ".local/state/shoal"),
        (config_file, "XDG_CONFIG_HOME", ".config/shoal/config.toml"),
    ],
)
def test_by_the_custom_of_the_system(folder: Folder, variable: str, plain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/anna")
    monkeypatch.setattr("sys.platform", "linux")
    assert folder({}) == Path("/home/anna", plain)
    assert folder({variable: ""}) == Path("/home/anna", plain)
    assert folder({variable: "/xdg"}) == Path("/xdg", plain[plain.index("shoal") :])


def test_on_a_mac_and_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/Users/anna")
    monkeypatch.setattr("sys.platform", "darwin")
    support = Path("/Users/anna/Library/Application Support/shoal")
    assert data_dir({}) == state_dir({}) == support and config_file({}) == support / "config.toml"
    monkeypatch.setattr("sys.platform", "win32")
    windows = {"APPDATA": "/roaming", "LOCALAPPDATA": "/local"}
    assert data_dir(windows) == Path("/local/shoal") and config_file(windows) == Path("/roaming/shoal/config.toml")


def test_one_folder_that_is_named_holds_all_that_is_kept_and_a_cache_that_is_named_all() -> None:
    assert data_dir({"SHOAL_HOME": "/a"}) == state_dir({"SHOAL_HOME": "/a"}) == Path("/a")
    assert keys_dir({"SHOAL_HOME": "/a", "SHOAL_CACHE": "/b"}) == Path("/a/keys")
    assert cache_dir({"SHOAL_HOME": "/a", "SHOAL_CACHE": "/b"}) == Path("/b")
    assert data_dir({"SHOAL_CACHE": "/b"}) == state_dir({"SHOAL_CACHE": "/b"}) == Path("/b")
    assert named({"SHOAL_HOME": "/a"}) and named({"SHOAL_CACHE": "/b"}) and not named({"XDG_DATA_HOME": "/c"})
    assert config_file({"SHOAL_CONFIG": "/c.toml", "SHOAL_HOME": "/a"}) == Path("/c.toml")


@pytest.mark.parametrize("folder", [cache_dir, data_dir, state_dir, config_file])
def test_without_a_home_it_is_said_what_to_set(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", nobody)
    with pytest.raises(ConfigError, match="set HOME, or SHOAL_CACHE"):
        folder({})
