"""A longer way to a server: `python -m bench.proxy --to HOST:PORT --listen PORT --delay-ms MS`.

It adds the delay to a round trip, half in each direction, to every connection; bandwidth stays what it is, up to
`_WINDOW_READS` for each delay. By threads and not by asyncio, whose timers are exact to a millisecond only: with these
the delay is exact to a tenth of one. A process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import threading
import time
from queue import Queue
from types import TracebackType
from typing import Final, Self

_READ_BYTES: Final = 64 * 1024
#: What may be under way in one direction of one connection: 16 MiB for 10 ms are 1.6 GB/s.
_WINDOW_READS: Final = 256


class DelayProxy:
    """Passes connections on to one server, later, while its body runs.

    :param host: of the server. :param port: of the server.
    :param delay_seconds: what a round trip takes more.
    :param listen: port of 127.0.0.1 to listen on; 0 for a free one.
    """

    def __init__(self, host: str, port: int, delay_seconds: float, *, listen: int = 0) -> None:
        self._upstream: Final = (host, port)
        self._one_way: Final = delay_seconds / 2
        self._listener: Final = socket.create_server(("127.0.0.1", listen))
        self.port: Final[int] = self._listener.getsockname()[1]
        self._accepting: Final = threading.Thread(target=self.serve, name="accept", daemon=True)

    def serve(self) -> None:
        """Accept connections until the listener is closed."""
        # What accept() and connect() raise then, or when the server is away.
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(self._upstream)
                except OSError:
                    client.close()
                    continue
                threading.Thread(target=self._join, args=(client, server), daemon=True).start()

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # close() alone would leave accept() waiting.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()

    def _join(self, client: socket.socket, server: socket.socket) -> None:
        with client, server:
            for each in (client, server):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pumps = [
                threading.Thread(target=self._pump, args=ends, daemon=True)
                for ends in ((client, server), (server, client))
            ]
            for pump in pumps:
                pump.start()
            for pump in pumps:
                pump.join()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        """Pass one direction on, until its end or until one side is gone."""
        under_way: Queue[tuple[float, bytes]] = Queue(_WINDOW_READS)
        receiving = threading.Thread(target=self._receive, args=(source, under_way), daemon=True)
        receiving.start()
        gone = False
        while True:
            due, data = under_way.get()
            if not data:
                break
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                # Of a side that is gone, what still comes from the other is thrown away.
                if not gone:
                    target.sendall(data)
            except OSError:
                gone = True
                with contextlib.suppress(OSError):
                    source.shutdown(socket.SHUT_RD)
        receiving.join()
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def _receive(self, source: socket.socket, under_way: Queue[tuple[float, bytes]]) -> None:
        data = b"-"
        while data:
            try:
                data = source.recv(_READ_BYTES)
            except OSError:
                data = b""
            under_way.put((time.monotonic() + self._one_way, data))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.proxy")
    parser.add_argument("--to", required=True, metavar="HOST:PORT")
    parser.add_argument("--listen", type=int, required=True, metavar="PORT")
    parser.add_argument("--delay-ms", type=float, required=True)
    options = parser.parse_args()
    host, _, port = options.to.rpartition(":")
    DelayProxy(host, int(port), options.delay_ms / 1000, listen=options.listen).serve()


if __name__ == "__main__":
    main()
