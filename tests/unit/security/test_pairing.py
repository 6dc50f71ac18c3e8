"""Codes, the desk that counts guesses, and the exchange, without a socket."""

from __future__ import annotations

import contextlib
import datetime as dt
import random
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import ConfigError, LocalProtocolError, PairingRefused, ProtocolError, RemoteProtocolError, VersionMismatch
from shoal.security.authority import Authority
from shoal.security.certificates import Role, asked_role, new_key, role_of, server_name
from shoal.security.pairing import HeadExchange, NodeExchange
from shoal.security.pairing_code import ALPHABET, PairingCode
from shoal.security.pairing_desk import FREE, GUESSES, LONGEST_WAIT, PairingDesk, Ticket, pause
from shoal.security.pairing_messages import HEADER_SIZE, LARGEST, PairingKind, pack, pack_refusal, payload_size, unpack
from shoal.security.refusal import Refusal, refused

NOW = dt.datetime(2026, 5, 1, tzinfo=dt.UTC)
AUTHORITY = Authority.create(NOW)

codes = st.text(ALPHABET, min_size=8, max_size=8).map(PairingCode)


# The code.


@given(codes, st.data())
def test_a_code_is_read_however_it_is_typed(code: PairingCode, data: st.DataObject):
    looks_like = {"0": "0Oo", "1": "1IiLl"}
    typed = ""
    for letter in str(code).replace("-", ""):
        typed += data.draw(st.sampled_from(looks_like.get(letter, letter + letter.lower())))
        typed += data.draw(st.sampled_from(["", "-", " ", "–", "\n"]))
    assert PairingCode(typed) == code and hash(PairingCode(typed)) == hash(code)


@given(codes)
def test_a_code_survives_being_written_and_is_hidden_in_logs(code: PairingCode):
    assert PairingCode(str(code)) == code
    assert len(str(code)) == 9 and str(code)[4] == "-"
    assert str(code)[1:4] not in repr(code)


@given(st.text(max_size=12))
def test_any_text_is_a_code_or_a_clear_error(text: str):
    try:
        code = PairingCode(text)
    except ConfigError as error:
        assert "7QFK-3M9X" in str(error)  # noqa: PT017
    else:
        assert set(str(code)) <= set(ALPHABET) | {"-"}


@pytest.mark.parametrize("text", ["", "7QFK-3M9", "7QFK-3M9XX", "7QFK-3M9U", "7QFK_3M9!", "ꟼQFK-3M9X", "７QFK-3M9X"])
def test_what_is_no_code(text: str):
    with pytest.raises(ConfigError, match="not a pairing code"):
        PairingCode(text)


# The desk.


def desk(seed: int = 0, **kwargs: object) -> PairingDesk:
    return PairingDesk(randbelow=random.Random(seed).randrange, **kwargs)  # pyright: ignore[reportArgumentType]


def refusal(act: Callable[[], object]) -> tuple[str, float]:
    with pytest.raises(PairingRefused) as caught:
        act()
    return caught.value.reason, caught.value.wait


def guess(d: PairingDesk, now: float) -> Ticket:
    """One wrong guess."""
    ticket = d.admit(d.code(now).nameplate, now)
    d.abandon(ticket, now)
    return ticket


def test_a_code_is_good_for_one_pairing():
    shown: list[PairingCode] = []
    d = desk(on_code=shown.append)
    code = d.code(0)
    ticket = d.admit(code.nameplate, 0)
    d.settle(ticket, 1)
    d.abandon(ticket, 1)
    assert shown == [code, d.code(1)] and d.code(1) != code
    assert refusal(lambda: d.admit(code.nameplate, 2)) == ("used", 0)
    assert refusal(lambda: d.settle(ticket, 2)) == ("used", 0)


def test_of_two_machines_with_one_code_the_faster_gets_in():
    d = desk()
    first, second = (d.admit(d.code(0).nameplate, 0) for _ in range(2))
    d.settle(second, 0)
    assert refusal(lambda: d.settle(first, 0)) == ("used", 0)


