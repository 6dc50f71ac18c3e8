"""The limits of keys, which the head counts for all workers."""

from __future__ import annotations

import asyncio
from itertools import count

from shoal.gateway.auth.key import KeyId, KeyLimits
from shoal.gateway.auth.limits import Allowance
from shoal.gateway.workers import messages
from shoal.gateway.workers.head_link import HeadLink

_SPENDING = 0.05  # seconds for which spent tokens are collected


class RemoteLimiter:
    """A gateway.auth.limits.Limiter."""

    def __init__(self, link: HeadLink) -> None:
        self._link = link
        self._numbers = count(1)
        self._inside: dict[KeyId, list[int]] = {}
        self._spent: dict[KeyId, int] = {}

    async def enter(self, key: KeyId, limits: KeyLimits) -> Allowance:
        number = -next(self._numbers)
        try:
            allowance = await self._link.ask(messages.Enter(number, key, limits), lambda entered: entered.allowance)
        except asyncio.CancelledError:
            self._link.say(messages.Leave(number))
            raise
        self._inside.setdefault(key, []).append(number)
        return allowance

    def leave(self, key: KeyId) -> None:
        numbers = self._inside[key]
        self._link.say(messages.Leave(numbers.pop()))
        if not numbers:
            del self._inside[key]

    def spend(self, key: KeyId, tokens: int) -> None:
        """Reports a little later, many tokens at once."""
        if not self._spent:
            asyncio.get_running_loop().call_later(_SPENDING, self._tell)
        self._spent[key] = self._spent.get(key, 0) + tokens

    def _tell(self) -> None:
        spent, self._spent = self._spent, {}
        for key, tokens in spent.items():
            self._link.say(messages.Spend(key, tokens))
