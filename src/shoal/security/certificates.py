"""The form of the cluster's certificates.

A certificate states its holder's role by a DNS name, like `head.shoal` or `node.shoal`, and its holder's identity by the common
name. TLS checks the DNS name of a server: a node's certificate does not contain the head's name, so a node can pose as another node
but never as the head. Servers check the name of a client with `role_of`.
"""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Collection, Sequence

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shoal.errors import ConfigError

BACKDATED = dt.timedelta(days=1)  # machines in a home disagree about the time
NAME_LENGTH = 64  # bytes of UTF-8; X.509's limit on a common name, as the cryptography package counts


class Role(enum.StrEnum):
    HEAD = "head"
    NODE = "node"
    GATEWAY = "gateway"
    WITNESS = "witness"


ASKED_FOR = frozenset({Role.NODE, Role.GATEWAY})
"""What a machine may ask to be when it pairs; also a head, where a head of several is asked."""


def server_name(role: Role) -> str:
    """What to pass as `server_hostname` to make sure that the server has that role."""
    return f"{role.value}.shoal"


def role_of(names: Sequence[str]) -> Role | None:
    """The role that the DNS names of a certificate state; None if they state none."""
    return next((role for role in Role if list(names) == [server_name(role)]), None)


def dns_names(extensions: x509.Extensions) -> list[str]:
    """The DNS names in a certificate or in a request for one."""
    try:
        return extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        return []


def check_name(name: str) -> str:
    """The name, if a certificate can contain it. Raises ConfigError."""
    if not name.isprintable() or name != name.strip() or not 1 <= len(name.encode()) <= NAME_LENGTH:  # a lone surrogate is not printable
        raise ConfigError(f"a node's name has 1 to {NAME_LENGTH} bytes of printable characters, none of them a space at either end")
    return name


def common_name(name: x509.Name) -> str:
    """The common name; '' if there is none."""
    values = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(values[0].value) if values else ""


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the certificate: 'A1B2:C3D4:…', 16 groups."""
    digits = certificate.fingerprint(hashes.SHA256()).hex().upper()
    return ":".join(digits[i : i + 4] for i in range(0, 64, 4))


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The key, not encrypted."""
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """The one private key in PEM text. Raises ValueError."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (TypeError, UnsupportedAlgorithm) as error:
        raise ValueError("the key is encrypted, or of an unknown kind") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("the key is not on the curve P-256")
    return key


def same_key(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> bool:
    return certificate.public_key() == key.public_key()


def signing_request(key: ec.EllipticCurvePrivateKey, name: str, role: Role = Role.NODE) -> x509.CertificateSigningRequest:
    """Asks for a certificate in `name` and proves that the asker owns the key. Raises ConfigError for an impossible name."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, check_name(name))])
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(server_name(role))]), critical=False)
        .sign(key, hashes.SHA256())
    )


def asked_role(request: x509.CertificateSigningRequest, allowed: Collection[Role] = ASKED_FOR) -> Role:
    """What the asker wants to be; a node if the request does not say it. Raises ValueError for what nobody may ask for."""
    names = dns_names(request.extensions)
    role = role_of(names) if names else Role.NODE
    if role is None or role not in allowed:
        raise ValueError(f"a request for {', '.join(names)}")
    return role


def authority_certificate(key: ec.EllipticCurvePrivateKey, now: dt.datetime, life: dt.timedelta) -> x509.Certificate:
    """A root certificate that may sign leaf certificates and nothing else."""
    public = key.public_key()
    mark = x509.SubjectKeyIdentifier.from_public_key(public)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"shoal authority {mark.digest.hex()[:16]}")])
    return (
        _builder(name, name, public, now - BACKDATED, now + life)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(mark, critical=False)
        .sign(key, hashes.SHA256())
    )


def leaf_certificate(
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    public: ec.EllipticCurvePublicKey,
    role: Role,
    name: str,
    now: dt.datetime,
    life: dt.timedelta,
) -> x509.Certificate:
    """A certificate for both ends of TLS; it never outlives the authority's. Raises ConfigError for an impossible name."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, check_name(name))])
    start = max(now - BACKDATED, authority.not_valid_before_utc)
    end = min(now + life, authority.not_valid_after_utc)
    mark = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        _builder(subject, authority.subject, public, start, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(server_name(role))]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(mark), critical=False)
        .sign(authority_key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, start: dt.datetime, end: dt.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
