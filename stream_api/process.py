"""The process itself: its memory, its interpreter, and the signals that end it."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import sys
from typing import Final

import pyarrow as pa
import structlog

from stream_api.config import MIB, Settings
from stream_api.flow.stopping import Stopping
from stream_api.memory import fit, memory_need

log = structlog.get_logger()

#: How long a thread may keep the GIL while another wants it. With Python's own 5 ms the event loop lags by as much
#: (measured: 6 ms, against 1.5 to 1.8 ms; see FACTS).
_SWITCH_INTERVAL_SECONDS: Final = 0.0005
#: From glibc's malloc.h, with what they are set to. An arena for each thread is glibc's default. Its threshold rises to
#: the largest block that was ever freed, unless it is set: parts of uploads would then lie in the heap, among what
#: stays. Batches and what is made of them are below it: blocks of their own cost half as much again of the processor's
#: time (FACTS), and so would a heap that is trimmed after each of them.
_MALLOPT: Final = {
    -8: 2,  # M_ARENA_MAX
    -3: 4 * MIB,  # M_MMAP_THRESHOLD
    -1: 32 * MIB,  # M_TRIM_THRESHOLD
}
#: A shell's exit code for a process that a signal has ended is this and the signal's number.
_SIGNALLED: Final = 128


def prepare(settings: Settings, *, api: bool, worker: bool) -> Settings:
    """Set the interpreter and the allocators for the work; returns settings that fit into the memory there is.

    :raises MemoryLimitTooLow: no such settings are left.
    """
    fitted = fit(settings, api=api, worker=worker)
    log.info("memory.planned", total_bytes=memory_need(fitted, api=api, worker=worker).total)
    reduced = {f"STREAM_API_{name.upper()}": value for name, value in fitted if value != getattr(settings, name)}
    if reduced:
        log.warning(
            "memory.reduced",
            settings=reduced,
            detail="The limit of memory is too low for the defaults: fewer clients at once, and slower loads.",
        )
    sys.setswitchinterval(_SWITCH_INTERVAL_SECONDS)
    # Some 200,000 objects of imported libraries stay for ever: the collector need not look at them again and again.
    gc.collect()
    gc.freeze()
    _bound_allocators()
    return fitted


def _bound_allocators() -> None:
    """Keep freed memory from piling up in the allocators.

    Measured at the peak of a load: 171 to 178 MB; without the thresholds 175 to 231, with the defaults all over 260.
    """
    if sys.platform == "linux":
        # musl has no mallopt.
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            for option, value in _MALLOPT.items():
                mallopt(option, value)
    if "jemalloc" in pa.supported_memory_backends():
        pa.set_memory_pool(pa.jemalloc_memory_pool())


def stopping_on_signals() -> Stopping:
    """Begins at the first SIGINT or SIGTERM; at a SIGINT after it the process is gone.

    SIGTERM again changes nothing: docker compose sends it once for each container that is replaced beside this one. Who
    is in a hurry has SIGKILL.
    """
    stopping = Stopping()

    def told(number: signal.Signals) -> None:
        if not stopping.begun:
            stopping.begin()
            return
        if number == signal.SIGTERM:
            log.info("process.already_stopping", signal=number.name)
            return
        log.warning("process.stopped_now", signal=number.name)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        # Nothing may hold this up, neither a thread at work nor a server that does not answer. What is left of uploads
        # is for the janitor, and what is left of loads for whoever takes them.
        os._exit(_SIGNALLED + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told, number)
    return stopping
