"""One actor, watched: it is looked at without waiting, and its process is started again when that ends."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from ray.exceptions import ActorDiedError, RayActorError

from shoal.ray_cluster.api import come, ray
from shoal.ray_cluster.places import RayPlace
from shoal.retry import Backoff

_SETTLED = 60.0  # seconds after which a process that ends counts as having been healthy


class Keeper:
    def __init__(self, name: str, place: RayPlace, make: Callable[[], Any], tell: Callable[[str], None]) -> None:
        """make: an actor in that place."""
        self.name, self.place, self.actor = name, place, make()
        self.dead = ""
        """Why Ray has given the actor up; '' if it has not."""
        self._make, self._tell, self._rng = make, tell, Random()
        self._asked: dict[str, Any] = {}  # answers that have not come, by question
        self._backoff, self._started, self._again = Backoff(1.0, 30.0), 0.0, None
        self._away = False

    def ask(self, question: str) -> Any:
        """What the actor's method answers, if it has; None if not, as before Ray has placed the actor, while it makes it again, and when it
        has given it up."""
        if question not in self._asked:
            self._asked[question] = getattr(self.actor, question).remote()
        asked = self._asked[question]
        if not come(asked):
            return None
        del self._asked[question]
        try:
            answer = ray.get(asked)
        except ActorDiedError as error:
            self.dead = f"has no actor any more: {str(error).strip()}"
            return None
        except RayActorError:
            if not self._away:
                self._tell(f"{self.name}: Ray has lost its actor, and makes it again")
            self._away = True
            return None
        if self._away:
            self._tell(f"{self.name}: its actor is back")
        self._away = False
        return answer

    def tend(self, now: float) -> str:
        """How its process or its actor ended, once each time; it is started again after a while. '' while it runs."""
        ending = self.dead or self.ask("ending")
        if not ending:
            return ""
        if self._again is None:
            self._backoff.tries = 0 if now - self._started > _SETTLED else self._backoff.tries
            self._again = now + self._backoff.next(self._rng)
            return f"{self.name} {ending}"
        if now >= self._again:
            self._again, self._started = None, now
            if self.dead:
                self.actor, self.dead = self._make(), ""
                self._asked.clear()
            else:
                self.actor.start.remote()
        return ""

    def kill(self) -> None:
        """At once, and for good."""
        ray.kill(self.actor)
