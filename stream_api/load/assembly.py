"""One load, put together as its plan wants it: how its lanes load segments, and what the pipeline is made of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from uuid import UUID

from stream_api.config import RejectLimit, Settings
from stream_api.datasets.catalogue import Table
from stream_api.datasets.plan import Plan
from stream_api.ledger.literals import TRUE
from stream_api.ledger.pool import LaneConnection, Pool
from stream_api.ledger.segments import SegmentFigures
from stream_api.ledger.staging import staging_name
from stream_api.load.claiming import Claims
from stream_api.load.feeder import Lane, Way
from stream_api.load.header import Limits
from stream_api.load.holding import held
from stream_api.load.judge import Judge
from stream_api.load.merging import FileOrder, Merging
from stream_api.load.moving import Mover
from stream_api.load.parser import Parser
from stream_api.load.pipeline import Pipeline, Sizes
from stream_api.load.reader import RunInThread, read_again
from stream_api.load.recorder import Recorder
from stream_api.load.sieve import Sieve
from stream_api.load.source import Source
from stream_api.load.staged import Staged
from stream_api.load.straight import Straight
from stream_api.load.target import check_shape, has_shape
from stream_api.load.turns import Turns
from stream_api.load.validator import Validator
from stream_api.storage.keys import new_rejects_key
from stream_api.storage.manifests import Manifest
from stream_api.storage.objects import ObjectStore


class Assembly:
    """What one attempt at a load is made of.

    :param store, pool: stay the caller's.
    :param table: that the plan was set against, as it was then.
    :param source: of the file.
    :param limits: of what is read.
    :param reject_limit: more rejections than this fail the load; `None` for any number.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        store: ObjectStore,
        pool: Pool,
        run_in_thread: RunInThread,
        manifest: Manifest,
        run: int,
        plan: Plan,
        table: Table,
        source: Source,
        limits: Limits,
        reject_limit: RejectLimit | None,
    ) -> None:
        self.plan = plan
        self.source = source
        self._upload_id = manifest.upload_id
        self._run = run
        self._store = store
        self._run_in_thread = run_in_thread
        self._sizes = Sizes.of(settings, manifest.segment_bytes)
        self._parser = Parser(plan.dialect, plan.fields, settings.max_value_bytes)
        self._make_cutter = partial(self._sizes.cutter, plan, limits)
        self._judge = Judge(pool)
        again = partial(
            read_again, open_range=source.open_again, make_cutter=self._make_cutter, run_in_thread=run_in_thread
        )
        self._sieve = Sieve(plan, read_again=again, parser=self._parser, judge=self._judge, run_in_thread=run_in_thread)
        self._table = table
        self.recorder = Recorder(
            self._upload_id,
            staging_name(self._upload_id) if plan.staged else plan.table,
            staged=plan.staged,
            limit=reject_limit,
            put=partial(_put_rejects, store, self._upload_id),
            # What goes into staging is checked by the move.
            as_meant=TRUE if plan.staged else has_shape(plan, table.shape),
        )
        # Of all lanes.
        self._turns, self._order = Turns(), FileOrder()

    def pipeline(
        self, connections: Sequence[LaneConnection], committed: Callable[[SegmentFigures], Awaitable[None]]
    ) -> Pipeline:
        """The pipeline, with a lane for each connection.

        :param committed: see `Lane`.
        """
        plan = self.plan
        in_table_of_ours = plan.staged or plan.conflict != "error"
        return Pipeline(
            sizes=self._sizes,
            make_cutter=self._make_cutter,
            parser=self._parser,
            validator=Validator(held(plan) if in_table_of_ours else plan, self._judge, self._run_in_thread),
            lanes=[Lane(connection, self._way(connection), committed) for connection in connections],
            run_in_thread=self._run_in_thread,
        )

    def mover(self) -> Mover:
        """What moves the rows of a staged load into the target."""
        return Mover(
            self._upload_id,
            self._run,
            self.plan,
            sieve=self._sieve,
            recorder=self.recorder,
            get=self._store.get,
            check=partial(check_shape, plan=self.plan, shape=self._table.shape),
        )

    def _way(self, connection: LaneConnection) -> Way:
        claims = Claims(connection, self._upload_id, self._run, self.recorder)
        if self.plan.staged:
            return Staged(claims, self.plan, staging_name(self._upload_id))
        if self.plan.conflict == "error":
            return Straight(claims, self.plan, sieve=self._sieve, turns=self._turns, may_defer=self._table.may_defer)
        return Merging(claims, self.plan, sieve=self._sieve, order=self._order)


async def _put_rejects(store: ObjectStore, upload_id: UUID, segment: int, packed: bytes) -> str:
    key = new_rejects_key(upload_id, segment)
    await store.put(key, packed)
    return key
