"""The secret that webhooks are signed with."""

from __future__ import annotations

import base64
import binascii
from datetime import datetime
from pathlib import Path

import structlog
from standardwebhooks.webhooks import Webhook

from shoal.errors import ConfigError
from shoal.folders import user_path
from shoal.settings import variable

log = structlog.get_logger()

VARIABLE = "SHOAL_WEBHOOK_SECRET"
_PREFIX = "whsec_"
_BYTES = range(24, 65)
"""That a secret may have, by the specification."""
_LARGEST = 1024
_HOW = 'make one with: echo "whsec_$(openssl rand -base64 32)"'


class WebhookSecret:
    """Signs as https://www.standardwebhooks.com says: HMAC-SHA256 over id, time and body. Does not show what it is."""

    def __init__(self, text: str, where: str) -> None:
        """where: it was found. Raises ConfigError, which does not repeat it."""
        if not text.startswith(_PREFIX):
            raise ConfigError(f"{where} holds no secret for webhooks: it does not begin with {_PREFIX}; {_HOW}")
        try:
            key = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
        except (binascii.Error, ValueError):
            raise ConfigError(f"{where} holds no secret for webhooks: what follows {_PREFIX} is not base64; {_HOW}") from None
        if len(key) not in _BYTES:
            raise ConfigError(f"the secret for webhooks in {where} has {len(key)} bytes, not {_BYTES[0]} to {_BYTES[-1]}; {_HOW}")
        self._webhook = Webhook(key)

    def signature(self, id: str, moment: datetime, body: str) -> str:
        """The value of the header webhook-signature. moment: in UTC."""
        return self._webhook.sign(id, moment, body)


def found_secret(file: str) -> WebhookSecret:
    """file: see ScalingSettings.webhook_secret_file. Raises ConfigError."""
    if not file:
        text = variable(VARIABLE)
        if not text:
            raise ConfigError(f"webhooks are signed: give --webhook-secret-file FILE, or set {VARIABLE}; {_HOW}")
        return WebhookSecret(text.strip(), VARIABLE)
    path = user_path(file)
    return WebhookSecret(_read(path), str(path))


def _read(path: Path) -> str:
    try:
        with path.open("rb") as opened:
            data = opened.read(_LARGEST + 1)
            mode = path.stat().st_mode
    except OSError as error:
        raise ConfigError(f"--webhook-secret-file {path}: {error.strerror or error}") from error
    if len(data) > _LARGEST or not data.isascii():
        raise ConfigError(f"{path} holds no secret for webhooks: it is no line of text; {_HOW}")
    if mode & 0o077:
        log.warning("other users can read the secret for webhooks; chmod 600 FILE", file=str(path))
    return data.decode().strip()