def test_a_code_expires_and_a_fresh_one_is_made():
    d = desk(lifetime=60)
    code = d.code(0)
    assert d.code(59.9) == code and d.expires(20) == 40
    ticket = d.admit(code.nameplate, 59)
    assert refusal(lambda: d.admit(code.nameplate, 60)) == ("expired", 0)
    assert refusal(lambda: d.settle(ticket, 60)) == ("expired", 0)
    assert d.code(60) != code and d.expires(60) == 60


def test_guesses_come_slower_and_slower():
    d, now, waits = desk(), 0.0, list[float]()
    for _ in range(12):
        guess(d, now)
        with contextlib.suppress(PairingRefused):
            guess(d, now)
            continue
        waits.append(refusal(lambda now=now: d.admit(d.code(now).nameplate, now))[1])
        now += waits[-1]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60]


def test_after_ten_wrong_guesses_the_code_is_another_and_the_pause_stays():
    d, now = desk(), 0.0
    code = d.code(now)
    for _ in range(GUESSES):
        assert d.code(now) == code
        guess(d, now)
        now += LONGEST_WAIT
    assert d.code(now) != code
    assert refusal(lambda: d.admit(code.nameplate, now)) == ("replaced", 0)
    guess(d, now)
    assert refusal(lambda: d.admit(d.code(now).nameplate, now)) == ("wait", LONGEST_WAIT)


def test_a_guess_counts_from_the_answer_on():
    """Ten conversations that stay open are ten guesses: the eleventh is refused, and one of the ten may still be right."""
    d, now = desk(), 0.0
    tickets = list[Ticket]()
    for _ in range(GUESSES):
        tickets.append(d.admit(d.code(now).nameplate, now))
        now += LONGEST_WAIT
    assert refusal(lambda: d.admit(d.code(now).nameplate, now))[0] == "wait"
    code = d.code(now)
    d.settle(tickets[-1], now)
    assert d.code(now) != code
    assert refusal(lambda: d.settle(tickets[0], now)) == ("used", 0)


def test_a_success_ends_the_pause():
    d, now = desk(), 0.0
    for _ in range(FREE):
        guess(d, now)
    now += 1
    d.settle(d.admit(d.code(now).nameplate, now), now)
    guess(d, now)


def test_a_code_that_is_not_this_desks_costs_no_guess():
    d = desk()
    other = next(letter for letter in ALPHABET if letter != d.code(0).nameplate)
    for _ in range(3 * GUESSES):
        assert refusal(lambda: d.admit(other, 0)) == ("unknown", 0)
    assert refusal(lambda: d.admit("\xff", 0)) == ("unknown", 0)
    d.admit(d.code(0).nameplate, 0)


@given(st.integers(0, 10**6))
def test_pauses_grow_and_end(unproved: int):
    assert pause(unproved) <= pause(unproved + 1) <= LONGEST_WAIT


@given(st.lists(st.sampled_from(["admit", "abandon", "settle", "wait", "replay"]), max_size=80), st.integers(0, 99))
def test_whatever_happens_no_code_takes_more_than_ten_guesses_or_two_pairings(steps: list[str], seed: int):
    d, now, draw = desk(seed, lifetime=500), 0.0, random.Random(seed)
    admitted: dict[PairingCode, int] = {}
    settled = list[PairingCode]()
    tickets = list[Ticket]()
    for step in steps:
        try:
            if step == "admit":
                tickets.append(d.admit(d.code(now).nameplate, now))
                admitted[tickets[-1].code] = admitted.get(tickets[-1].code, 0) + 1
            elif step == "wait":
                now += draw.choice([0.5, 30, 61])
            elif tickets:
                ticket = draw.choice(tickets)
                if step == "abandon":
                    d.abandon(ticket, now)
                else:
                    d.settle(ticket, now)
                    settled.append(ticket.code)
        except PairingRefused:
            pass
    assert max(admitted.values(), default=0) <= GUESSES
    assert len(settled) == len(set(settled))


# The exchange.


