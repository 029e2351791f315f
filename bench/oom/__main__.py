"""`make oom-test`: the spec's acceptance test, on a real Docker engine.

Builds the image, starts docker-compose.yml as it is with a receiver of webhooks beside it, and sends a file by the
spec's own curl command while the memory of the container is sampled. Then a load fails and is retried, and then ten
files are shared by four workers of which one is killed. What happens is told on standard error; the last line of
standard output is one JSON object; the picture shows memory over time. Megabytes are 2^20 bytes.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import secrets
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from bench.command import end_with_json
from bench.generate import positive
from bench.oom import stages
from bench.oom.engine import PROJECT, ROOT, Engine, OomTestFailed, Project, docker, oom_kills, peak_bytes
from bench.oom.picture import draw
from bench.oom.stand import Stand
from bench.oom.watch import Watch

#: The names of the last line, in its order; null where the test did not get that far.
KEYS: Final = (
    "passed", "rowsInFile", "bytes", "memoryLimitMegabytes", "groupPeakMegabytes", "peakMegabytes",
    "peakUploadMegabytes", "peakLoadMegabytes", "peakRssMegabytes", "uploadSeconds", "uploadMegabytesPerSecond",
    "loadSeconds", "rowsPerSecond", "rowsProcessed", "rowsInTable", "objectStored", "objectDeleted",
    "webhookVerified", "statusExpiresInSeconds", "failedWith", "failedAtRows", "retryRowsInTable", "webhookTries",
    "tenFilesSeconds", "tenFilesRowsInTable", "loadsByWorker", "workerKilled", "workerPeakMegabytes", "oomKills",
    "exitCode", "picture",
)  # fmt: skip
_MIB: Final = 1024 * 1024
#: What the container may use at most, of its 512 MB.
_PEAK_MEGABYTES: Final = 300
#: Fewer are loaded before anybody could drop the table.
_LEAST_ROWS: Final = 250_000


def run(rows: int, *, megabytes: int, picture: Path, keep: bool, result: dict[str, Any]) -> None:
    """Run the test.

    :param rows: of the large file.
    :param megabytes: the limit of memory for each container of the service.
    :param keep: leave the stack running at the end.
    :param result: gets the values of `KEYS` as they come to be known.
    :raises OomTestFailed: something is not as it must be.
    """
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    project = Project({"STREAM_API_WEBHOOK_SECRETS": secret, "MEMORY_LIMIT": f"{megabytes}M"})
    engine = Engine()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stream-api-oom-")))
        _say("building the image")
        project("build", "stream-api")
        # What a test before has left would be counted.
        project("down", "--volumes", "--timeout", "5")
        if not keep:
            stack.callback(project, "down", "--volumes", "--timeout", "30")
        _say(f"starting the stack, as the project {PROJECT}")
        try:
            project("up", "--detach", "--wait", "--no-build", "stream-api", "receiver")
        except OomTestFailed:
            with contextlib.suppress(OomTestFailed):
                _say(project("logs", "--no-color", "--tail", "10", "stream-api", "migrate", "bucket"))
            raise
        container = project.containers("stream-api")[0]
        inspected = engine.inspect(container)
        limit_bytes = inspected["HostConfig"]["Memory"]
        result["memoryLimitMegabytes"] = limit_bytes // _MIB
        stages.equal("the limit of memory", limit_bytes, megabytes * _MIB)
        _check_hardening(inspected)
        stand = Stand(project, engine, secret)
        _say(f"generating {rows:,} rows")
        file = stages.make(folder, "large.csv", rows)
        result["bytes"] = file.summary.size_bytes
        watch = Watch(engine, container)
        try:
            with watch:
                _say("upload and load")
                stages.upload_and_load(stand, watch, file, result)
                watch.mark("retry")
                _say("a load that fails, and its retry")
                retried = stages.fail_and_retry(stand, file, result)
                watch.mark("ten files")
                _say("ten files, three more workers, one of them killed")
                killed = stages.share_among_workers(stand, folder, max(rows // 20, 20_000), result)
                stages.check_tries(stand, retried, result)
            _check_unharmed(project, engine, killed, result)
            # Of the kernel itself, so between two samples too.
            peak = peak_bytes(container)
            result["groupPeakMegabytes"] = None if peak is None else round(peak / _MIB, 1)
            _stop(project, engine, container, result)
        except BaseException:
            with contextlib.suppress(OomTestFailed):
                _say(docker("logs", "--tail", "15", container))
            raise
        finally:
            _report_memory(watch, result)
            if watch.samples:
                size = f"{file.summary.size_bytes / _MIB:,.0f} MB, {rows:,} rows"
                title = f"{size}, in a container of {limit_bytes // _MIB} MB"
                draw(watch, limit_bytes=limit_bytes, title=title, file=picture)
                result["picture"] = str(picture.relative_to(ROOT) if picture.is_relative_to(ROOT) else picture)
        # Pages of libraries that another container has read first are in the RSS and not in the control group.
        most = max(result["peakMegabytes"], result["groupPeakMegabytes"] or 0, result["peakRssMegabytes"])
        if most > _PEAK_MEGABYTES:
            raise OomTestFailed(f"the container used {most} MB, more than {_PEAK_MEGABYTES}")


def _check_hardening(inspected: dict[str, Any]) -> None:
    """:raises OomTestFailed: the container may more than it has to."""
    host, config = inspected["HostConfig"], inspected["Config"]
    stages.equal("whether the root filesystem is read-only", host["ReadonlyRootfs"], True)
    stages.equal("the capabilities dropped", host["CapDrop"], ["ALL"])
    stages.equal("what is granted", [host["Privileged"], host["CapAdd"] or [], host["PidMode"]], [False, [], ""])
    stages.equal("whether privileges can grow", "no-new-privileges:true" in host["SecurityOpt"], True)
    stages.equal("the user", config["User"], "10001")
    stages.equal("what is mounted", inspected["Mounts"] or host.get("Tmpfs") or [], [])


def _check_unharmed(project: Project, engine: Engine, killed: str, result: dict[str, Any]) -> None:
    """Look at every container that has loaded: a restart begins its control group's counts anew, so none may have been.

    :param killed: the container that the test itself has killed.
    :raises OomTestFailed: one was restarted, killed for memory, or used too much of it.
    """
    peaks = []
    for service in ("stream-api", "worker"):
        for container in project.containers(service):
            inspected = engine.inspect(container)
            what = f"{service} ({container[:12]})"
            stages.equal(f"how often {what} was started again", inspected["RestartCount"], 0)
            stages.equal(f"whether {what} was killed for memory", inspected["State"]["OOMKilled"], False)
            _check_hardening(inspected)
            if container == killed:
                continue
            stages.equal(f"whether {what} runs", inspected["State"]["Running"], True)
            stages.equal(f"the number of processes in {what} that were killed for memory", oom_kills(container), 0)
            if service == "worker":
                peaks.append(peak_bytes(container) or 0)
    result["oomKills"] = 0
    result["workerPeakMegabytes"] = round(max(peaks) / _MIB, 1)
    if max(peaks) > _PEAK_MEGABYTES * _MIB:
        raise OomTestFailed(f"a worker used {result['workerPeakMegabytes']} MB, more than {_PEAK_MEGABYTES}")


def _stop(project: Project, engine: Engine, container: str, result: dict[str, Any]) -> None:
    """Stop the service as its operator would.

    :raises OomTestFailed: it was killed, or does not end well.
    """
    began = time.monotonic()
    project("stop", "stream-api")
    state = engine.state(container)
    result["exitCode"] = state["ExitCode"]
    stages.equal("whether the container was killed for memory", state["OOMKilled"], False)
    stages.equal(f"the exit code {time.monotonic() - began:.0f} s after SIGTERM", state["ExitCode"], 0)


def _report_memory(watch: Watch, result: dict[str, Any]) -> None:
    if not watch.samples:
        return
    result.update(peakMegabytes=watch.peak_megabytes(), peakRssMegabytes=watch.peak_rss_megabytes())
    labels = [label for _, label in watch.marks]
    for label, key in (("upload", "peakUploadMegabytes"), ("load", "peakLoadMegabytes")):
        if label in labels:
            result[key] = watch.peak_megabytes(label)


def _say(text: str) -> None:
    print(f"oom-test: {text}", file=sys.stderr, flush=True)


def main() -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.oom", description="The OOM test, on a Docker engine.")
    parser.add_argument("--rows", type=positive, default=5_000_000)
    parser.add_argument("--memory", type=positive, default=512, metavar="MEGABYTES", help="the limit (default: 512)")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "oom-test.png", metavar="FILE")
    parser.add_argument("--keep", action="store_true", help="leave the stack running at the end")
    options = parser.parse_args()
    if options.rows < _LEAST_ROWS:
        parser.error(f"at least {_LEAST_ROWS} rows: of fewer no load can fail half-way")
    result: dict[str, Any] = dict.fromkeys(KEYS)
    result["passed"] = False

    def work() -> None:
        picture = options.picture.resolve()
        run(options.rows, megabytes=options.memory, picture=picture, keep=options.keep, result=result)
        result["passed"] = True

    return end_with_json(result, work, failures=(OomTestFailed,), say=_say)


if __name__ == "__main__":
    sys.exit(main())
