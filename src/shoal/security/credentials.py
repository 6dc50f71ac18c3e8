"""What a process shows to the others of its cluster: a certificate, with its private key and the authority that it trusts."""

from __future__ import annotations

import dataclasses
import datetime as dt
import secrets
import ssl
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from shoal.errors import ConfigError
from shoal.security.certificates import Role, common_name, dns_names, fingerprint, key_pem, load_key, role_of, same_key, server_name
from shoal.security.private_file import read_private, write_private

_AGAIN = "pair this machine again with `shoal join HOST:PORT --code CODE`"


@dataclasses.dataclass(frozen=True, repr=False)
class Credentials:
    """All PEM. The key is not encrypted: whoever reads it can pose as its owner."""

    private_key: bytes
    certificate: bytes
    authority: bytes

    @classmethod
    def of(cls, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate, authority: x509.Certificate) -> Credentials:
        pem = serialization.Encoding.PEM
        return cls(key_pem(key), certificate.public_bytes(pem), authority.public_bytes(pem))

    def __repr__(self) -> str:
        return "Credentials(private_key=***, certificate=…, authority=…)"

    def save(self, path: Path) -> None:
        """Writes one file, mode 0600, whole or not at all. Raises ConfigError."""
        write_private(path, self.private_key + self.certificate + self.authority)

    @classmethod
    def load(cls, path: Path) -> Credentials:
        """Raises ConfigError; `check` tells whether the credentials can be used."""
        try:
            data = read_private(path)
        except FileNotFoundError:
            raise ConfigError(f"no credentials at {path}; {_AGAIN}") from None
        try:
            key = load_key(data)
            certificate, authority = x509.load_pem_x509_certificates(data)
        except ValueError as error:
            raise ConfigError(f"{path} does not hold a key and two certificates ({error}); delete it and {_AGAIN}") from error
        return cls.of(key, certificate, authority)

    @property
    def name(self) -> str:
        """The name that they were issued to."""
        return common_name(self._leaf().subject)

    @property
    def role(self) -> Role:
        """Raises ConfigError."""
        if (role := role_of(dns_names(self._leaf().extensions))) is None:
            raise ConfigError(f"this machine's certificate names no role in a cluster; {_AGAIN}")
        return role

    @property
    def expires(self) -> dt.datetime:
        return self._leaf().not_valid_after_utc

    @property
    def authority_fingerprint(self) -> str:
        return fingerprint(x509.load_pem_x509_certificate(self.authority))

    def check(self, now: dt.datetime) -> None:
        """Raises ConfigError if these credentials would be refused at `now` (with a time zone), and says what to do."""
        leaf, authority = self._leaf(), x509.load_pem_x509_certificate(self.authority)
        if not same_key(leaf, load_key(self.private_key)):
            raise ConfigError(f"this machine's key does not match its certificate; {_AGAIN}")
        try:
            leaf.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature):
            raise ConfigError(f"this machine's certificate was not issued by its cluster's authority; {_AGAIN}") from None
        for certificate, what in ((leaf, "certificate of this machine"), (authority, "cluster's authority")):
            if now >= certificate.not_valid_after_utc:
                raise ConfigError(f"the {what} expired on {certificate.not_valid_after_utc:%Y-%m-%d}; {_AGAIN}")
            if now < certificate.not_valid_before_utc:
                start = certificate.not_valid_before_utc
                raise ConfigError(f"the {what} is valid from {start:%Y-%m-%d %H:%M} UTC only; set this machine's clock or the head's")
        _ = self.role

    def server_context(self) -> ssl.SSLContext:
        """TLS 1.3; a client must show a certificate of this cluster, whatever its role."""
        context = self._context(ssl.PROTOCOL_TLS_SERVER)
        context.num_tickets = 0  # a resumed session would skip the check against the clock
        return context

    def client_context(self) -> ssl.SSLContext:
        """TLS 1.3; connect with `server_hostname=server_name(Role.…)`. Without it the address is compared, which never matches."""
        context = self._context(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = True
        context.hostname_checks_common_name = False
        return context

    def grpc_server_credentials(self) -> grpc.ServerCredentials:
        """Mutual TLS. gRPC's core accepts TLS 1.2 and 1.3, nothing older; Python cannot choose between them (grpc#37305)."""
        return grpc.ssl_server_credentials([(self.private_key, self.certificate)], self.authority, require_client_auth=True)

    def grpc_channel(self, address: str, options: Sequence[tuple[str, Any]] = (), role: Role = Role.HEAD) -> grpc.aio.Channel:
        """A channel that talks only to whoever has that role in this cluster."""
        credentials = grpc.ssl_channel_credentials(self.authority, self.private_key, self.certificate)
        return grpc.aio.secure_channel(address, credentials, [*options, ("grpc.ssl_target_name_override", server_name(role))])

    def _leaf(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.certificate)

    def _context(self, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_verify_locations(cadata=self.authority.decode("ascii"))
        password = secrets.token_bytes(16)  # ssl reads keys only from files: the file that it gets is useless to anyone who finds it
        sealed = load_key(self.private_key).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(password.hex().encode())
        )
        with tempfile.TemporaryDirectory(prefix="shoal-") as folder:
            path = Path(folder, "chain.pem")
            path.write_bytes(sealed + self.certificate)
            context.load_cert_chain(path, password=password.hex())
        return context
