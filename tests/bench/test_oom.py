from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest
from standardwebhooks import Webhook

from bench.oom import receiver
from bench.oom.engine import Engine, OomTestFailed
from bench.oom.group import Group, Usage
from bench.oom.picture import draw
from bench.oom.stand import Receiver, request
from bench.oom.watch import Watch
from stream_api.dev.ports import find_port

MIB = 1024 * 1024
SECRET = "whsec_" + "QUJD" * 10
UPLOAD = "019ab200-0000-7000-8000-000000000000"


class Growing:
    """An engine whose container has a megabyte more each time it is asked, and dies in the end."""

    def __init__(self, *, until: int) -> None:
        self.asked = 0
        self._until = until

    def usage(self, container: str) -> Usage:
        self.asked += 1
        if self.asked > self._until:
            raise OomTestFailed(f"the container {container} does not run")
        return Usage(self.asked * MIB, self.asked * MIB, 2 * self.asked * MIB, self.asked * 500_000_000)


def _wait_for(engine: Growing, asked: int) -> None:
    while engine.asked < asked:
        time.sleep(0.01)


def test_peaks_are_those_of_their_stage_and_the_picture_shows_them(tmp_path: Path) -> None:
    engine = Growing(until=1000)
    with Watch(cast("Engine", engine), "c") as watch:
        watch.mark("upload")
        _wait_for(engine, 3)
        watch.mark("load")
        _wait_for(engine, 7)
    assert len(watch.samples) == engine.asked
    assert watch.peak_megabytes() == engine.asked
    assert watch.peak_megabytes("load") == engine.asked
    assert 3 <= watch.peak_megabytes("upload") <= 5
    assert watch.peak_rss_megabytes() == 2 * engine.asked
    # Half a second of a core every half a second.
    assert 0.5 < watch.samples[3].cores < 1.2
    with pytest.raises(ValueError, match="no stage is called retry"):
        watch.peak_megabytes("retry")
    picture = tmp_path / "new" / "picture.png"
    draw(watch, limit_bytes=512 * MIB, title="a test", file=picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_container_that_dies_fails_the_watch() -> None:
    engine = Growing(until=1)
    with pytest.raises(OomTestFailed, match="c does not run"), Watch(cast("Engine", engine), "c"):
        _wait_for(engine, 2)


@pytest.mark.parametrize("version", [1, 2])
def test_a_control_group_is_read_in_both_versions(tmp_path: Path, version: int) -> None:
    proc, root = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "7").mkdir(parents=True)
    (proc / "7" / "status").write_text("Name:\tpython\nVmRSS:\t    2048 kB\n")
    if version == 1:
        (proc / "7" / "cgroup").write_text("4:memory:/docker/c\n3:cpu,cpuacct:/docker/c\n0::/docker/c\n")
        memory, cpu = root / "memory" / "docker" / "c", root / "cpuacct" / "docker" / "c"
        files = {"memory.usage_in_bytes": "5000\n", "memory.stat": "cache 9\ntotal_inactive_file 1000\n"}
        used = {"cpuacct.usage": "7000\n"}
    else:
        (proc / "7" / "cgroup").write_text("0::/docker/c\n")
        memory = cpu = root / "docker" / "c"
        files = {"memory.current": "5000\n", "memory.stat": "anon 9\ninactive_file 1000\n"}
        used = {"cpu.stat": "usage_usec 7\nuser_usec 5\n"}
    memory.mkdir(parents=True)
    cpu.mkdir(parents=True, exist_ok=True)
    # 8 has just ended.
    for folder, texts in ((memory, {**files, "cgroup.procs": "7\n8\n"}), (cpu, used)):
        for name, text in texts.items():
            (folder / name).write_text(text)
    group = Group.of(7, root=root, proc=proc)
    assert group is not None
    assert group.usage(proc=proc) == Usage(5000, 4000, 2048 * 1024, 7000)
    assert Group.of(9, root=root, proc=proc) is None


@pytest.fixture
def address() -> Iterator[str]:
    port = find_port()
    process = subprocess.Popen([sys.executable, "-I", "-S", receiver.__file__, str(port)])
    address = f"127.0.0.1:{port}"
    try:
        while True:
            try:
                request("GET", f"http://{address}/received")
                break
            except OomTestFailed:
                assert process.poll() is None
                time.sleep(0.02)
        yield address
    finally:
        process.terminate()
        process.wait()


def _send(address: str, path: str, secret: str) -> str:
    body = json.dumps({"uploadId": UPLOAD, "status": "completed"})
    now = datetime.now(UTC)
    headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign("msg_1", now, body),
    }
    command = ["curl", "-sS", "--noproxy", "*", "-o", "/dev/null", "-w", "%{http_code}", "--data-binary", body]
    command += [word for name, value in headers.items() for word in ("-H", f"{name}: {value}")]
    return subprocess.run([*command, f"http://{address}{path}"], capture_output=True, text=True, check=True).stdout


def test_the_receiver_refuses_as_often_as_it_is_told(address: str) -> None:
    assert [_send(address, "/refuse/2", SECRET) for _ in range(3)] == ["503", "503", "204"]
    got = Receiver(address, SECRET).got(UPLOAD)
    assert [(each["status"], each["path"]) for each in got] == [
        (503, "/refuse/2"),
        (503, "/refuse/2"),
        (204, "/refuse/2"),
    ]
    assert Receiver(address, SECRET).got("another") == []


def test_a_wrong_signature_fails_the_test(address: str) -> None:
    assert _send(address, "/accept", "whsec_" + "REVG" * 10) == "204"
    with pytest.raises(OomTestFailed, match="wrong signature"):
        Receiver(address, SECRET).got(UPLOAD)
