from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_api.config import MIB, Settings
from stream_api.memory import MemoryLimitTooLow, cgroup_limit, fit, memory_need

ROLES = [(True, True), (True, False), (False, True)]
#: What `fit` may lower, and two of each that a user could set.
LOWERED = {
    "upload_budget_bytes": (16 * MIB, 64 * MIB),
    "max_connections": (20, 100),
    "webhook_concurrency": (1, 8),
    "worker_threads": (1, 2),
    "lanes": (2, 3),
    "batch_bytes": (MIB // 2, MIB),
}


def test_the_defaults_fit_into_512_mib() -> None:
    settings = Settings(memory_limit_bytes=512 * MIB)
    assert fit(settings, api=True, worker=True) is settings
    assert memory_need(settings, api=True, worker=True).total < 512 * MIB


def test_a_gib_changes_nothing() -> None:
    settings = Settings(memory_limit_bytes=1024 * MIB)
    assert fit(settings, api=True, worker=True) is settings


@pytest.mark.parametrize(("api", "worker"), ROLES)
def test_every_role_fits_into_256_mib(api: bool, worker: bool) -> None:
    fitted = fit(Settings(memory_limit_bytes=256 * MIB), api=api, worker=worker)
    assert memory_need(fitted, api=api, worker=worker).total <= 0.95 * 256 * MIB


def test_a_role_saves_nothing_that_it_does_not_use() -> None:
    settings = Settings(memory_limit_bytes=256 * MIB)
    api, worker = fit(settings, api=True, worker=False), fit(settings, api=False, worker=True)
    assert (api.lanes, api.worker_threads, api.batch_bytes) == (2, 2, settings.batch_bytes)
    assert (worker.upload_budget_bytes, worker.max_connections) == (settings.upload_budget_bytes, 120)


@given(
    limit=st.integers(min_value=64, max_value=1024),
    role=st.sampled_from(ROLES),
    own=st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in LOWERED.items()}),
)
def test_what_is_set_stays_and_the_rest_is_lowered_until_it_fits(
    limit: int, role: tuple[bool, bool], own: dict[str, int]
) -> None:
    settings = Settings.model_validate({**own, "memory_limit_bytes": limit * MIB})
    api, worker = role
    try:
        fitted = fit(settings, api=api, worker=worker)
    except MemoryLimitTooLow:
        # With as little as can be of the rest there was no room either.
        least = {"upload_budget_bytes": 8 * MIB, "max_connections": 8, "webhook_concurrency": 2} | {
            "worker_threads": 1, "lanes": 1, "batch_bytes": MIB // 4
        }  # fmt: skip
        need = memory_need(settings.model_copy(update={**least, **own}), api=api, worker=worker)
        assert need.total > 0.95 * limit * MIB
        return
    assert memory_need(fitted, api=api, worker=worker).total <= 0.95 * limit * MIB
    for name, value in fitted:
        if value != getattr(settings, name):
            assert name in LOWERED
            assert name not in own
            assert value < getattr(settings, name)
    # What is left is as valid as what anybody could set.
    Settings.model_validate({name: getattr(fitted, name) for name in LOWERED})


def test_the_budget_has_room_for_one_part_of_the_size_that_is_set() -> None:
    settings = Settings(memory_limit_bytes=256 * MIB, part_bytes=20 * MIB)
    assert fit(settings, api=True, worker=False).upload_budget_bytes >= 20 * MIB
    # The whole of it, as far down as it goes.
    assert (
        fit(settings.model_copy(update={"memory_limit_bytes": 160 * MIB}), api=True, worker=False).upload_budget_bytes
        == 20 * MIB
    )


def test_a_limit_that_is_too_low_names_the_settings() -> None:
    with pytest.raises(MemoryLimitTooLow, match=r"the limit is 128 MiB.*STREAM_API_UPLOAD_BUDGET_BYTES.*lower one"):
        fit(Settings(memory_limit_bytes=128 * MIB), api=True, worker=True)
    # Set by the user, so not to be lowered.
    with pytest.raises(MemoryLimitTooLow, match=r"loads .*STREAM_API_LANES"):
        fit(Settings(memory_limit_bytes=512 * MIB, load_concurrency=8), api=True, worker=True)


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
