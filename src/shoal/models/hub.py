"""The hub: its description of a repository, the locations of files, and the meaning of its errors."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from shoal.environment import hub_endpoint
from shoal.errors import FetchError, Unreachable, UserError
from shoal.models.failures import disk_or_network
from shoal.models.repository import Repository, RepositoryFile

_PATIENCE = 10.0  # seconds to wait for an answer


@dataclass(frozen=True)
class Location:
    """Where the content of a file is. headers: to send along; a token goes only to the hub's own hosts."""

    url: str
    headers: dict[str, str]
    size: int | None
    sha256: str | None


def ask(name: str, revision: str | None) -> Repository:
    """A repository at a revision, by default `main`. Raises FetchError, Unreachable if the hub does not answer, UserError."""
    with translated(name):
        info: Any = _api().model_info(name, revision=revision, files_metadata=True, timeout=_PATIENCE)
        if not info.sha:
            raise FetchError(f"{name}: the hub gives no commit")
        siblings: list[Any] = info.siblings or []
        return Repository(name, info.sha, tuple(_file(sibling) for sibling in siblings))


def locate(name: str, commit: str, path: str) -> Location:
    """Raises the same errors as `ask`."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # pyright: ignore[reportUnknownVariableType]

    with translated(name):
        url = hf_hub_url(name, path, revision=commit, endpoint=hub_endpoint())
        found: Any = _api().get_hf_file_metadata(url=url, timeout=_PATIENCE)
        own = _host(found.location) == _host(url)
        headers = {key: value for key, value in build_hf_headers().items() if own or key.lower() != "authorization"}
        sha256 = found.etag if found.etag is not None and len(found.etag) == 64 else None
        return Location(found.location, headers, found.size, sha256)


def find(words: str, limit: int, properties: list[str]) -> bytes:
    """Repositories of models whose names contain the words, most downloaded first: JSON. Raises the same errors as `ask`."""
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # pyright: ignore[reportUnknownVariableType]

    with translated("", "a search of the hub"):
        asked: dict[str, Any] = {"search": words, "sort": "downloads", "limit": limit, "expand": properties}
        answer: Any = get_session().get(f"{endpoint()}/api/models", params=asked, headers=build_hf_headers(), timeout=_PATIENCE)
        hf_raise_for_status(answer)
        return answer.content


def first_header(name: str, commit: str, path: str) -> dict[str, str]:
    """The tensor types in a safetensors file, from its header; only the header is fetched. Raises the same errors as `ask`."""
    from huggingface_hub.errors import SafetensorsParsingError

    with translated(name):
        try:
            read: Any = _api().parse_safetensors_file_metadata(name, path, revision=commit)
        except SafetensorsParsingError as error:
            raise FetchError(f"{name}: {path} is not a safetensors file ({error})") from None
        return {tensor: str(info.dtype) for tensor, info in read.tensors.items()}


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub_endpoint())


def endpoint() -> str:
    from huggingface_hub import constants

    return (hub_endpoint() or constants.ENDPOINT).rstrip("/")


def _host(url: str) -> str:
    return url.split("/", 3)[2]


def _file(sibling: Any) -> RepositoryFile:
    if sibling.lfs is not None:
        return RepositoryFile(sibling.rfilename, sibling.lfs.size, sibling.lfs.sha256)
    return RepositoryFile(sibling.rfilename, sibling.size or 0, "", sibling.blob_id or "")


@contextlib.contextmanager
def translated(name: str, what: str = "") -> Generator[None]:
    """Converts the client's errors to shoal's. name: the repository. what: what was requested, if not the repository."""
    what = what or f"hf:{name}"
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except HFValidationError as error:
        raise UserError(f"{what}: the hub does not accept this name: {error}") from None
    except GatedRepoError:
        raise FetchError(f"{what} is gated: {_with_token(f'accept its terms at {endpoint()}/{name}')}") from None
    except RepositoryNotFoundError:
        raise FetchError(f"{what}: the hub has no such model; check the name. If it is private: {_with_token('')}") from None
    except RevisionNotFoundError:
        raise FetchError(f"{what}: the hub has no such revision") from None
    except OfflineModeIsEnabled:
        raise Unreachable(f"{what} is not here, and HF_HUB_OFFLINE keeps the hub from being asked") from None
    except HfHubHTTPError as error:
        raise _refused(what, error) from error
    except ImportError as error:  # a package that the client needs for this proxy, as for SOCKS
        raise FetchError(f"{what} could not be fetched: {error} Or unset the variable that names the proxy") from error
    except (OSError, *_transport_errors()) as error:
        raise disk_or_network(f"{what}", error) from error


def _refused(what: str, error: Any) -> FetchError:
    status = error.response.status_code
    if status == 401:
        return FetchError(f"{what}: the hub does not accept the token; log in again with `hf auth login`, or set HF_TOKEN")
    if status == 403:
        return FetchError(f"{what}: the hub refuses access (403); {_with_token('')}")
    words = f"{what}: the hub answered {status}{f': {error.server_message}' if error.server_message else ''}"
    return Unreachable(f"{words}; try again later") if status >= 500 or status == 429 else FetchError(words)


def _with_token(first: str) -> str:
    """What to do to get access."""
    from huggingface_hub import get_token

    if get_token():
        return first or "the account of the token that was sent must have access"
    return f"{first}, then log in with `hf auth login`, or set HF_TOKEN" if first else "log in with `hf auth login`, or set HF_TOKEN"


def _transport_errors() -> tuple[type[Exception], ...]:
    """The errors that the hub's client passes through when the connection itself fails; they depend on its HTTP package."""
    from huggingface_hub import utils

    client = type(utils.get_session())
    package = importlib.import_module(client.__module__.partition(".")[0])
    return tuple(error for name in ("HTTPError", "RequestException") if (error := getattr(package, name, None)) is not None)