class Conversation:
    """A node and a head, message by message."""

    def __init__(self, code: PairingCode | None = None, at: PairingDesk | None = None, name: str = "anna") -> None:
        self.desk = at or desk()
        self.node = NodeExchange(code or self.desk.code(0), name)
        self.head = HeadExchange(self.desk, AUTHORITY)


def test_a_node_gets_its_certificate_and_keeps_its_key():
    c = Conversation()
    code = c.desk.code(0)
    hello = c.node.hello()
    challenge = c.head.challenge(hello, 0)
    request = c.node.request(challenge)
    grant = c.head.grant(request, 0, NOW)
    c.head.close(0)
    credentials = c.node.credentials(grant, NOW)
    credentials.check(NOW)
    assert (credentials.name, credentials.role) == ("anna", Role.NODE)
    assert credentials.authority_fingerprint == AUTHORITY.fingerprint
    assert c.head.name == "anna" and c.desk.code(0) != code
    crossed = b"".join([hello, challenge, request, grant])
    assert code.password[1:] not in crossed and b"anna" not in crossed and b"shoal authority" not in crossed
    assert max(map(len, [hello, challenge, request, grant])) < 2048


def wrong(code: PairingCode) -> PairingCode:
    """Another code under the same nameplate."""
    last = str(code)[-1]
    return PairingCode(str(code)[:-1] + ALPHABET[(ALPHABET.index(last) + 1) % len(ALPHABET)])


def test_a_wrong_code_is_found_by_the_node_and_counted_by_the_head():
    d = desk()
    c = Conversation(wrong(d.code(0)), d)
    challenge = c.head.challenge(c.node.hello(), 0)
    assert refusal(lambda: c.node.request(challenge)) == ("wrong_code", 0)
    assert c.head.challenged
    c.head.close(0)
    for _ in range(FREE - 1):
        guess(d, 0)
    assert refusal(lambda: d.admit(d.code(0).nameplate, 0)) == ("wait", 1)


def test_someone_in_between_who_does_not_know_the_code_learns_nothing():
    """It answers the node as a head of its own, and calls the head as a node of its own."""
    c = Conversation()
    code = c.desk.code(0)
    mallory = desk(0)  # the same nameplate
    mallory._code = wrong(code)
    false_head, false_node = HeadExchange(mallory, Authority.create(NOW)), NodeExchange(wrong(code), "anna")
    mallory._expires = 99
    assert refusal(lambda: c.node.request(false_head.challenge(c.node.hello(), 0))) == ("wrong_code", 0)
    assert refusal(lambda: false_node.request(c.head.challenge(false_node.hello(), 0))) == ("wrong_code", 0)
    c.head.close(0)
    assert c.desk.code(0) == code


def test_a_guess_at_the_proof_is_refused():
    c = Conversation()
    c.head.challenge(c.node.hello(), 0)
    assert refusal(lambda: c.head.grant(pack(PairingKind.REQUEST, bytes(300)), 0, NOW)) == ("wrong_code", 0)
    with pytest.raises(LocalProtocolError):
        c.head.grant(pack(PairingKind.REQUEST, bytes(300)), 0, NOW)


def test_a_recorded_conversation_opens_nothing():
    d = desk()
    recorded = Conversation(at=d)
    hello = recorded.node.hello()
    challenge = recorded.head.challenge(hello, 0)
    request = recorded.node.request(challenge)  # and the node goes away: the code is still good

    again = HeadExchange(d, AUTHORITY)
    again.challenge(hello, 0)
    assert refusal(lambda: again.grant(request, 0, NOW)) == ("wrong_code", 0)
    fresh = NodeExchange(d.code(0), "anna")
    assert refusal(lambda: fresh.request(challenge)) == ("wrong_code", 0)  # the head's side, replayed to a node

    recorded.head.grant(request, 0, NOW)
    assert refusal(lambda: HeadExchange(d, AUTHORITY).challenge(hello, 0)) == ("used", 0)


