"""What a gateway has of the head's machine."""

from __future__ import annotations

from shoal.config import ApiSettings
from shoal.gateway.auth.keyring import KeyAdministration
from shoal.gateway.endpoints.responses.store import Responses
from shoal.gateway.workers import messages
from shoal.gateway.workers.head_link import HeadLink
from shoal.gateway.workers.remote_keys import RemoteKeyring
from shoal.gateway.workers.remote_responses import RemoteResponses


class RemoteHome:
    """api: where the head's own API is, for people."""

    def __init__(self, told: messages.AtHome, settings: ApiSettings, link: HeadLink) -> None:
        """settings: the head's."""
        self.api = told.api
        self.keyring = RemoteKeyring(told.keys, lambda uses: link.say(messages.Used(uses)), link.operating(KeyAdministration))
        self.responses = RemoteResponses(settings.responses > 0, link.operating(Responses))
