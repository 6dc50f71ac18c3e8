"""Wishes for nodes reach a real receiver, signed, once if all is well; and one that misbehaves costs nobody anything."""

from __future__ import annotations

import asyncio
import datetime
import json
import ssl
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from standardwebhooks.webhooks import Webhook, WebhookVerificationError
from structlog.testing import capture_logs

from shoal.errors import ConfigError
from shoal.serving import webhook as module
from shoal.serving.node_wish import NodeWish
from shoal.serving.webhook import NodeWebhook, WebhookPatience
from shoal.serving.webhook_secret import WebhookSecret
from tests.support.webhook_receiver import Delivery, Receiver, receiver

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
WISH = NodeWish("m", 2, 1, "the queue is long")
QUICK = WebhookPatience(attempt=60.0, deadline=6000.0, first=0.001, most=0.002)
SHORT = WebhookPatience(attempt=0.2, deadline=6000.0, first=0.001, most=0.002)


def run(play: Coroutine[Any, Any, None]) -> None:
    asyncio.run(play)


def sender(url: str, patience: WebhookPatience = QUICK) -> NodeWebhook:
    return NodeWebhook(url, WebhookSecret(SECRET, "a test"), patience, Random(0))


@asynccontextmanager
async def sending(to: Receiver, patience: WebhookPatience = QUICK) -> AsyncGenerator[NodeWebhook]:
    webhook = sender(to.url, patience)
    task = asyncio.create_task(webhook.run())
    try:
        yield webhook
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def settled(webhook: NodeWebhook) -> None:
    """Until nothing waits."""
    while webhook._waiting:  # noqa: ASYNC110 - it is over in milliseconds
        await asyncio.sleep(0.001)


def verified(delivery: Delivery) -> dict[str, Any]:
    return Webhook(SECRET).verify(delivery.body, delivery.headers)


def test_a_wish_arrives_signed_as_the_librarys_verifier_asks_for() -> None:
    async def play() -> None:
        async with receiver() as there, sending(there) as webhook:
            webhook.wish(WISH)
            (delivery,) = await there.count(1)
            told = verified(delivery)
            assert (told["type"], told["data"]) == ("shoal.nodes.wanted", {"model": "m", "nodes": 2, "replicas": 1, "reason": WISH.reason})
            assert datetime.datetime.fromisoformat(told["timestamp"]).tzinfo is not None
            assert delivery.headers["content-type"] == "application/json"
            with pytest.raises(WebhookVerificationError):
                verified(Delivery(delivery.headers, delivery.body.replace("2", "3", 1)))
            with pytest.raises(WebhookVerificationError):
                Webhook("whsec_" + "A" * 32).verify(delivery.body, delivery.headers)
            await settled(webhook)
            assert webhook.trouble == ""

    run(play())


@pytest.mark.parametrize("answer", ["500", "503\nretry-after: 0", "429", "close", "hang", "slow", "408"])
def test_what_fails_is_tried_again_under_the_same_id(answer: str) -> None:
    async def play() -> None:
        patience = SHORT if answer in ("hang", "slow") else QUICK
        async with receiver(answer, answer, "200") as there, sending(there, patience) as webhook:
            webhook.wish(WISH)
            deliveries = await there.count(3)
            await settled(webhook)
            assert len(deliveries) == 3 or patience is SHORT  # this process may have been slow
            assert len({delivery.headers["webhook-id"] for delivery in deliveries}) == 1
            assert len({delivery.body for delivery in deliveries}) == 1
            for delivery in deliveries:
                verified(delivery)

    with capture_logs() as lines:
        run(play())
    assert [line["event"] for line in lines] == ["the webhook for nodes fails", "the webhook for nodes works again"]
    assert answer != "slow" or lines[0]["reason"] == "no answer within 0.2 s"
    assert "hush" not in str(lines) and SECRET not in str(lines)


