"""What to make of several errors at once: stages of a pipeline fail together, and one of them is the reason."""

from __future__ import annotations

import traceback
from collections.abc import Iterator

from stream_api.errors import Failure, RunLost
from stream_api.flow.channel import ChannelClosed, ChannelFailed


def first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error, of those that the tasks of a group raised, that the others follow from.

    A lost run stands above all, for then nothing may be written; a permanent failure above a bug, which may be an
    after-effect of it; a bug above a transient failure. That a channel failed is only ever a consequence.
    """
    return min(_leaves(group), key=_rank)


def end_frames(error: BaseException) -> None:
    """Let go of the local variables of all frames that an error has passed through.

    A failure is held for a while, by its answer, by a channel, by the errors that follow from it; its traceback would
    for so long, or until the next collection of cycles, hold whatever the stages were working on.
    """
    for each in _leaves(error) if isinstance(error, BaseExceptionGroup) else (error,):
        chained: BaseException | None = each
        while chained is not None:
            traceback.clear_frames(chained.__traceback__)
            chained = chained.__cause__ or chained.__context__


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _rank(error: BaseException) -> int:
    if isinstance(error, RunLost):
        return 0
    if isinstance(error, Failure):
        return 3 if error.transient else 1
    return 4 if isinstance(error, ChannelFailed | ChannelClosed) else 2
