"""An upload's header set against its table while the upload still comes: what cannot be loaded need not be stored."""

from __future__ import annotations

from typing import Final

import structlog

from stream_api.datasets.cache import TableCache
from stream_api.datasets.catalogue import Table
from stream_api.datasets.dataset import Dataset, Datasets, find_dataset
from stream_api.datasets.plan import make_plan
from stream_api.dialects.detection import Beginning
from stream_api.dialects.dialect import Dialect
from stream_api.errors import Failure
from stream_api.load.header import Limits, find_header
from stream_api.load.reader import RunInThread
from stream_api.options import Options

log = structlog.stdlib.get_logger(__name__)

#: What the catalogue itself says against an upload; its other failures are of those who cannot ask it.
_SAID_BY_CATALOGUE: Final = frozenset({"table_missing", "table_denied"})


class Precheck:
    """Judges beginnings of files.

    :param run_in_thread: a pool of one thread: names that are like others are looked for, which in a wide table takes
        a while.
    """

    def __init__(self, tables: TableCache, datasets: Datasets, limits: Limits, run_in_thread: RunInThread) -> None:
        self._tables: Final = tables
        self._datasets: Final = datasets
        self._limits: Final = limits
        self._run_in_thread: Final = run_in_thread

    async def __call__(self, beginning: Beginning, *, dialect: Dialect, dataset: str, options: Options) -> None:
        """Refuse an upload of which it is certain that its load would fail.

        What cannot be known in time, since the catalogue is away or the header goes on beyond the beginning, is left to
        the load, which fails with the same code. A table that is known from before is good for letting pass; nobody is
        refused without a fresh look.

        :raises Failure: as `find_header` and `make_plan`; `table_missing`, `table_denied`.
        """
        target = find_dataset(self._datasets, dataset)
        names = await self._run_in_thread(self._names, beginning, dialect, target.has_header(options))
        if names is None:
            return
        known = self._tables.copy(target.table)
        if known is not None and await self._run_in_thread(_fits, known, target, names, options, dialect) is None:
            return
        try:
            table = await self._tables.fresh(target.table)
        except Failure as failure:
            if failure.code in _SAID_BY_CATALOGUE:
                raise
            log.info("precheck.left_to_the_load", dataset=dataset, code=failure.code)
            return
        misfit = None
        if table is not None:
            misfit = await self._run_in_thread(_fits, table, target, names, options, dialect)
        if misfit is not None:
            raise misfit

    def _names(self, beginning: Beginning, dialect: Dialect, named: bool) -> list[str] | None:  # noqa: FBT001
        found = find_header(beginning.data, dialect, final=beginning.whole, limits=self._limits, named=named)
        return None if found is None else found[0]


def _fits(table: Table, dataset: Dataset, names: list[str], options: Options, dialect: Dialect) -> Failure | None:
    """Why a file with these names cannot be loaded into the table; `None` when it can."""
    try:
        make_plan(table, dataset, names, options=options, dialect=dialect)
    except Failure as failure:
        return failure
    return None
