"""Why a dataset's rule refuses a value."""

from __future__ import annotations

from dataclasses import dataclass

from stream_api.load.columns.base import Bools


@dataclass(frozen=True, slots=True)
class Fault:
    """What a rejection says where a rule has been broken.

    :param code: of the rejection. :param reason: a sentence that names the rule.
    """

    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Found:
    """The rows of a batch in which a value breaks the same rule."""

    rows: Bools
    fault: Fault
