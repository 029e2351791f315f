from __future__ import annotations

import pytest

from stream_api.config import MIB, Settings
from tests.support.settings import change

PART = 5 * MIB


def _small(settings: Settings) -> Settings:
    return change(settings, part_bytes=PART, upload_budget_bytes=3 * PART, s3_backoff_seconds=0.02)


@pytest.fixture
def small(settings: Settings) -> Settings:
    """Small parts and little patience, on SeaweedFS."""
    return _small(settings)


@pytest.fixture
def small_each_store(settings_each_store: Settings) -> Settings:
    """Small parts and little patience, on each store."""
    return _small(settings_each_store)
