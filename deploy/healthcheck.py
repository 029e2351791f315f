"""The container's health check: exit code 0 when `/healthz` answers 200. Standard library only, run with `-I -S`."""

from __future__ import annotations

import http.client
import os
import sys


def main() -> int:
    """Ask once."""
    port = int(os.environ.get("STREAM_API_PORT", "3002"))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=4)
    try:
        connection.request("GET", "/healthz")
        return int(connection.getresponse().status != http.HTTPStatus.OK)
    except (OSError, http.client.HTTPException):
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
