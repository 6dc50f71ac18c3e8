"""The cluster's authority: made once, kept safe, and what it signs."""

from __future__ import annotations

import datetime as dt
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import ConfigError
from shoal.security.authority import FILE, Authority
from shoal.security.certificates import Role, check_name, common_name, key_pem, new_key, server_name, signing_request
from shoal.security.private_file import write_private

NOW = dt.datetime(2026, 5, 1, 12, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
AUTHORITY = Authority.create(NOW)


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "authority"


def test_it_is_made_once_and_then_loaded(folder: Path):
    first = Authority.open(folder, NOW)
    assert Authority.open(folder, NOW).fingerprint == first.fingerprint
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / FILE).stat().st_mode) == 0o600
    assert [p.name for p in folder.iterdir()] == [FILE]  # nothing left over


def test_a_deleted_authority_is_replaced_by_another(folder: Path):
    first = Authority.open(folder, NOW)
    (folder / FILE).unlink()
    assert Authority.open(folder, NOW).fingerprint != first.fingerprint


def test_what_it_prints_holds_no_key(folder: Path):
    authority = Authority.open(folder, NOW)
    assert repr(authority) == f"Authority({authority.fingerprint})"
    assert len(authority.fingerprint.split(":")) == 16


@pytest.mark.parametrize("role", Role)
def test_a_certificate_says_what_and_who(role: Role):
    authority = Authority.create(NOW)
    certificate = authority.issue(new_key().public_key(), role, "anna", now=NOW)
    certificate.verify_directly_issued_by(authority.certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [f"{role}.shoal"] == [server_name(role)]
    assert common_name(certificate.subject) == "anna"
    uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(uses) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert certificate.not_valid_before_utc == NOW - DAY and certificate.not_valid_after_utc == NOW + 365 * DAY


def test_no_certificate_outlives_the_authority():
    authority = Authority.create(NOW)
    late = authority.certificate.not_valid_after_utc - 10 * DAY
    assert (
        authority.issue(new_key().public_key(), Role.NODE, "n", now=late).not_valid_after_utc == authority.certificate.not_valid_after_utc
    )
    assert authority.certificate.not_valid_after_utc - NOW > 3650 * DAY


def test_of_a_request_only_the_key_counts():
    key = new_key()
    greedy = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "the head")]))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("head.shoal")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate = Authority.create(NOW).issue(greedy, Role.NODE, "anna", now=NOW)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["node.shoal"] and common_name(certificate.subject) == "anna"
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert certificate.public_key() == key.public_key()


def test_a_request_for_someone_elses_key_is_not_signed():
    der = bytearray(signing_request(new_key(), "anna").public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    with pytest.raises(ValueError, match="not signed"):
        Authority.create(NOW).issue(x509.load_der_x509_csr(bytes(der)), Role.NODE, "anna", now=NOW)


@pytest.mark.parametrize("key", [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)], ids=["p384", "rsa"])
def test_other_kinds_of_keys_are_not_signed(key: ec.EllipticCurvePrivateKey):
    with pytest.raises(ValueError, match="P-256"):
        Authority.create(NOW).issue(key.public_key(), Role.NODE, "anna", now=NOW)


@pytest.mark.parametrize("name", ["", "x" * 65, "é" * 33, "\ud800", "a\nb", " a", "a ", "\x00"])
def test_impossible_names(name: str):
    with pytest.raises(ConfigError, match="name"):
        Authority.create(NOW).credentials(Role.NODE, name, now=NOW)


@given(st.text(max_size=70))
def test_every_name_that_is_allowed_can_stand_in_a_certificate(name: str):
    try:
        check_name(name)
    except ConfigError:
        return
    request = signing_request(new_key(), name)
    assert common_name(AUTHORITY.issue(request, Role.NODE, name, now=NOW).subject) == name == common_name(request.subject)


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _without_key(data: bytes) -> bytes:
    return data[data.index(b"-----BEGIN CERTIFICATE") :]


def _without_certificate(data: bytes) -> bytes:
    return data[: data.index(b"-----BEGIN CERTIFICATE")]


def _anothers_certificate(data: bytes) -> bytes:
    return _without_certificate(data) + pem(Authority.create(NOW).certificate)


def _a_leaf(data: bytes) -> bytes:
    key = new_key()
    return key_pem(key) + pem(Authority.create(NOW).issue(key.public_key(), Role.HEAD, "h", now=NOW))


@pytest.mark.parametrize(
    "spoil",
    [
        _cut,
        _without_key,
        _without_certificate,
        _anothers_certificate,
        _a_leaf,
        lambda _: b"",
        lambda _: b"\xff" * 99,
        lambda _: b"x" * 99999,
    ],
    ids=["cut", "no key", "no certificate", "another's", "a leaf", "empty", "garbage", "huge"],
)
def test_a_spoilt_file_is_named_and_never_replaced(folder: Path, spoil: Callable[[bytes], bytes]):
    Authority.open(folder, NOW)
    path = folder / FILE
    spoilt = spoil(path.read_bytes())
    path.write_bytes(spoilt)
    with pytest.raises(ConfigError, match=str(path)):
        Authority.open(folder, NOW)
    assert path.read_bytes() == spoilt


@pytest.mark.parametrize(("when", "what"), [(NOW + 4000 * DAY, "expired.*move"), (NOW - 400 * DAY, "clock")])
def test_out_of_its_time(folder: Path, when: dt.datetime, what: str):
    Authority.open(folder, NOW)
    with pytest.raises(ConfigError, match=what):
        Authority.open(folder, when)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_a_key_that_others_can_read_is_not_used(folder: Path, mode: int):
    Authority.open(folder, NOW)
    (folder / FILE).chmod(mode)
    with pytest.raises(ConfigError, match="chmod 0600"):
        Authority.open(folder, NOW)


def test_a_folder_that_others_may_enter_is_not_used(folder: Path):
    folder.mkdir(mode=0o755)
    with pytest.raises(ConfigError, match="chmod 0700"):
        Authority.open(folder, NOW)
    assert not list(folder.iterdir())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
def test_a_key_that_belongs_to_another_user_is_not_used(folder: Path):
    Authority.open(folder, NOW)
    os.chown(folder / FILE, 12345, 12345)
    with pytest.raises(ConfigError, match="chown"):
        Authority.open(folder, NOW)


def test_a_folder_that_is_a_file(folder: Path):
    folder.write_text("")
    with pytest.raises(ConfigError, match=str(folder)):
        Authority.open(folder, NOW)


def test_two_heads_that_start_at_once_share_one_authority(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """The other head's file appears between looking and writing."""
    others = Authority.create(NOW)

    def late(path: Path, data: bytes, *, fresh: bool) -> None:
        write_private(path, key_pem(others._key) + pem(others.certificate))
        write_private(path, data, fresh=fresh)

    monkeypatch.setattr("shoal.security.authority.write_private", late)
    assert Authority.open(folder, NOW).fingerprint == others.fingerprint
    assert [p.name for p in folder.iterdir()] == [FILE]