def test_a_message_sent_back_to_its_sender_is_refused():
    c = Conversation()
    challenge = c.head.challenge(c.node.hello(), 0)
    mirrored = pack(PairingKind.CHALLENGE, c.node.hello()[HEADER_SIZE + 1 :] + challenge[-32:])
    with pytest.raises(RemoteProtocolError):
        c.node.request(mirrored)


@settings(max_examples=15)
@given(st.integers(0, 3), st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_a_changed_byte_lets_nobody_in(which: int, where: float, flip: int):
    c = Conversation()

    def carry(number: int, frame: bytes) -> bytes:
        if number != which:
            return frame
        changed = bytearray(frame)
        changed[int(where * len(frame))] ^= flip
        return bytes(changed)

    def talk() -> None:
        challenge = c.head.challenge(carry(0, c.node.hello()), 0)
        request = c.node.request(carry(1, challenge))
        c.node.credentials(carry(3, c.head.grant(carry(2, request), 0, NOW)), NOW)

    with pytest.raises((PairingRefused, ProtocolError)):
        talk()
    assert (c.head.certificate is not None) == (which == 3)


@settings(max_examples=8)
@given(st.binary(max_size=300), st.sampled_from(PairingKind), st.booleans())
def test_garbage_is_refused_at_every_turn(data: bytes, kind: PairingKind, framed: bool):
    frame = pack(kind, data) if framed else data
    c, other = Conversation(), Conversation()
    with pytest.raises((PairingRefused, RemoteProtocolError)):
        c.head.challenge(frame, 0)
    with pytest.raises((PairingRefused, RemoteProtocolError)):
        c.node.request(frame)
    request = other.node.request(other.head.challenge(other.node.hello(), 0))
    with pytest.raises((PairingRefused, RemoteProtocolError)):
        other.head.grant(frame, 0, NOW)
    with pytest.raises((PairingRefused, RemoteProtocolError)):
        other.node.credentials(frame, NOW)
    assert len(request) < LARGEST


@pytest.mark.parametrize(
    "point", [bytes(32), b"\xff" * 32, b"\1" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"], ids=["0", "ff", "one", "order 2"]
)
def test_points_outside_the_group_are_refused(point: bytes):
    c = Conversation()
    with pytest.raises(RemoteProtocolError, match="element"):
        c.head.challenge(pack(PairingKind.HELLO, c.desk.code(0).nameplate.encode() + b"A" + point), 0)


def test_messages_out_of_turn_are_this_sides_own_mistake():
    c = Conversation()
    with pytest.raises(LocalProtocolError):
        c.head.grant(b"", 0, NOW)
    with pytest.raises(LocalProtocolError):
        c.node.credentials(b"", NOW)
    challenge = c.head.challenge(c.node.hello(), 0)
    with pytest.raises(LocalProtocolError):
        c.head.challenge(c.node.hello(), 0)
    c.node.request(challenge)
    with pytest.raises(LocalProtocolError):
        c.node.request(challenge)


def test_names_are_checked_on_both_sides():
    with pytest.raises(ConfigError, match="name"):
        NodeExchange(PairingCode("7QFK-3M9X"), "two\nlines")
    c = Conversation()
    c.node._name = "  spaced  "
    challenge = c.head.challenge(c.node.hello(), 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shoal.security.certificates.check_name", lambda name: name)
        request = c.node.request(challenge)
    code = c.desk.code(0)
    assert refusal(lambda: c.head.grant(request, 0, NOW)) == ("bad_request", 0)
    assert c.desk.code(0) == code  # not used up


def test_clocks_that_disagree_are_named():
    c = Conversation()
    grant = c.head.grant(c.node.request(c.head.challenge(c.node.hello(), 0)), 0, NOW)
    with pytest.raises(ConfigError, match="clock"):
        c.node.credentials(grant, NOW - dt.timedelta(days=3))


# Frames.


@pytest.mark.parametrize("reason", Refusal)
def test_a_refusal_says_the_same_at_the_node(reason: Refusal):
    error = refused(reason, 2.5 if reason == Refusal.WAIT else 0.0)
    with pytest.raises(PairingRefused) as caught:
        unpack(pack_refusal(error), PairingKind.CHALLENGE)
    assert str(caught.value) == str(error) and caught.value.reason == error.reason
    assert ("try again in 3 s" in str(error)) == (reason == Refusal.WAIT)


def test_frames_that_are_too_long_cut_or_of_another_version():
    header = pack(PairingKind.HELLO, b"abc")
    with pytest.raises(RemoteProtocolError, match="limit"):
        payload_size(header[:7] + (LARGEST + 1).to_bytes(2, "big"))
    with pytest.raises(LocalProtocolError):
        pack(PairingKind.HELLO, bytes(LARGEST + 1))
    with pytest.raises(VersionMismatch):
        payload_size(header[:5] + b"\x09" + header[6:9])
    for cut in (b"", header[:4], header[:-1], header + b"x"):
        with pytest.raises(RemoteProtocolError, match="cut short"):
            unpack(cut, PairingKind.HELLO)
    with pytest.raises(RemoteProtocolError, match="HELLO"):
        unpack(pack(PairingKind.REFUSED, b"\x01\x00\x00"), PairingKind.HELLO)  # only a head refuses
    with pytest.raises(RemoteProtocolError, match="reason"):
        unpack(pack(PairingKind.REFUSED, b"\xee\x00\x00"), PairingKind.GRANT)


def test_a_head_that_grants_anothers_key_is_not_believed(monkeypatch: pytest.MonkeyPatch):
    c = Conversation()
    issue = AUTHORITY.issue
    monkeypatch.setattr(AUTHORITY, "issue", lambda asked, role, name, now: issue(new_key().public_key(), role, name, now=now))
    request = c.node.request(c.head.challenge(c.node.hello(), 0))
    with pytest.raises(ConfigError, match="key"):
        c.node.credentials(c.head.grant(request, 0, NOW), NOW)


def paired_as(role: Role) -> tuple[Conversation, bytes]:
    """The conversation of a machine that wants that role, and the grant."""
    c = Conversation()
    c.node = NodeExchange(c.desk.code(0), "anna", role=role)
    return c, c.head.grant(c.node.request(c.head.challenge(c.node.hello(), 0)), 0, NOW)


def test_a_gateway_gets_a_gateways_certificate():
    c, grant = paired_as(Role.GATEWAY)
    assert c.node.credentials(grant, NOW).role is Role.GATEWAY
    assert c.head.role is Role.GATEWAY


def test_nobody_pairs_as_a_head():
    assert refusal(lambda: paired_as(Role.HEAD))[0] == "bad_request"


def test_a_standby_pairs_as_a_head_where_heads_are_admitted():
    c = Conversation()
    c.head = HeadExchange(c.desk, AUTHORITY, heads=True)
    c.node = NodeExchange(c.desk.code(0), "anna", role=Role.HEAD)
    grant = c.head.grant(c.node.request(c.head.challenge(c.node.hello(), 0)), 0, NOW)
    assert c.node.credentials(grant, NOW).role is Role.HEAD


def test_an_authority_goes_on_at_a_standby():
    copy = Authority.of(AUTHORITY.pem)
    assert copy.fingerprint == AUTHORITY.fingerprint
    copy.credentials(Role.NODE, "anna", now=NOW).check(NOW)


def test_a_request_that_names_no_role_is_a_nodes():
    key = new_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "old")])
    assert asked_role(x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())) is Role.NODE


def test_a_certificate_for_another_role_than_asked_is_not_taken():
    c, grant = paired_as(Role.GATEWAY)
    c.node._role = Role.NODE
    with pytest.raises(RemoteProtocolError, match="not a node's"):
        c.node.credentials(grant, NOW)


@given(st.lists(st.sampled_from([server_name(role) for role in Role] + ["elsewhere.shoal", ""])))
def test_a_certificate_has_the_one_role_that_it_names(names: list[str]):
    assert role_of(names) == (Role(names[0].partition(".")[0]) if len(names) == 1 and names[0].split(".")[0] in [*Role] else None)
