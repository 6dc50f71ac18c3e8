"""Settings as flags: a command that is given them has those settings."""

from __future__ import annotations

from typing import Any

import typer.main
from hypothesis import given
from hypothesis import strategies as st

from shoal.cli.app import app
from shoal.cli.options import with_one_text
from shoal.config import ApiSettings, Codec, HeadSettings, KvType, NodeRole, NodeSettings, RuntimeName, Speculation
from shoal.launch.command_line import flags_of
from shoal.settings import composed, from_environment

TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)
HEADS = st.fixed_dictionaries(
    {},
    optional={
        "model": TEXTS,
        "cluster": TEXTS,
        "kv_type": st.sampled_from(KvType),
        "activations": st.sampled_from(Codec),
        "context": st.integers(16, 10**6),
        "prefix_cache": st.booleans(),
        "speculation": st.sampled_from(Speculation),
        "open_api": st.booleans(),
        "grace": st.floats(0, 3600),
        "heartbeat": st.floats(0.05, 60),
        "spread": st.booleans(),
        "min_nodes": st.integers(1, 1024),
        "data": TEXTS.map("/nowhere/".__add__),
    },
)
NODES = st.fixed_dictionaries(
    {},
    optional={
        "name": TEXTS,
        "memory": st.integers(1, 10**12).map(str),
        "threads": st.integers(0, 1024),
        "runtime": st.sampled_from(RuntimeName),
        "role": st.sampled_from(NodeRole),
        "share": st.booleans(),
        "patience": st.floats(0, 1e6),
    },
)


def parsed(kind: str, role: type[Any], words: list[str]) -> Any:
    root: Any = typer.main.get_command(app)
    context = root.commands[kind].make_context(f"shoal {kind}", [*words])
    given = with_one_text(context.params) if role is HeadSettings else context.params
    return from_environment(role, given, environment={})


@given(HEADS)
def test_a_head_is_given_its_settings(values: dict[str, Any]) -> None:
    settings = composed(HeadSettings, values)
    assert parsed("serve", HeadSettings, flags_of(settings)) == settings


@given(NODES)
def test_a_node_is_given_its_settings(values: dict[str, Any]) -> None:
    settings = composed(NodeSettings, values)
    assert parsed("join", NodeSettings, flags_of(settings)) == settings


def test_defaults_are_not_said() -> None:
    assert flags_of(HeadSettings()) == flags_of(NodeSettings()) == []
    assert flags_of(HeadSettings(api=ApiSettings(port=1, open_api=True))) == ["--open-api", "--port=1"]
    assert flags_of(NodeSettings(share=False)) == ["--no-share"]
