"""The buffers that parts are filled into, used again as long as uploads are under way."""

from __future__ import annotations

import io
from typing import Final


class Buffers:
    """Buffers of one size. Fresh memory for each part would cost the kernel a fifth of an upload's time to clear.

    One is made only where none is left, of whatever size, so there are never more of them than there were parts at
    once: the budget bounds both. Who gives one back may still have somebody reading it: `BytesIO` then writes into a
    copy.
    """

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes: Final = size_bytes
        self._spare: Final[list[io.BytesIO]] = []

    def take(self, least_bytes: int) -> io.BytesIO:
        """A buffer to be filled from its beginning; what it holds means nothing.

        :param least_bytes: what it must hold. For less than a part, too, one that is left is taken before one is made,
            or that one would be memory for which nobody has room of the budget.
        """
        return self._spare.pop() if self._spare else zeros(least_bytes)

    def give_back(self, buffer: io.BytesIO) -> None:
        """Take a full one back, for somebody else; one of another size is let go."""
        if buffer.seek(0, io.SEEK_END) == self.size_bytes:
            buffer.seek(0)
            self._spare.append(buffer)

    def clear(self) -> None:
        """Let go of what nobody uses."""
        self._spare.clear()

    def __len__(self) -> int:
        return len(self._spare)


def zeros(size_bytes: int) -> io.BytesIO:
    """A buffer of zeros that holds so much without growing, which would move its content again and again.

    The bytes are those of calloc, whose pages the kernel gives out when they are written to: a client that sends little
    takes little. Nobody else holds them, so `BytesIO` writes into them in place.
    """
    return io.BytesIO(bytes(size_bytes))
