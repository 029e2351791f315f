"""Asks a service the same question again and again: `python -m bench.prober --url URL --period S --watch FILE`.

A process of its own, without an event loop: what keeps the bench busy does not make its answers late. Latencies count
from the moment at which a question was due, so one slow answer counts for all that it kept from being asked.
Written to FILE at SIGTERM; a question that failed counts as 60 s.
"""

from __future__ import annotations

import argparse
import http.client
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from yarl import URL

from bench.ticker import Ticks

#: What a question counts for that was answered by anything but 200, or not at all.
FAILED_SECONDS: Final = 60.0
_TIMEOUT_SECONDS: Final = 30


def probe(url: URL, period_seconds: float, ended: Callable[[], bool]) -> Ticks:
    """Ask until it is ended; moments are those at which a question was due."""
    ticks = Ticks()
    connection: http.client.HTTPConnection | None = None
    due = time.monotonic()
    while not ended():
        time.sleep(max(0.0, due - time.monotonic()))
        if connection is None:
            connection = http.client.HTTPConnection(str(url.host), url.port, timeout=_TIMEOUT_SECONDS)
        try:
            connection.request("GET", url.path_qs)
            answer = connection.getresponse()
            answer.read()
            took = time.monotonic() - due if answer.status == http.HTTPStatus.OK else FAILED_SECONDS
        except (OSError, http.client.HTTPException):
            took = FAILED_SECONDS
            connection.close()
            connection = None
        ticks.add(due, took)
        due += period_seconds
    if connection is not None:
        connection.close()
    return ticks


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.prober")
    parser.add_argument("--url", type=URL, required=True)
    parser.add_argument("--period", type=float, default=0.01, metavar="SECONDS")
    parser.add_argument("--watch", type=Path, required=True, metavar="FILE")
    options = parser.parse_args()
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda got, _frame: signals.append(got))
    print("ready", flush=True)
    probe(options.url, options.period, lambda: bool(signals)).write(options.watch)


if __name__ == "__main__":
    main()