@pytest.mark.parametrize(
    ("answer", "why"), [("404", "status 404"), ("302\nlocation: http://localhost:1/", "redirects are not followed"), ("401", "401")]
)
def test_what_will_not_get_better_is_given_up(answer: str, why: str) -> None:
    async def play() -> None:
        async with receiver(answer, "200") as there, sending(there) as webhook:
            webhook.wish(WISH)
            await there.count(1)
            await settled(webhook)
            assert why in webhook.trouble
            webhook.wish(NodeWish("m", 3, 1, ""))
            await there.count(2)
            await settled(webhook)
            assert webhook.trouble == ""

    run(play())


def test_what_is_not_wished_any_more_is_no_trouble() -> None:
    async def play() -> None:
        async with receiver("404", "404") as there, sending(there) as webhook:
            webhook.wish(WISH)
            await there.count(1)
            await settled(webhook)
            assert webhook.trouble == "status 404"
            webhook.wish(NodeWish("m", 0, 0, ""))
            await there.count(2)
            await settled(webhook)
            assert webhook.trouble == ""

    run(play())


def test_a_redirect_is_not_followed() -> None:
    async def play() -> None:
        async with receiver() as elsewhere, receiver(f"307\nlocation: {elsewhere.url}") as there, sending(there) as webhook:
            webhook.wish(WISH)
            await there.count(1)
            await settled(webhook)
            assert elsewhere.deliveries == []

    run(play())


def test_a_wish_is_given_up_at_its_deadline() -> None:
    async def play() -> None:
        patience = WebhookPatience(attempt=60.0, deadline=0.05, first=0.02, most=0.02)
        async with receiver("500") as there, sending(there, patience) as webhook:
            webhook.wish(WISH)
            await settled(webhook)
            assert 1 <= len(there.deliveries) <= 6

    with capture_logs() as lines:
        run(play())
    assert lines[-1]["event"] == "a wish for nodes is given up"
    assert lines[-1]["reason"] == "status 500"


def test_a_newer_wish_replaces_the_older() -> None:
    async def play() -> None:
        patience = WebhookPatience(attempt=60.0, first=0.001, most=0.002)
        async with receiver("500", "200") as there:
            webhook = sender(there.url, patience)
            for nodes in (1, 2, 3):
                webhook.wish(NodeWish("m", nodes, 1, ""))
            webhook.wish(NodeWish("other", 1, 1, ""))
            task = asyncio.create_task(webhook.run())
            await settled(webhook)
            task.cancel()
            assert sorted({(verified(d)["data"]["model"], verified(d)["data"]["nodes"]) for d in there.deliveries}) == [
                ("m", 3),
                ("other", 1),
            ]

    run(play())


def test_a_newer_wish_ends_the_attempts_of_one_that_is_under_way() -> None:
    async def play() -> None:
        async with receiver("hang", "200") as there, sending(there, SHORT) as webhook:
            webhook.wish(NodeWish("m", 1, 1, ""))
            await there.count(1)
            webhook.wish(NodeWish("m", 2, 1, ""))
            await there.count(2)
            await settled(webhook)
            first, second = there.deliveries[:2]
            assert (verified(first)["data"]["nodes"], verified(second)["data"]["nodes"]) == (1, 2)
            assert first.headers["webhook-id"] != second.headers["webhook-id"]

    run(play())


def test_a_newer_wish_is_told_although_the_older_arrived_meanwhile() -> None:
    async def play() -> None:
        async with receiver("held", "200") as there, sending(there) as webhook:
            webhook.wish(NodeWish("m", 1, 1, ""))
            await there.count(1)
            webhook.wish(NodeWish("m", 2, 1, ""))
            there.release.set()
            await settled(webhook)
            assert [verified(delivery)["data"]["nodes"] for delivery in there.deliveries] == [1, 2]

    run(play())


