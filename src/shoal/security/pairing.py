"""Gives two machines that share only a code a common authority. Bytes in, bytes out.

    node                                              head
    HELLO      nameplate, X  ─────────────────────▶   desk.admit: a guess, counted
               ◀─────────────────────  Y, proof       CHALLENGE
    REQUEST    proof, sealed(signing request) ────▶   desk.settle: the code is used up
               ◀─────  sealed(certificate, authority) GRANT

X and Y are the elements of SPAKE2 over Ed25519 (RFC 9382's predecessor as in magic-wormhole). A machine in the middle learns
one bit per conversation: whether the one code that it tried is right. HKDF, salted with the hash of HELLO and Y, derives four
keys from the shared secret: a proof and a seal in each direction, each used once. A proof is HMAC-SHA256 over that hash; a seal
is ChaCha20-Poly1305 with the whole conversation so far as associated data. The private key never leaves the node. The secrets
of one conversation are useless in the next: both sides draw new ones.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import os
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from spake2 import SPAKE2_A, SPAKE2_B, SPAKEError  # pyright: ignore[reportMissingTypeStubs]
from spake2.ed25519_basic import NotOnCurve  # pyright: ignore[reportMissingTypeStubs]

from shoal.errors import ConfigError, LocalProtocolError, RemoteProtocolError
from shoal.security.authority import Authority
from shoal.security.certificates import ASKED_FOR, Role, asked_role, check_name, common_name, new_key, signing_request
from shoal.security.credentials import Credentials
from shoal.security.pairing_code import PairingCode
from shoal.security.pairing_desk import PairingDesk, Ticket
from shoal.security.pairing_messages import PairingKind, pack, unpack
from shoal.security.refusal import Refusal, refused

Entropy = Callable[[int], bytes]
_NODE, _HEAD = b"shoal pairing node", b"shoal pairing head"
_ELEMENT = 33  # bytes: the side, a point
_PROOF = 32  # bytes
_NONCE = bytes(12)  # each sealing key seals one message


class _Keys(NamedTuple):
    prove_node: bytes
    prove_head: bytes
    seal_node: bytes
    seal_head: bytes


def _keys(secret: bytes, transcript: bytes) -> _Keys:
    derived = HKDF(hashes.SHA256(), 4 * 32, salt=transcript, info=b"shoal pairing 1: prove node, prove head, seal node, seal head").derive(
        secret
    )
    return _Keys(*(derived[i : i + 32] for i in range(0, 128, 32)))


def _proof(key: bytes, transcript: bytes) -> bytes:
    return hmac.digest(key, transcript, "sha256")


def _finish(side: Any, element: bytes) -> bytes:
    """The shared secret. Raises RemoteProtocolError for an invalid element."""
    try:
        return bytes(side.finish(element))
    except (SPAKEError, NotOnCurve, ValueError) as error:
        raise RemoteProtocolError("a pairing message holds no valid element") from error


def _open_sealed(key: bytes, sealed: bytes, transcript: bytes) -> bytes:
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE, sealed, transcript)
    except InvalidTag:
        raise RemoteProtocolError("a sealed pairing message was altered in transit") from None


class NodeExchange:
    """The node's side: call `hello`, `request` and `credentials` once each, in this order."""

    def __init__(self, code: PairingCode, name: str, entropy: Entropy = os.urandom, role: Role = Role.NODE) -> None:
        """role: what this machine wants to be. Raises ConfigError if a certificate cannot contain the name."""
        self._name, self._role = check_name(name), role
        self._key = new_key()
        self._side: Any = SPAKE2_A(code.password, idA=_NODE, idB=_HEAD, entropy_f=entropy)
        self._hello = pack(PairingKind.HELLO, code.nameplate.encode("ascii") + bytes(self._side.start()))
        self._keys: _Keys | None = None
        self._transcript = b""

    def hello(self) -> bytes:
        return self._hello

    def request(self, challenge: bytes) -> bytes:
        """Raises PairingRefused (the head refused, or does not know the code), RemoteProtocolError."""
        if self._transcript:
            raise LocalProtocolError("a pairing conversation makes one request")
        payload = unpack(challenge, PairingKind.CHALLENGE)
        if len(payload) != _ELEMENT + _PROOF:
            raise RemoteProtocolError("the head's challenge has the wrong size")
        element, proof = payload[:_ELEMENT], payload[_ELEMENT:]
        bound = hashlib.sha256(self._hello + element).digest()
        keys = _keys(_finish(self._side, element), bound)
        if not hmac.compare_digest(proof, _proof(keys.prove_head, bound)):
            raise refused(Refusal.WRONG_CODE)
        asked = signing_request(self._key, self._name, self._role).public_bytes(serialization.Encoding.DER)
        frame = pack(PairingKind.REQUEST, _proof(keys.prove_node, bound) + ChaCha20Poly1305(keys.seal_node).encrypt(_NONCE, asked, bound))
        self._keys, self._transcript = keys, hashlib.sha256(bound + frame).digest()
        return frame

    def credentials(self, grant: bytes, now: dt.datetime) -> Credentials:
        """Raises PairingRefused, RemoteProtocolError, and ConfigError if the two machines' clocks differ by more than a day."""
        if self._keys is None:
            raise LocalProtocolError("a grant is read once, after the request")
        keys, self._keys = self._keys, None
        payload = _open_sealed(keys.seal_head, unpack(grant, PairingKind.GRANT), self._transcript)
        try:
            (size,) = struct.unpack_from("!H", payload)
            certificate = x509.load_der_x509_certificate(payload[2 : 2 + size])
            authority = x509.load_der_x509_certificate(payload[2 + size :])
        except (struct.error, ValueError) as error:
            raise RemoteProtocolError("the head's grant holds no certificates") from error
        credentials = Credentials.of(self._key, certificate, authority)
        credentials.check(now)
        if credentials.role is not self._role:
            what = f"the head granted a certificate that is not a {self._role.value}'s"
            raise RemoteProtocolError(f"{what}; install the same shoal on every machine")
        return credentials


