"""The container's health check. Standard library only, run with `-I -S`.

`healthcheck.py live` (or nothing) asks `/healthz`: the process runs and its event loop turns. `healthcheck.py ready`
asks `/readyz`: PostgreSQL, Redis and S3 can be used too, and the process has not been told to stop. The exit code is 0
for 200; what was answered is printed, and `docker inspect` shows it.
"""

from __future__ import annotations

import http.client
import os
import sys
from collections.abc import Sequence
from typing import Final

PATHS: Final = {"live": "/healthz", "ready": "/readyz"}
#: `docker inspect` keeps 4 KiB.
_SHOWN_BYTES: Final = 2048


def main(arguments: Sequence[str]) -> int:
    """Ask once."""
    question = arguments[0] if arguments else "live"
    if question not in PATHS:
        print(f"healthcheck: live or ready, not {question}", file=sys.stderr)
        return 2
    port = int(os.environ.get("STREAM_API_PORT", "3002"))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=4)
    try:
        connection.request("GET", PATHS[question])
        answer = connection.getresponse()
        print(answer.status, answer.read(_SHOWN_BYTES).decode(errors="replace"))
        return int(answer.status != http.HTTPStatus.OK)
    except (OSError, http.client.HTTPException) as exc:
        print(repr(exc))
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
