"""Many values of every type, put to a load and to `COPY`: `python -m tests.nasty.judge --values 100000 --seed 7`."""

from __future__ import annotations

import argparse
import functools
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final

import hypothesis

from stream_api.dev.postgres import Postgres
from tests.load.judging import LEAST, MOST, compare_type
from tests.load.other_value_cases import OTHER_CASES
from tests.load.value_cases import CASES

_EVERY: Final = [*CASES, *OTHER_CASES]


def _compare(dsn: str, examples: int, seed: int, number: int) -> tuple[int, int, str]:
    """Compare values of a type: how many, how many of them on the fast path, and what was different."""
    case = _EVERY[number]
    try:
        compared, binary = compare_type(dsn, case, examples=examples, seeded=hypothesis.seed(seed * 1000 + number))
    except Exception:  # noqa: BLE001 - all of them are told of at the end
        return 0, 0, traceback.format_exc()
    return compared, binary, ""


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--values", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    args = parser.parse_args()
    # The values that are always among them are not counted on.
    examples = -(-args.values // (len(_EVERY) * (LEAST + MOST) // 2))
    folder = Path(tempfile.mkdtemp(prefix="stream-api-judge-"))
    folder.chmod(0o755)
    server = Postgres(folder / "postgres", durable=False)
    began = time.monotonic()
    compared: Counter[str] = Counter()
    failed: dict[str, str] = {}
    try:
        server.start()
        for number in range(len(_EVERY)):
            server.execute(f"CREATE DATABASE judge_{number} TEMPLATE template0", database="postgres")
        dsns = [server.dsn_for(f"judge_{number}") for number in range(len(_EVERY))]
        with ProcessPoolExecutor(2) as processes:
            ask = functools.partial(_compare, examples=examples, seed=args.seed)
            jobs = {processes.submit(ask, dsn, number=number): number for number, dsn in enumerate(dsns)}
            for job, number in jobs.items():
                values, binary, what = job.result()
                compared["values"] += values
                compared["fast"] += binary
                if what:
                    failed[_EVERY[number].type] = what
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
    for name, what in failed.items():
        print(f"--- {name}\n{what}")
    print(
        f"{compared['values']} values of {len(_EVERY)} types in {time.monotonic() - began:.0f} s, seed {args.seed}: "
        f"{compared['fast']} on the fast path"
    )
    print(f"{len(failed)} types differ: {', '.join(failed)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(_main())
