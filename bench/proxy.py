"""A longer way to a server: `python -m bench.proxy --to HOST:PORT --listen PORT --delay-ms MS`.

It adds the delay to a round trip, half in each direction, to every connection; bandwidth stays what it is, up to
`_WINDOW_READS` for each delay. The loop's timers are exact to a millisecond, so measure what the delay has become.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import deque
from contextlib import suppress
from typing import Final

_READ_BYTES: Final = 64 * 1024
#: What may be under way in one direction of one connection: 16 MiB for 10 ms are 1.6 GB/s.
_WINDOW_READS: Final = 256


class DelayProxy:
    """Passes connections on to one server, later.

    :param host: of the server. :param port: of the server.
    :param delay_seconds: what a round trip takes more.
    """

    def __init__(self, host: str, port: int, delay_seconds: float) -> None:
        self._upstream: Final = (host, port)
        self._one_way: Final = delay_seconds / 2

    async def listen(self, port: int) -> asyncio.Server:
        """Listen on a port of 127.0.0.1, 0 for a free one."""
        return await asyncio.start_server(self._accept, "127.0.0.1", port, limit=_READ_BYTES)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        # One end that is gone, or never was there, ends the other.
        with suppress(OSError, asyncio.CancelledError):
            try:
                back, forth = await asyncio.open_connection(*self._upstream, limit=_READ_BYTES)
                writers.append(forth)
                pumps = [asyncio.create_task(self._pump(reader, forth)), asyncio.create_task(self._pump(back, writer))]
                try:
                    await asyncio.gather(*pumps)
                finally:
                    for pump in pumps:
                        pump.cancel()
            finally:
                for each in writers:
                    each.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        under_way: deque[tuple[float, bytes]] = deque()
        changed = asyncio.Condition()

        async def receive() -> None:
            data = b"-"
            while data:
                data = await reader.read(_READ_BYTES)
                async with changed:
                    await changed.wait_for(lambda: len(under_way) < _WINDOW_READS)
                    under_way.append((loop.time() + self._one_way, data))
                    changed.notify_all()

        async with asyncio.TaskGroup() as group:
            group.create_task(receive())
            while True:
                async with changed:
                    await changed.wait_for(lambda: bool(under_way))
                    due, data = under_way[0]
                await asyncio.sleep(due - loop.time())
                async with changed:
                    under_way.popleft()
                    changed.notify_all()
                if not data:
                    break
                writer.write(data)
                await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


async def _run(host: str, port: int, listen: int, delay_seconds: float) -> None:
    server = await DelayProxy(host, port, delay_seconds).listen(listen)
    async with server:
        await server.serve_forever()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.proxy")
    parser.add_argument("--to", required=True, metavar="HOST:PORT")
    parser.add_argument("--listen", type=int, required=True, metavar="PORT")
    parser.add_argument("--delay-ms", type=float, required=True)
    options = parser.parse_args()
    host, _, port = options.to.rpartition(":")
    asyncio.run(_run(host, int(port), options.listen, options.delay_ms / 1000))


if __name__ == "__main__":
    main()
