"""The keys with which other servers are asked, from a file that its owner alone may read."""

from __future__ import annotations

from shoal.config import ApiSettings
from shoal.errors import ConfigError
from shoal.folders import user_path
from shoal.security.private_file import read_private
from shoal.urls import parse_upstream


def upstream_keys(settings: ApiSettings) -> dict[str, str]:
    """Keys by URL; the one for all other upstreams under ''. Raises ConfigError."""
    if not settings.upstream_key_file:
        return {}
    path = user_path(settings.upstream_key_file)
    try:
        text = read_private(path, "replace the keys in it").decode()
    except FileNotFoundError:
        raise ConfigError(f"--upstream-key-file {path}: there is no such file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--upstream-key-file {path}: it is not text") from None
    return parse_keys(text, settings.upstreams, str(path))


def parse_keys(text: str, urls: list[str], path: str) -> dict[str, str]:
    """As `upstream_keys`. Keys appear in no message. Raises ConfigError."""
    keys: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        where = f"--upstream-key-file {path}:{number}"
        if len(words) > 2 or (len(words) == 1 and "://" in words[0]):
            raise ConfigError(f"{where}: write a URL and its key, or a key alone for all other upstreams")
        url, key = ("", words[0]) if len(words) == 1 else (_known(words[0], urls, where), words[1])
        if not (key.isascii() and key.isprintable()):
            raise ConfigError(f"{where}: a key has printable ASCII characters alone")
        if url in keys:
            raise ConfigError(f"{where}: {url or 'the key for all others'} is there twice")
        keys[url] = key
    return keys


def _known(text: str, urls: list[str], where: str) -> str:
    try:
        url = parse_upstream(text)
    except ConfigError as error:
        raise ConfigError(f"{where}: {str(error).replace('--upstream ', '')}") from None
    if url not in urls:
        raise ConfigError(f"{where}: {url} is none of the upstreams: {', '.join(urls)}")
    return url