def test_a_receiver_that_hangs_holds_up_nobody_and_no_other_wish() -> None:
    async def play() -> None:
        patience = WebhookPatience(attempt=0.2, deadline=6000.0, first=600.0, most=600.0)
        async with receiver("hang", "200") as there, sending(there, patience) as webhook:
            webhook.wish(NodeWish("a", 1, 1, ""))
            webhook.wish(NodeWish("b", 1, 1, ""))  # returns at once: it is no coroutine
            await there.count(2)
            assert verified(there.deliveries[1])["data"]["model"] == "b"
            assert "a" in webhook._waiting

    run(play())


def test_what_was_told_is_not_told_again_before_its_time() -> None:
    async def play() -> None:
        async with receiver() as there, sending(there) as webhook:
            for reason in ("one", "two", "three"):
                webhook.wish(NodeWish("m", 2, 1, reason))
                await settled(webhook)
            assert len(there.deliveries) == 1
        async with receiver() as there, sending(there, WebhookPatience(repeat=0.0)) as webhook:
            for _ in range(2):
                webhook.wish(WISH)
                await settled(webhook)
            assert len({delivery.headers["webhook-id"] for delivery in there.deliveries}) == 2

    run(play())


def test_a_wish_is_taken_back_once_and_only_if_there_was_one() -> None:
    async def play() -> None:
        none = NodeWish("m", 0, 0, "")
        async with receiver() as there, sending(there) as webhook:
            for wish in (none, WISH, none, none):
                webhook.wish(wish)
                await settled(webhook)
            assert [verified(delivery)["data"]["nodes"] for delivery in there.deliveries] == [2, 0]

    run(play())


def test_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 3)

    async def play() -> None:
        webhook = sender("http://localhost:9/")
        for number in range(5):
            webhook.wish(NodeWish(f"m{number}", 1, 1, ""))
        assert [*webhook._waiting] == ["m2", "m3", "m4"]

    with capture_logs() as lines:
        run(play())
    assert [line["model"] for line in lines] == ["m0", "m1"]


def test_a_receiver_that_is_not_there_is_told_in_words() -> None:
    async def play() -> None:
        async with receiver() as there:
            pass
        async with sending(there) as webhook:
            webhook.wish(WISH)
            while not webhook.trouble:  # noqa: ASYNC110 - it is over in milliseconds
                await asyncio.sleep(0.001)
            assert webhook.trouble.startswith("ConnectError")
            assert "hush" not in webhook.trouble

    run(play())


def test_a_certificate_that_nobody_vouches_for_gets_nothing(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    built = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
    certificate = built.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False).sign(key, hashes.SHA256())
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "pem").write_bytes(secret + certificate.public_bytes(serialization.Encoding.PEM))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "pem")

    async def play() -> None:
        async with receiver(tls=tls) as there, sending(there, WebhookPatience(attempt=5.0)) as webhook:
            webhook.wish(WISH)
            while not webhook.trouble and not there.deliveries:  # noqa: ASYNC110 - it is over in milliseconds
                await asyncio.sleep(0.001)
            assert "CERTIFICATE_VERIFY_FAILED" in webhook.trouble
            assert there.deliveries == []

    run(play())


def test_a_bad_url_is_refused_and_the_secret_is_not_shown() -> None:
    with pytest.raises(ConfigError, match="is no place for webhooks"):
        sender("ftp://somewhere/")
    shown = repr(sender("https://localhost/"))
    assert SECRET not in shown and SECRET.removeprefix("whsec_") not in shown


def test_the_body_is_what_is_signed_to_the_letter() -> None:
    async def play() -> None:
        async with receiver() as there, sending(there) as webhook:
            webhook.wish(NodeWish("modèle “x”", 1, 1, "zażółć\n☃"))
            (delivery,) = await there.count(1)
            assert verified(delivery)["data"]["reason"] == "zażółć\n☃"
            assert json.loads(delivery.body)["data"]["model"] == "modèle “x”"

    run(play())
