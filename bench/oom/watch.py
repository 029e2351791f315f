"""Memory and CPU of a container over time."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from bench.oom.engine import Engine, OomTestFailed
from bench.oom.group import Usage

_INTERVAL_SECONDS: Final = 0.5
_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Sample:
    """What was used at one moment.

    :param seconds: since the watch began. :param cores: that were busy since the sample before.
    """

    seconds: float
    usage: Usage
    cores: float


class Watch:
    """Samples a container twice a second while the body of `with` runs.

    :param container: its id.
    """

    def __init__(self, engine: Engine, container: str) -> None:
        self._engine: Final = engine
        self._container: Final = container
        self._ended: Final = threading.Event()
        self._thread: Final = threading.Thread(target=self._run, name="watch")
        self._began: Final = time.monotonic()
        self.samples: Final[list[Sample]] = []
        self.marks: Final[list[tuple[float, str]]] = []
        self._failure: OomTestFailed | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if self._failure is not None and exc is None:
            raise self._failure

    def mark(self, label: str) -> None:
        """A stage begins now."""
        self.marks.append((time.monotonic() - self._began, label))

    def peak_megabytes(self, label: str | None = None) -> float:
        """The most that the container used, in one stage or all the time; in units of 2^20 bytes."""
        begin, end = self._bounds(label)
        return round(max(s.usage.group_bytes for s in self.samples if begin <= s.seconds <= end) / _MIB, 1)

    def peak_rss_megabytes(self) -> float:
        """The most that its processes had resident."""
        return round(max(sample.usage.rss_bytes for sample in self.samples) / _MIB, 1)

    def _bounds(self, label: str | None) -> tuple[float, float]:
        if label is None:
            return 0.0, float("inf")
        for (begin, name), (end, _) in zip(self.marks, [*self.marks[1:], (float("inf"), "")], strict=True):
            if name == label:
                # A stage that is shorter than the interval has the samples about it.
                return begin - _INTERVAL_SECONDS, end + _INTERVAL_SECONDS
        raise ValueError(f"no stage is called {label}")

    def _run(self) -> None:
        before: tuple[float, int] | None = None
        while not self._ended.is_set():
            asked = time.monotonic()
            try:
                usage = self._engine.usage(self._container)
            except OomTestFailed as exc:
                self._failure = exc
                return
            now = time.monotonic()
            cores = 0.0 if before is None else (usage.cpu_nanoseconds - before[1]) / 1e9 / (now - before[0])
            before = (now, usage.cpu_nanoseconds)
            self.samples.append(Sample(now - self._began, usage, round(cores, 2)))
            self._ended.wait(max(0.0, _INTERVAL_SECONDS - (time.monotonic() - asked)))
