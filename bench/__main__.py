"""`make bench` and `make bench-full`: measure, and write what was found to `bench/results`."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import aiohttp
import asyncpg

from bench import load, memory, profile, report, scaling, together, upload
from bench.frame import BenchFailed, Chapter
from bench.machine import describe
from bench.pictures import draw
from bench.service import ServiceFailed
from bench.sizes import FULL, QUICK, SMOKE, Sizes
from bench.stand import Files, Stand, say, stand
from stream_api.dev.server import ServerFailed
from stream_api.dev.stack import STORES, StoreName

RESULTS: Final = Path(__file__).parent / "results"
#: Results of a run that only shows that everything works are no results.
_NOWHERE: Final = Path("build") / "bench"
_SIZES: Final = {sizes.name: sizes for sizes in (QUICK, FULL, SMOKE)}
#: The title of each part's chapter, and what fills it.
_PARTS: Final[dict[str, tuple[str, Callable[[Stand, Sizes, Chapter], Awaitable[None]]]]] = {
    "load": (load.TITLE, load.measure),
    "upload": (upload.TITLE, upload.measure),
    "memory": (memory.TITLE, memory.measure),
    "together": (together.TITLE, together.measure),
    "scaling": (scaling.TITLE, scaling.measure),
    "profile": (profile.TITLE, profile.measure),
}


def run(parts: list[str], sizes: Sizes, *, store: StoreName, results: Path, folder: Path | None) -> bool:
    """Measure, each part on servers of its own, and write after each; whether all of them worked.

    :param folder: for files and servers; several times the greatest file. That for temporary files when unset.
    """
    results.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="stream-api-bench-files-", dir=folder))
    place.chmod(0o755)
    failed = []
    try:
        files = Files(place)
        for name in parts:
            say(f"{name} ({sizes.name})")
            began = time.monotonic()
            try:
                with stand(files, store=store, parent=folder) as servers:
                    machine = asyncio.run(describe(servers, store))
                    chapter, whole = asyncio.run(_measure(name, servers, sizes))
                    _keep_pictures(chapter, results)
                    report.write(results, [chapter], machine, sizes.name)
            except (ServerFailed, OSError) as exc:
                say(f"{name}: {exc}")
                whole = False
            failed += [] if whole else [name]
            say(f"{name}: {time.monotonic() - began:.0f} s")
    finally:
        shutil.rmtree(place, ignore_errors=True)
    say(f"results: {results / 'latest.md'}" + (f"; FAILED: {', '.join(failed)}" if failed else ""))
    return not failed


async def _measure(name: str, servers: Stand, sizes: Sizes) -> tuple[Chapter, bool]:
    """The chapter, and whether all of it could be measured; what was measured before a failure stays."""
    title, measure = _PARTS[name]
    chapter = Chapter(name=name, title=title)
    try:
        await measure(servers, sizes, chapter)
    except (BenchFailed, ServiceFailed, OSError, aiohttp.ClientError, asyncpg.PostgresError) as exc:
        say(f"{name} failed: {exc!r}")
        chapter.skipped.append(f"the rest, which failed: {exc}")
        return chapter, False
    return chapter, True


def _keep_pictures(chapter: Chapter, results: Path) -> None:
    """Copy what the chapter has made, and draw the rest."""
    kept = []
    for made in map(Path, chapter.pictures):
        shutil.copyfile(made, results / made.name)
        kept.append(made.name)
    chapter.pictures = kept + draw(chapter, results)


def main() -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure the service beside its references.",
        epilog="On the servers that DATABASE_URL, REDIS_URL and STREAM_API_BUCKET name, else on embedded ones.",
    )
    parser.add_argument(
        "--size", choices=list(_SIZES), default=QUICK.name, help="quick takes ten minutes, full an hour or more"
    )
    parser.add_argument("--only", metavar="PART,…", default=",".join(_PARTS), help=f"some of {','.join(_PARTS)}")
    parser.add_argument("--times", type=int, metavar="N", help="measure everything so often")
    parser.add_argument("--store", choices=list(STORES), default="seaweedfs")
    parser.add_argument("--results", type=Path, metavar="DIR", help="where the results go (default: bench/results)")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where files and servers have their data meanwhile")
    options = parser.parse_args()
    parts = [part for part in options.only.split(",") if part]
    unknown = [part for part in parts if part not in _PARTS]
    if unknown:
        parser.error(f"there is no part {', '.join(unknown)}")
    sizes = _SIZES[options.size]
    if options.times is not None:
        sizes = dataclasses.replace(sizes, times=options.times, few_times=options.times)
    results = options.results or (_NOWHERE if sizes.name == SMOKE.name else RESULTS)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        worked = run(parts, sizes, store=options.store, results=results, folder=options.folder)
    except KeyboardInterrupt:
        return 130
    return 0 if worked else 1


if __name__ == "__main__":
    sys.exit(main())
