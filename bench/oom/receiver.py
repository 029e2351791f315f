"""A receiver of webhooks, in a container of its own: standard library only.

`POST /accept` is answered by 204; `POST /refuse/N` by 503 for the first N requests with one webhook-id, then by 204.
`GET /received` gives all requests so far as a JSON array, each with `path`, `status`, `headers` and `body`.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any, Final

_received: Final[list[dict[str, Any]]] = []
_tries: Final[Counter[str]] = Counter()
_lock: Final = Lock()


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", "0"))).decode()
        refusals = int(self.path.removeprefix("/refuse/")) if self.path.startswith("/refuse/") else 0
        with _lock:
            _tries[self.headers.get("webhook-id", "")] += 1
            refused = _tries[self.headers.get("webhook-id", "")] <= refusals
            status = HTTPStatus.SERVICE_UNAVAILABLE if refused else HTTPStatus.NO_CONTENT
            headers = {name.lower(): value for name, value in self.headers.items()}
            _received.append({"path": self.path, "status": int(status), "headers": headers, "body": body})
        self.send_response(status)
        self.end_headers()

    def do_GET(self) -> None:
        with _lock:
            body = json.dumps(_received).encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Says nothing: everything is at `/received`."""


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8080
    ThreadingHTTPServer(("0.0.0.0", port), _Handler).serve_forever()  # noqa: S104 - the network is the test's own
