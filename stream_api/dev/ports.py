"""Free TCP ports on the loopback interface."""

from __future__ import annotations

import random
import socket
from collections import deque
from collections.abc import Sequence
from typing import Final

#: Below Linux' ephemeral range (32768 and up), so that no outgoing connection takes one between choice and use.
#: Those 10,000 higher are SeaweedFS'.
LOWEST, HIGHEST = 10_000, 19_990
#: Given by this process, and perhaps not taken by anybody yet.
_given: Final[deque[int]] = deque(maxlen=100)


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of 127.0.0.1 now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def find_port(offsets: Sequence[int] = (0,)) -> int:
    """A port p such that every p + offset is free. Another process can take it before the caller does.

    :raises OSError: when a thousand tries found none.
    """
    for _ in range(1000):
        port = random.randint(LOWEST, HIGHEST)  # noqa: S311 - nothing secret about a port
        if port not in _given and all(is_free(port + offset) for offset in offsets):
            _given.append(port)
            return port
    msg = "no free TCP port was found on 127.0.0.1"
    raise OSError(msg)
