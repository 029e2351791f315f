"""Many values of every type, put to a load and to `COPY`: `python -m tests.nasty.judge --values 100000 --seed 7`."""

from __future__ import annotations

import argparse
import math
import random
import shutil
import sys
import tempfile
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final

import hypothesis

from stream_api.dev.postgres import Postgres
from tests.load.judging import LEAST, MOST, compare_type
from tests.load.other_value_cases import OTHER_CASES
from tests.load.value_cases import CASES

_PROCESSES: Final = 2
#: A type with a fast path gets so many times the values of another.
_FAST_WEIGHT: Final = 4
_EVERY: Final = [*CASES, *OTHER_CASES]


def _compare(dsn: str, examples: list[int], seed: int, numbers: range) -> list[tuple[str, int, int, str]]:
    """For each of these types: how many values, how many of them on the fast path, and what was different."""
    found: list[tuple[str, int, int, str]] = []
    for number in numbers:
        case = _EVERY[number]
        seeded = hypothesis.seed(seed * 1000 + number)
        try:
            found.append((case.type, *compare_type(dsn, case, examples=examples[number], seeded=seeded), ""))
        except Exception:  # noqa: BLE001 - all of them are told of at the end
            found.append((case.type, 0, 0, traceback.format_exc()))
    return found


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--values", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    args = parser.parse_args()
    # The values that are always among them are not counted on.
    weights = [_FAST_WEIGHT if case.binary else 1 for case in _EVERY]
    share = args.values / (sum(weights) * (LEAST + MOST) / 2)
    examples = [math.ceil(share * weight) for weight in weights]
    folder = Path(tempfile.mkdtemp(prefix="stream-api-judge-"))
    folder.chmod(0o755)
    server = Postgres(folder / "postgres", durable=False)
    try:
        server.start()
        return _judge(server, examples, args.seed)
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _judge(server: Postgres, examples: list[int], seed: int) -> int:
    began = time.monotonic()
    values = fast = 0
    differing: list[str] = []
    # A database for each process.
    for number in range(_PROCESSES):
        server.execute(f"CREATE DATABASE judge_{number} TEMPLATE template0", database="postgres")
    parts = [range(number, len(_EVERY), _PROCESSES) for number in range(_PROCESSES)]
    with ProcessPoolExecutor(_PROCESSES) as processes:
        jobs = [
            processes.submit(_compare, server.dsn_for(f"judge_{number}"), examples, seed, part)
            for number, part in enumerate(parts)
        ]
        for job in jobs:
            for name, compared, binary, what in job.result():
                values, fast = values + compared, fast + binary
                if what:
                    differing.append(name)
                    print(f"--- {name}\n{what}")
    print(
        f"{values} values of {len(_EVERY)} types in {time.monotonic() - began:.0f} s, seed {seed}: "
        f"{fast} took the fast path"
    )
    print(f"{len(differing)} types differ: {', '.join(differing)}", flush=True)
    return bool(differing)


if __name__ == "__main__":
    sys.exit(_main())
