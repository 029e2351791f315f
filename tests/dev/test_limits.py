from __future__ import annotations

import sys
from pathlib import Path

import pytest

from stream_api.dev.limits import MemoryLimit, memory_limit
from stream_api.dev.server import spawn

MIB = 1024 * 1024


def _hog(limit: MemoryLimit, size_bytes: int, log: Path) -> int:
    program = f"import sys; hog = b'x' * {size_bytes}; print(len(hog))"
    return spawn([*limit.prefix, sys.executable, "-S", "-c", program], cgroups=limit.cgroups, log=log).wait()


def test_a_process_over_the_limit_is_killed_and_one_below_is_not(tmp_path: Path) -> None:
    with memory_limit(64 * MIB) as limit:
        if limit.limit_bytes is None:
            pytest.skip(f"this machine allows no memory limit: {limit.description}")
        assert _hog(limit, 16 * MIB, tmp_path / "log") == 0
        assert (tmp_path / "log").read_text() == f"{16 * MIB}\n"
        assert _hog(limit, 128 * MIB, tmp_path / "log") == -9
        assert limit.cgroups == [] or all(path.exists() for path in limit.cgroups)
    assert not any(path.exists() for path in limit.cgroups)


def test_where_nothing_works_the_reasons_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream_api.dev.limits._ROOT", tmp_path)
    monkeypatch.setattr("shutil.which", lambda _: None)
    with memory_limit(64 * MIB) as limit:
        assert limit.limit_bytes is None
        assert "cgroup v1" in limit.description
        assert "cgroup v2" in limit.description
        assert "systemd" in limit.description
        assert _hog(limit, 1, tmp_path / "log") == 0
