"""One load from its taking to its end: the fence, the plan, the pipeline, the completing transaction, the clean-up."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import NoReturn
from uuid import UUID

import asyncpg
import structlog

from stream_api.config import RejectLimit, Settings
from stream_api.datasets.catalogue import Table
from stream_api.datasets.dataset import Datasets, find_dataset
from stream_api.datasets.plan import Plan, check_plan, make_plan
from stream_api.dialects.dialect import Dialect
from stream_api.errors import Failure, RunLost
from stream_api.flow.causes import first_cause
from stream_api.flow.tasks import begun
from stream_api.ledger.errors import unexpected
from stream_api.ledger.pool import LaneConnection, Pool
from stream_api.ledger.rows import Intake, UploadRow
from stream_api.ledger.segments import SegmentFigures
from stream_api.ledger.slots import Slots
from stream_api.ledger.staging import give_up_staging, staging_name
from stream_api.ledger.uploads import Ended, Ledger, Taken
from stream_api.load.assembly import Assembly
from stream_api.load.connecting import connecting
from stream_api.load.header import Limits
from stream_api.load.looking import look_up
from stream_api.load.pipeline import Pipeline
from stream_api.load.reader import RunInThread, find_holes
from stream_api.load.reporting import Reporter
from stream_api.load.retrying import Attempts, FullDisks
from stream_api.load.source import Source
from stream_api.load.staged import prepare_staging
from stream_api.storage.cleanup import clean_up_ended
from stream_api.storage.manifests import Manifest, clear_pending, read_manifest
from stream_api.storage.objects import ObjectStore

log = structlog.get_logger()

#: What to do about failures that do not say it themselves.
_ADVICE = {
    "data_gone": "A retry cannot help: upload the file again.",
    "data_changed": "Somebody has written to the bucket. Upload the file again.",
}


class Loader:
    """Loads uploads, each as often as it is asked to and each segment once.

    :param store, pool, ledger: stay the caller's.
    :param datasets: those that there are.
    :param reporter: keeps the status records; its failures do not concern a load.
    :param run_in_thread: the process's pool of threads for parsing and encoding.
    :param announce: called with the row of an upload that has ended, perhaps more than once: tells who waits for it.
        Raises nothing, and takes little time.
    :param started: called with the pipeline of each load that begins, for statistics.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        store: ObjectStore,
        pool: Pool,
        ledger: Ledger,
        reporter: Reporter,
        datasets: Datasets,
        run_in_thread: RunInThread,
        announce: Callable[[UploadRow], Awaitable[None]],
        started: Callable[[UUID, Pipeline], None] = lambda _upload_id, _pipeline: None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._pool = pool
        self._ledger = ledger
        self._reporter = reporter
        self._datasets = datasets
        self._run_in_thread = run_in_thread
        self._announce = announce
        self._started = started
        self._slots = Slots(settings, pool)
        self._full_disks = FullDisks(settings.disk_full_seconds)

    async def load(self, upload_id: UUID) -> None:
        """Take the load, do what is left of it, and bring it to its end state; for an ended one, only clean up.

        Faults that pass are waited out here as long as something gets on, or for a few attempts.

        Returns when the load is completed, has failed and Postgres has recorded it, or belongs to somebody else.

        :raises Failure: a transient one: the load is to be tried again later. It uses up nothing.
        """
        with structlog.contextvars.bound_contextvars(upload_id=str(upload_id)):
            try:
                manifest = await read_manifest(self._store, upload_id)
            except Failure as failure:
                await self._interrupted(upload_id, None, failure)
            if manifest is None:
                # Cancelled or expired in the meantime: whatever 202 was answered for had a manifest.
                log.warning("load.manifest_missing")
                await clear_pending(self._store, upload_id)
                return
            row = await self._to_the_end(manifest)
            if row is not None:
                self._full_disks.forget(upload_id)
                try:
                    await self._settle(manifest, row)
                except Failure as failure:
                    log.warning("load.not_settled", state=row.state, code=failure.code, detail=failure.detail)
                    raise _for_later(failure) from failure

    async def _interrupted(self, upload_id: UUID, run: int | None, failure: Failure) -> NoReturn:
        """Leave the load for later.

        :raises Failure: always.
        """
        # That a dataset is busy is no fault, and said about once a second.
        (log.debug if failure.code == "dataset_busy" else log.warning)(
            "load.interrupted", code=failure.code, detail=failure.detail
        )
        await self._reporter.waits(upload_id, run, failure)
        raise _for_later(failure) from failure

    async def _to_the_end(self, manifest: Manifest) -> UploadRow | None:
        """The row in its end state; `None` when the run was lost."""
        upload_id = manifest.upload_id
        attempts = Attempts(self._settings.load_attempts)
        run: int | None = None
        #: Why nobody knows whether the last taking has succeeded.
        uncertain: Failure | None = None
        while True:
            step = "slot"
            try:
                async with self._slots.hold(upload_id, manifest.dataset, only_run=run) as slot:
                    step = "take"
                    # Another worker that has taken the load in the meantime keeps it.
                    taken = await self._ledger.take(intake_of(manifest, self._datasets), only_run=run)
                    step = "load"
                    if isinstance(taken, Ended):
                        if run is not None and taken.row.run != run:
                            log.info("load.run_lost")  # whoever has ended it also does what follows
                            return None
                        return taken.row
                    run, uncertain, attempts.segments = taken.run, None, len(taken.segments)
                    with structlog.contextvars.bound_contextvars(run=run):
                        outcome = await self._attempt(manifest.amended(taken.amendments), taken, attempts, slot)
                if not isinstance(outcome, Failure):
                    return outcome
                failure = outcome
            except RunLost:
                if uncertain is not None:
                    await self._interrupted(upload_id, run, uncertain)
                log.info("load.run_lost")
                return None
            except Failure as exc:
                if step == "load":
                    raise
                if exc.code == "dataset_busy":
                    await self._interrupted(upload_id, run, exc)
                failure, uncertain = exc, exc if step == "take" else uncertain
            pause_seconds = attempts.failed()
            if pause_seconds is None:
                if failure.code in {"ledger_incomplete", "staging_lost"} and run is not None:
                    # Nobody's outage, and nothing that time mends: somebody has to look.
                    return await self._fail(upload_id, run, failure)
                await self._interrupted(upload_id, run, failure)
            log.info(
                "load.attempt_failed", run=run, code=failure.code, detail=failure.detail, segments=attempts.segments
            )
            await asyncio.gather(self._reporter.waits(upload_id, run, failure), asyncio.sleep(pause_seconds))

    async def _attempt(
        self, manifest: Manifest, taken: Taken, attempts: Attempts, slot: LaneConnection | None
    ) -> UploadRow | Failure | None:
        """The row in its end state; `None` when the run was lost; the failure when it may pass."""
        log.info("load.taken", segments_committed=len(taken.segments), size_bytes=manifest.size_bytes)
        upload_id, run = manifest.upload_id, taken.run
        try:
            stored = Plan.decode(taken.plan) if taken.plan is not None and taken.segments else None
            source = self._source(manifest, manifest.dialect if stored is None else stored.dialect)
            # As many lanes as there is work for.
            holes = find_holes(taken.segments, source.end)
            segments = sum((hole.end - hole.start) // manifest.segment_bytes + 1 for hole in holes)
            count = min(self._settings.lanes, segments)
            lanes = connecting(self._settings, upload_id, run, count=count, slot=slot if count else None)
            async with source.opened(), lanes as connected:
                plan, table = await self._plan(manifest, taken, stored, source)
                if plan.staged:
                    await prepare_staging(self._pool, upload_id, run, plan, anew=not taken.segments)
                load = self._assembled(manifest, taken, plan, table, source)
                await self._load_holes(load, manifest, taken, attempts, connected)
            await self._judge_rejects(load, manifest)
            if plan.staged:
                row = await self._move(load, manifest, run, slot)
            else:
                row = await self._ledger.complete(upload_id, run, decoded_bytes=source.decoded_bytes)
        except RunLost:
            log.info("load.run_lost")
            return None
        except (Failure, asyncpg.PostgresError) as exc:
            failure = exc if isinstance(exc, Failure) else unexpected(exc)
            failure = self._full_disks.judged(upload_id, failure, segments=attempts.segments)
            if failure.transient:
                return failure
            log.warning("load.failed", code=failure.code, detail=failure.detail)
            advised = f"{failure.detail} {_ADVICE.get(failure.code, '')}".rstrip()
            return await self._fail(upload_id, run, Failure(failure.code, advised, **failure.extra))
        except Exception:
            error_id = secrets.token_hex(8)
            log.exception("load.crashed", error_id=error_id)
            detail = f"The load hit an error of ours. Retry it; if it fails again, report it with the id {error_id}."
            return await self._fail(upload_id, run, Failure("internal_error", detail, errorId=error_id))
        log.info("load.completed", rows_processed=row.rows_processed, rows_failed=row.rows_failed)
        return row

    async def _fail(self, upload_id: UUID, run: int, failure: Failure) -> UploadRow | None:
        try:
            return await self._ledger.fail(
                upload_id, run, code=failure.code, message=failure.detail, extra=failure.extra
            )
        except RunLost:
            log.info("load.run_lost")
            return None
        except Failure as unrecorded:
            # The next attempt finds the same, or that it has gone.
            await self._interrupted(upload_id, run, unrecorded)

    async def _settle(self, manifest: Manifest, row: UploadRow) -> None:
        """What follows an end state that Postgres has recorded; done again as often as it takes."""
        await self._reporter.write(manifest, row)
        await self._announce(row)
        await clean_up_ended(self._store, manifest, state=row.state, has_ended=self._ledger.has_ended)

    async def _judge_rejects(self, load: Assembly, manifest: Manifest) -> None:
        """The last word on the limit: lanes that commit at the same time do not see each other's rejections."""
        if self._limit(manifest) is not None and (row := await self._ledger.get(manifest.upload_id)) is not None:
            load.recorder.judge(row.rows_read, row.rows_failed)

    async def _load_holes(
        self,
        load: Assembly,
        manifest: Manifest,
        taken: Taken,
        attempts: Attempts,
        connected: Callable[[], Awaitable[list[LaneConnection]]],
    ) -> None:
        """Load what is not loaded yet."""
        source = load.source
        holes = find_holes(taken.segments, source.end)
        row = await self._ledger.get(manifest.upload_id)
        if row is None or row.run != taken.run:
            raise RunLost
        async with self._reporter.following(manifest, row, lambda: source.expected_bytes) as report:
            if not holes:
                return

            async def committed(figures: SegmentFigures) -> None:
                attempts.segments += 1
                await report(figures)

            pipeline = load.pipeline(await connected(), committed)
            self._started(manifest.upload_id, pipeline)
            try:
                # In a task of its own: on Python 3.11 a TaskGroup that fails leaves the task that waits for it counted
                # as being cancelled for ever, and aiohttp believes that count: a PUT without a body then raises.
                await asyncio.create_task(pipeline.run(holes, source.open_range), name="pipeline")
            except ExceptionGroup as group:
                raise first_cause(group) from group

    async def _move(self, load: Assembly, manifest: Manifest, run: int, slot: LaneConnection | None) -> UploadRow:
        """Move the rows that were collected into the target, and complete the upload."""
        upload_id, count = manifest.upload_id, 2 if load.plan.dry_run else 1
        async with connecting(self._settings, upload_id, run, count=count, slot=slot) as connected:
            connections = await connected()
            try:
                return await load.mover().move(connections[0], connections[-1], load.source.decoded_bytes)
            except Failure as failure:
                # Of no use to the next attempt, or to any.
                if failure.code in {"staging_lost", "superseded"}:
                    await give_up_staging(self._pool, upload_id, run)
                raise

    def _assembled(self, manifest: Manifest, taken: Taken, plan: Plan, table: Table, source: Source) -> Assembly:
        return Assembly(
            settings=self._settings,
            store=self._store,
            pool=self._pool,
            run_in_thread=self._run_in_thread,
            manifest=manifest,
            run=taken.run,
            plan=plan,
            table=table,
            source=source,
            limits=Limits.of(self._settings, plan.max_record_bytes),
            reject_limit=self._limit(manifest),
        )

    def _limit(self, manifest: Manifest) -> RejectLimit | None:
        dataset = self._datasets.get(manifest.dataset)
        by_dataset = "" if dataset is None else dataset.max_rejects
        text = manifest.max_rejects or by_dataset or self._settings.max_rejects
        return RejectLimit.parse(text) if text else None

    async def _plan(self, manifest: Manifest, taken: Taken, stored: Plan | None, source: Source) -> tuple[Plan, Table]:
        """The plan by which segments were loaded, if the table still fits it; otherwise one made of the header.

        And the table that it fits.

        As long as nothing is loaded a plan binds nobody: whoever changes table or dataset and retries gets a new one.
        """
        if stored is not None:
            table = await look_up(self._pool, stored.table)
            check_plan(stored, table)
            return stored, table
        limits = Limits.of(self._settings)
        dataset, options = find_dataset(self._datasets, manifest.dataset), manifest.options
        async with begun(source.read_header(limits, named=dataset.has_header(options))) as header:
            table = await look_up(self._pool, dataset.table)
            names = await header
        plan = make_plan(
            table,
            dataset,
            names,
            options=options,
            dialect=manifest.dialect,
            max_record_bytes=limits.record,
            upload_id=manifest.upload_id,
        )
        encoded = await self._ledger.set_plan(
            manifest.upload_id,
            taken.run,
            plan.encode(),
            dataset.table,
            mode=plan.mode,
            dry_run=plan.dry_run,
            staging=staging_name(manifest.upload_id) if plan.staged else None,
        )
        return Plan.decode(encoded), table

    def _source(self, manifest: Manifest, dialect: Dialect) -> Source:
        return Source(self._store, manifest, dialect, self._settings, self._run_in_thread)


def intake_of(manifest: Manifest, datasets: Datasets) -> Intake:
    """What an upload's row is made of. Of a dataset that is no longer there the name stands for the table as well."""
    dataset = datasets.get(manifest.dataset)
    return Intake(
        upload_id=manifest.upload_id,
        dataset=manifest.dataset,
        table=manifest.dataset if dataset is None else dataset.table,
        size_bytes=manifest.size_bytes,
        segment_bytes=manifest.segment_bytes,
        callback_url=manifest.callback_url,
        created_at=manifest.created_at,
        compressed=manifest.dialect.compression is not None,
    )


def _for_later(failure: Failure) -> Failure:
    """The failure as a transient one.

    A password or a table of ours that is wrong is for the operator to mend: the upload has done nothing to fail for,
    and waits.
    """
    return Failure(failure.code, failure.detail, transient=True, **failure.extra)
