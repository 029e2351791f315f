"""Pauses between attempts, spread so that those who were interrupted together do not come back together."""

from __future__ import annotations

import random


def full_jitter(attempt: int, *, base_seconds: float, cap_seconds: float) -> float:
    """Seconds to wait before another attempt: anything from nothing to `base × 2^(attempt - 1)`, at most `cap`.

    Source: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    # The exponent is bounded as well: 2.0 ** 1100 is an error.
    return random.uniform(0, min(cap_seconds, base_seconds * 2.0 ** min(attempt - 1, 32)))  # noqa: S311
