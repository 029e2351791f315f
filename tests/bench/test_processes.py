from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from bench.processes import Sampler, cpu_of, cpu_of_one, cpu_of_threads, group_memory, memory_of
from stream_api.dev.server import spawn

MIB = 1024 * 1024

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")


def test_resident_memory_is_that_of_the_process() -> None:
    before = memory_of(os.getpid())
    assert before["rss"] == before["anon"] + before["file"] + before["shared"]
    held = bytearray(os.urandom(32 * MIB))
    assert memory_of(os.getpid())["anon"] >= before["anon"] + 24 * MIB
    assert len(held) == 32 * MIB


def test_of_a_process_that_is_gone_nothing_is_said(tmp_path: Path) -> None:
    process = spawn([sys.executable, "-S", "-c", ""], log=tmp_path / "log")
    process.wait()
    assert memory_of(process.pid) == {}
    assert cpu_of(process.pid).total == 0
    assert cpu_of_threads(process.pid) == {}


def test_a_sampler_knows_the_peak_of_a_time() -> None:
    with Sampler(os.getpid()) as sampler:
        while len(sampler.samples) < 2:
            time.sleep(0.01)
    first, *_, last = sampler.samples
    assert sampler.peak() == max(each.rss for each in sampler.samples)
    assert sampler.peak(since=last.at) == last.rss
    assert sampler.peak(until=first.at) == first.rss
    assert sampler.peak(since=last.at + 1) == 0
    assert sampler.heaviest_group() == {}


def test_the_processors_time_counts_children_and_threads(tmp_path: Path) -> None:
    program = "import time\nwhile time.process_time() < 0.2: pass\nprint('done', flush=True)\ntime.sleep(60)"
    before, alone = cpu_of(os.getpid()), cpu_of_one(os.getpid())
    log = tmp_path / "log"
    process = spawn([sys.executable, "-S", "-c", program], log=log)
    try:
        while not log.read_text():
            time.sleep(0.01)
        assert cpu_of(process.pid).total >= 0.15
        assert (cpu_of(os.getpid()) - before).total >= (cpu_of_one(os.getpid()) - alone).total + 0.15
        assert sum(cpu.total for cpu in cpu_of_threads(process.pid).values()) >= 0.15
    finally:
        process.kill()
        process.wait()


def test_both_versions_of_control_groups_are_read(tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.mkdir()
    (second / "memory.current").write_text("100\n")
    (second / "memory.stat").write_text("anon 60\nfile 30\nsock 10\nfile_mapped 5\n")
    assert group_memory(second) == {"total": 100, "anon": 60, "file": 30, "sock": 10}
    first = tmp_path / "first"
    first.mkdir()
    (first / "memory.usage_in_bytes").write_text("90\n")
    (first / "memory.stat").write_text("cache 1\nrss 2\ntotal_cache 30\ntotal_rss 60\n")
    (first / "memory.kmem.tcp.usage_in_bytes").write_text("10\n")
    assert group_memory(first) == {"total": 90, "anon": 60, "file": 30, "sock": 10}
    assert group_memory(None) == {}
