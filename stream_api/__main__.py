"""`python -m stream_api` is `stream-api`."""

from __future__ import annotations

import sys

from stream_api.cli import main

if __name__ == "__main__":
    sys.exit(main())