class HeadExchange:
    """The head's side: call `challenge` and `grant` once each, in this order, and `close` in any case."""

    def __init__(
        self, desk: PairingDesk, authority: Authority, address: str = "", entropy: Entropy = os.urandom, heads: bool = False
    ) -> None:
        """address: the node's, to which its guesses are counted; '' if there is none. heads: whether a machine may become a head, too."""
        self._desk = desk
        self._address = address
        self._authority = authority
        self._entropy = entropy
        self._allowed = ASKED_FOR | {Role.HEAD} if heads else ASKED_FOR
        self._ticket: Ticket | None = None
        self._keys: _Keys | None = None
        self._transcript = b""
        self.name, self.role = "", Role.NODE
        self.certificate: x509.Certificate | None = None

    def challenge(self, hello: bytes, now: float) -> bytes:
        """`now` is the desk's clock, seconds. Raises PairingRefused, RemoteProtocolError."""
        if self._ticket is not None:
            raise LocalProtocolError("a pairing conversation makes one challenge")
        payload = unpack(hello, PairingKind.HELLO)
        if len(payload) != 1 + _ELEMENT:
            raise RemoteProtocolError("the node's hello has the wrong size")
        self._ticket = self._desk.admit(payload[:1].decode("latin-1"), now, self._address)
        side: Any = SPAKE2_B(self._ticket.code.password, idA=_NODE, idB=_HEAD, entropy_f=self._entropy)
        element = bytes(side.start())
        self._transcript = hashlib.sha256(hello + element).digest()
        self._keys = _keys(_finish(side, payload[1:]), self._transcript)
        return pack(PairingKind.CHALLENGE, element + _proof(self._keys.prove_head, self._transcript))

    def grant(self, request: bytes, now: float, today: dt.datetime) -> bytes:
        """`today` dates the certificate. Raises PairingRefused, RemoteProtocolError."""
        if self._keys is None or self._ticket is None:
            raise LocalProtocolError("a grant is made once, after the challenge")
        keys, self._keys = self._keys, None
        payload = unpack(request, PairingKind.REQUEST)
        if not hmac.compare_digest(payload[:_PROOF], _proof(keys.prove_node, self._transcript)):
            raise refused(Refusal.WRONG_CODE)
        asked, name, role = self._asked(_open_sealed(keys.seal_node, payload[_PROOF:], self._transcript))
        self._desk.settle(self._ticket, now)
        try:
            certificate = self._authority.issue(asked, role, name, now=today)
        except (ConfigError, ValueError) as error:
            raise refused(Refusal.BAD_REQUEST) from error
        self.name, self.role, self.certificate = name, role, certificate
        der = certificate.public_bytes(serialization.Encoding.DER)
        answer = struct.pack("!H", len(der)) + der + self._authority.certificate.public_bytes(serialization.Encoding.DER)
        bound = hashlib.sha256(self._transcript + request).digest()
        return pack(PairingKind.GRANT, ChaCha20Poly1305(keys.seal_head).encrypt(_NONCE, answer, bound))

    def close(self, now: float) -> None:
        """Call it when the conversation is over, successful or not."""
        if self._ticket is not None:
            self._desk.abandon(self._ticket, now)

    @property
    def challenged(self) -> bool:
        """Whether the head has answered and the node has not yet proved that it knows the code."""
        return self._keys is not None

    def _asked(self, der: bytes) -> tuple[x509.CertificateSigningRequest, str, Role]:
        try:
            asked = x509.load_der_x509_csr(der)
            name, role = check_name(common_name(asked.subject)), asked_role(asked, self._allowed)
            sound = asked.is_signature_valid and isinstance(asked.public_key(), ec.EllipticCurvePublicKey)
        except (ConfigError, ValueError) as error:
            raise refused(Refusal.BAD_REQUEST) from error
        if not sound:
            raise refused(Refusal.BAD_REQUEST)
        return asked, name, role
