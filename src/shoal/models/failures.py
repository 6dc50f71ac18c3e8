"""Converts disk and network errors during a fetch to FetchErrors."""

from __future__ import annotations

import errno

from shoal.errors import FetchError, Unreachable

_UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT, errno.EEXIST, errno.EISDIR}


def disk_or_network(text: str, error: Exception) -> FetchError:
    """text: the model, as the user named it. An error without a file counts as a network error."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FetchError(f"the disk is full: no room for {text}; free some space or set SHOAL_CACHE to another disk")
    if isinstance(error, OSError) and error.errno in _UNWRITABLE and error.filename is not None:
        return FetchError(
            f"{text} cannot be kept: {error.filename}: {error.strerror}; set SHOAL_CACHE to a folder that this user may write to"
        )
    return Unreachable(f"{text} could not be fetched: {str(error) or type(error).__name__}; check the network and try again")
