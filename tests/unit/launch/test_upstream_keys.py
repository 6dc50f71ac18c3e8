"""The keys of upstreams: from a private file, never shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.config import ApiSettings
from shoal.errors import ConfigError
from shoal.launch.upstream_keys import parse_keys, upstream_keys

ONE, TWO = "http://one:8000/v1", "https://two/api/v1"


def settings(path: Path) -> ApiSettings:
    return ApiSettings(upstream=f"{ONE},{TWO}", upstream_key_file=str(path))


def written(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "keys"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_each_upstream_has_its_own_key_and_the_others_the_plain_one(tmp_path: Path) -> None:
    text = f"# who has which\n\nhttp://ONE:8000/ k-1\n{TWO}\tk-2\nk-all\n"
    assert upstream_keys(settings(written(tmp_path, text))) == {ONE: "k-1", TWO: "k-2", "": "k-all"}


def test_without_a_file_there_are_none() -> None:
    assert upstream_keys(ApiSettings(upstream=ONE)) == {}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a b c", "a URL and its key"),
        (ONE, "a URL and its key"),
        ("http://three k", "none of the upstreams"),
        ("nonsense secret-1", "not the URL of a server"),
        (f"{ONE} a\n{ONE}/ b", "twice"),
        ("a\nb", "twice"),
        ("kéy", "ASCII"),
    ],
)
def test_mistakes_name_the_line_and_no_key(text: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=why) as refused:
        upstream_keys(settings(written(tmp_path, text)))
    assert "--upstream-key-file" in str(refused.value) and "secret-1" not in str(refused.value)


def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"open to other users.*replace the keys"):
        upstream_keys(settings(written(tmp_path, "k", 0o644)))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        upstream_keys(settings(tmp_path / "nowhere"))


@given(st.text())
def test_whatever_is_in_the_file_is_read_or_refused(text: str) -> None:
    try:
        keys = parse_keys(text, [ONE, TWO], "f")
    except ConfigError:
        return
    assert set(keys) <= {ONE, TWO, ""} and all(key.isprintable() and " " not in key for key in keys.values())
