from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from standardwebhooks.webhooks import Webhook
from structlog.testing import capture_logs

from shoal.errors import ConfigError
from shoal.serving.webhook_secret import VARIABLE, WebhookSecret, found_secret

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def signature(secret: WebhookSecret) -> str:
    return secret.signature("msg_1", NOW, "{}")


def written(path: Path, text: str, mode: int = 0o600) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_it_signs_as_the_specification_has_it() -> None:
    """Its own example: https://github.com/standard-webhooks/standard-webhooks, in the tests of its libraries."""
    body = '{"test": 2432232314}'
    moment = datetime.fromtimestamp(1614265330, UTC)
    signed = WebhookSecret(SECRET, "").signature("msg_p5jXN8AQM9LWM0D4loKWxJek", moment, body)
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_it_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Webhook(SECRET).sign("msg_1", NOW, "{}")
    assert signature(found_secret(written(tmp_path / "secret", f"{SECRET}\n"))) == right
    monkeypatch.setenv(VARIABLE, SECRET)
    assert signature(found_secret("")) == right
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(ConfigError, match=r"give --webhook-secret-file FILE, or set SHOAL_WEBHOOK_SECRET"):
        found_secret("")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("hunter2hunter2hunter2hunter2hunter2", "does not begin with whsec_"),
        ("", "does not begin with whsec_"),
        ("whsec_hunter2!hunter2!", "is not base64"),
        ("whsec_aHVudGVyMg==", "has 7 bytes, not 24 to 64"),
        ("whsec_", "has 0 bytes"),
        ("whsec_" + "hunter2h" * 12, "has 72 bytes"),
        ("x" * 2000, "is no line of text"),
        ("whsec_ü", "is no line of text"),
    ],
)
def test_a_bad_one_is_refused_and_not_repeated(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"secret.*{why}.*openssl rand") as raised:
        found_secret(written(tmp_path / "secret", text))
    assert "unter2" not in str(raised.value)
    assert str(tmp_path / "secret") in str(raised.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--webhook-secret-file .*secret: No such file"):
        found_secret(str(tmp_path / "secret"))
    with pytest.raises(ConfigError, match="Is a directory"):
        found_secret(str(tmp_path))


@pytest.mark.parametrize(("mode", "warned"), [(0o600, 0), (0o644, 1), (0o660, 1)])
def test_it_warns_of_a_file_that_others_can_read(tmp_path: Path, mode: int, warned: int) -> None:
    with capture_logs() as lines:
        found_secret(written(tmp_path / "secret", SECRET, mode))
    assert len(lines) == warned
    assert SECRET not in str(lines)
