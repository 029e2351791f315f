from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from stream_api.config import Settings
from tests.conftest import Bucket
from tests.faults.stand import Stand, open_stand


@pytest.fixture
async def stand(settings: Settings, bucket: Bucket, tmp_path: Path) -> AsyncIterator[Stand]:
    """A stand on the shared servers: what kills a server uses one of its own."""
    async with open_stand(settings, bucket, tmp_path) as opened:
        yield opened
