"""Messages inside frames."""

from __future__ import annotations

import pytest

from shoal.errors import RemoteProtocolError
from shoal.wire import messages


def test_text_that_is_no_text_is_a_protocol_error():
    """A msgpack string of bad UTF-8."""
    meta = b"\x82\xa7message\xa1\xff\xa5stage\x01"
    with pytest.raises(RemoteProtocolError):
        messages.decode_error(meta)
