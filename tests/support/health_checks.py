"""What hypothesis finds unhealthy of a test, all of it: for tests whose examples are large or slow by their nature."""

from __future__ import annotations

from hypothesis import HealthCheck

EVERY = [check for check in HealthCheck if isinstance(check, HealthCheck)]  # by hypothesis' annotation none of them is one
