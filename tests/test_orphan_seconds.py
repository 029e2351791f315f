from __future__ import annotations

import pytest
from pydantic import ValidationError

from stream_api.config import Settings


def test_what_counts_as_left_over_is_older_than_any_upload_can_stand_still() -> None:
    stall_seconds = Settings().longest_stall_seconds
    assert stall_seconds > Settings().admission_timeout_seconds + Settings().client_idle_timeout_seconds
    assert Settings(orphan_seconds=stall_seconds + 1).orphan_seconds == stall_seconds + 1
    with pytest.raises(ValidationError, match=r"STREAM_API_ORPHAN_SECONDS .* must be more than"):
        Settings(orphan_seconds=stall_seconds)
