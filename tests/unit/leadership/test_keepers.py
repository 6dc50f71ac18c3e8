"""What --lease says, and what it must not."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.address import Address
from shoal.discovery.redis_url import RedisUrl
from shoal.errors import ConfigError
from shoal.leadership.etcd_url import EtcdUrl
from shoal.leadership.keepers import NO_KEEPER, KubernetesPlace, WitnessPlace, lease_of, parse


def test_each_keeper_is_read():
    redis = parse("redis://:secret@10.0.0.9:6379/0")
    assert isinstance(redis, RedisUrl) and redis.shown == "redis://:***@10.0.0.9:6379/0"
    assert parse("kubernetes") == KubernetesPlace()
    assert parse("kubernetes://apps") == KubernetesPlace("apps")
    assert parse("kubernetes://apps/chat") == KubernetesPlace("apps", "chat")
    assert parse("witness://[fd00::5]:7430") == WitnessPlace(Address("fd00::5", 7430))


def test_etcd_has_members_accounts_and_files():
    etcd = parse("etcds://shoal:p%40ss@a.example,10.0.0.2:2380,[fd00::5]:2379?ca=/etc/ca.pem")
    assert isinstance(etcd, EtcdUrl)
    assert etcd.members == ("https://a.example:2379", "https://10.0.0.2:2380", "https://[fd00::5]:2379")
    assert (etcd.user, etcd.password, etcd.files) == ("shoal", "p@ss", {"ca": "/etc/ca.pem"})
    assert "p@ss" not in repr(etcd) + etcd.shown and "p%40ss" not in repr(etcd) + etcd.shown


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no keeper"),
        ("zookeeper://10.0.0.9:2181", "names no keeper"),
        ("etdc://10.0.0.9:2379", "etcd"),
        ("redis://", "--lease: redis:// names no host"),
        ("redis://10.0.0.9/x", "number of a database"),
        ("etcd://", "no address of etcd"),
        ("etcd://10.0.0.9:2379/keys", "no address of etcd"),
        ("etcd://10.0.0.9:99999", "not an address"),
        ("etcd://user@10.0.0.9:2379", "without a password"),
        ("etcd://10.0.0.9?ca=/x", "etcds://"),
        ("etcds://10.0.0.9?key=/x", "cert=FILE"),
        ("etcds://10.0.0.9?password=x", "unknown options"),
        ("kubernetes://Apps/x", "lower-case"),
        ("witness://10.0.0.9", "HOST:PORT"),
        ("witness://0.0.0.0:7430", "every address"),
    ],
)
def test_what_cannot_be_read_is_refused_with_what_to_write(text: str, words: str):
    with pytest.raises(ConfigError) as refused:
        parse(text)
    assert words in str(refused.value) and "--lease" in str(refused.value)


def test_no_message_quotes_a_password():
    for text in ("etcd://user:hunter2@10.0.0.9:2379/x", "redis://user:hunter2@10.0.0.9:x/0", "etcd://user:hunter2@10.0.0.9:x"):
        with pytest.raises(ConfigError) as refused:
            parse(text)
        assert "hunter2" not in str(refused.value)


def test_kubernetes_outside_a_pod_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match="in a pod"):
        lease_of(parse("kubernetes"), "reef")


def test_a_cluster_whose_name_no_lease_can_have_is_told_so():
    with pytest.raises(ConfigError, match="cannot name a Lease"):
        lease_of(parse("kubernetes"), "Reef_1")


def test_files_of_tls_that_are_not_there_are_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be read"):
        lease_of(parse(f"etcds://127.0.0.1:2379?ca={tmp_path}/none.pem"), "reef")


def test_without_a_keeper_the_message_says_which_there_are():
    assert all(word in NO_KEEPER for word in ("redis://", "etcd://", "kubernetes", "witness://", "shoal witness"))
