"""What Kubernetes gives a pod for its API server: an address, a token, a namespace and an authority.

https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/
"""

from __future__ import annotations

import ssl
from pathlib import Path

from shoal.address import join_host_port
from shoal.errors import ConfigError
from shoal.settings import variable

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class ServiceAccount:
    def __init__(self, url: str, folder: Path = ACCOUNT) -> None:
        """url: of the API server. Nothing is read yet."""
        self.url, self._folder = url, folder

    @classmethod
    def of_pod(cls, setting: str, otherwise: str = "") -> ServiceAccount:
        """Of the pod that this process runs in. Raises ConfigError if it is in none.

        setting: what needs it; otherwise: what to do in its place, for people
        """
        host, port = variable("KUBERNETES_SERVICE_HOST"), variable("KUBERNETES_SERVICE_PORT") or ""
        if not host or not port.isdecimal():
            hint = f"; {otherwise}" if otherwise else ""
            raise ConfigError(f"{setting} works in a pod of Kubernetes alone: KUBERNETES_SERVICE_HOST is not set{hint}")
        return cls(f"https://{join_host_port(host, int(port))}")

    @property
    def namespace(self) -> str:
        """Raises ConfigError."""
        return self._read("namespace")

    @property
    def token(self) -> str:
        """Kubernetes renews it: it is read anew each time. Raises ConfigError."""
        return self._read("token")

    def context(self) -> ssl.SSLContext:
        """Raises ConfigError."""
        authority = self._folder / "ca.crt"
        try:
            return ssl.create_default_context(cafile=authority)
        except OSError as error:
            raise ConfigError(f"cannot read {authority}: {error.strerror or error}") from error

    def _read(self, name: str) -> str:
        """Raises ConfigError."""
        try:
            return (self._folder / name).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"cannot read {self._folder / name}, which a pod with a service account has (automountServiceAccountToken: true): {error}"
            ) from error
