"""The cluster's own certificate authority. It is stored at the head; anyone who has its key can admit anyone."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from shoal.errors import ConfigError
from shoal.security.certificates import Role, authority_certificate, fingerprint, key_pem, leaf_certificate, load_key, new_key, same_key
from shoal.security.credentials import Credentials
from shoal.security.private_file import make_private_folder, read_private, write_private

FILE = "authority.pem"
_LIFE = dt.timedelta(days=3652)


class Authority:
    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self.certificate = certificate

    def __repr__(self) -> str:
        return f"Authority({self.fingerprint})"

    @classmethod
    def create(cls, now: dt.datetime) -> Authority:
        """A new authority, in memory; valid for 10 years from `now` (with a time zone)."""
        key = new_key()
        return cls(key, authority_certificate(key, now, _LIFE))

    @classmethod
    def open(cls, folder: Path, now: dt.datetime | None = None) -> Authority:
        """The authority kept in `folder`, created there on first use. `now` defaults to the clock's. Raises ConfigError."""
        now = now or dt.datetime.now(dt.UTC)
        make_private_folder(folder)
        path = folder / FILE
        try:
            return cls._load(path, now)
        except FileNotFoundError:
            fresh = cls.create(now)
        certificate = fresh.certificate.public_bytes(serialization.Encoding.PEM)
        try:
            write_private(path, key_pem(fresh._key) + certificate, fresh=True)
        except FileExistsError:  # another head was faster
            return cls._load(path, now)
        return fresh

    @classmethod
    def of(cls, pem: bytes) -> Authority:
        """From what `pem` gives. Raises ValueError."""
        return cls(load_key(pem), x509.load_pem_x509_certificate(pem))

    @property
    def pem(self) -> bytes:
        """The key, not encrypted, and the certificate: for a head that is to lead when this one is lost."""
        return key_pem(self._key) + self.certificate.public_bytes(serialization.Encoding.PEM)

    @classmethod
    def _load(cls, path: Path, now: dt.datetime) -> Authority:
        remedy = f"restore it from a backup, or move {path} away: the head then makes a new authority and every node must pair again"
        data = read_private(path)
        try:
            key = load_key(data)
            certificate = x509.load_pem_x509_certificate(data)
            constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
            certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension) as error:
            raise ConfigError(f"{path} does not hold the cluster's authority ({error}); {remedy}") from error
        if not constraints.ca or not same_key(certificate, key):
            raise ConfigError(f"{path}: the key and the certificate of the cluster's authority do not match; {remedy}")
        if now >= certificate.not_valid_after_utc:
            raise ConfigError(f"{path}: the cluster's authority expired on {certificate.not_valid_after_utc:%Y-%m-%d}; {remedy}")
        if now < certificate.not_valid_before_utc:
            raise ConfigError(
                f"{path}: the cluster's authority is from {certificate.not_valid_before_utc:%Y-%m-%d}; set this machine's clock"
            )
        return cls(key, certificate)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.certificate)

    def issue(
        self,
        asker: x509.CertificateSigningRequest | ec.EllipticCurvePublicKey,
        role: Role,
        name: str,
        days: float = 365,
        now: dt.datetime | None = None,
    ) -> x509.Certificate:
        """A certificate for the asker's key, valid for `days` from `now` (the clock's by default).

        Only the key of a signing request is used: the caller decides the role and name. Raises ConfigError for an impossible
        name, ValueError for a key that is not on P-256 or not the asker's.
        """
        now = now or dt.datetime.now(dt.UTC)
        if isinstance(asker, x509.CertificateSigningRequest):
            if not asker.is_signature_valid:
                raise ValueError("the request is not signed by the key that it is for")
            public = asker.public_key()
        else:
            public = asker
        if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
            raise ValueError("the key is not on the curve P-256")
        return leaf_certificate(self.certificate, self._key, public, role, name, now, dt.timedelta(days=days))

    def credentials(self, role: Role, name: str, days: float = 365, now: dt.datetime | None = None) -> Credentials:
        """A new key and its certificate: for the head itself, and for nodes that the head starts. Raises ConfigError."""
        key = new_key()
        return Credentials.of(key, self.issue(key.public_key(), role, name, days, now), self.certificate)
