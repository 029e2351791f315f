from __future__ import annotations

from pathlib import Path

import pytest

from stream_api.config import MIB, Settings
from stream_api.memory import MemoryLimitTooLow, cgroup_limit, check_memory, memory_need


def test_the_defaults_fit_into_512_mib() -> None:
    assert check_memory(Settings(memory_limit_bytes=512 * MIB), api=True, worker=True).total < 512 * MIB


def test_a_limit_that_is_too_low_names_the_settings() -> None:
    with pytest.raises(MemoryLimitTooLow, match=r"the limit is 256 MiB.*STREAM_API_UPLOAD_BUDGET_BYTES.*Lower one"):
        check_memory(Settings(memory_limit_bytes=256 * MIB), api=True, worker=True)


def test_a_role_needs_only_its_own() -> None:
    settings = Settings()
    both, api, worker = (
        memory_need(settings, api=api, worker=worker) for api, worker in ((True, True), (True, False), (False, True))
    )
    assert both.total == api.total + worker.total - both.base
    assert memory_need(Settings(load_concurrency=3), api=False, worker=True).loads == 3 * worker.loads


@pytest.fixture
def cgroups(tmp_path: Path) -> Path:
    (tmp_path / "self").write_text("7:pids:/a/b\n4:memory:/a/b\n0::/c\n")
    return tmp_path


def limit(cgroups: Path) -> int | None:
    return cgroup_limit(cgroups, cgroups / "self")


def test_version_1(cgroups: Path) -> None:
    group = cgroups / "memory" / "a" / "b"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert limit(cgroups) is None
    (group.parent / "memory.limit_in_bytes").write_text("536870912\n")
    assert limit(cgroups) == 512 * MIB
    (group / "memory.limit_in_bytes").write_text("1048576\n")
    assert limit(cgroups) == MIB


def test_version_2(cgroups: Path) -> None:
    group = cgroups / "c"
    group.mkdir()
    (group / "memory.max").write_text("max\n")
    assert limit(cgroups) is None
    (group / "memory.max").write_text("536870912\n")
    assert limit(cgroups) == 512 * MIB


def test_inside_a_container_the_mount_is_the_group(cgroups: Path) -> None:
    (cgroups / "memory.max").write_text("536870912\n")
    assert limit(cgroups) == 512 * MIB


def test_elsewhere_than_linux(tmp_path: Path) -> None:
    assert cgroup_limit(tmp_path, tmp_path / "self") is None
