"""What the test does, stage by stage. Each fills in what it found, and raises where that is not right."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from bench.generate import Summary, write
from bench.oom.engine import OomTestFailed, docker
from bench.oom.stand import BASE, Stand, curl, expect, follow, request, status_of, until
from bench.oom.watch import Watch

#: The spec: a status is kept for 7 days.
_WEEK_SECONDS: Final = 7 * 24 * 3600
#: How long what follows `completed` may take: deleting the object, a webhook.
_AFTERWARDS_SECONDS: Final = 60.0
#: Two retries of a webhook come after about 5 s and 25 s.
_RETRIES_SECONDS: Final = 120.0
#: So many take longer than docker needs to have the table dropped.
_MANY_ROWS: Final = 1_000_000
_FILES: Final = 10
#: Those of the ten that are sent before the table is held: their loads are somewhere in the middle then.
_EARLY_FILES: Final = 3
_WORKERS: Final = 3
_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class File:
    """A generated file and what is in it."""

    path: Path
    summary: Summary


def make(folder: Path, name: str, rows: int, *, seed: int = 0) -> File:
    """Generate a file."""
    path = folder / name
    with path.open("wb") as target:
        return File(path, write(target, rows, seed=seed))


def equal(what: str, found: object, wanted: object) -> None:
    """:raises OomTestFailed: they differ."""
    if found != wanted:
        raise OomTestFailed(f"{what} is {found}, not {wanted}")


def upload_and_load(stand: Stand, watch: Watch, file: File, result: dict[str, Any]) -> None:
    """The spec's scenario: a file by curl, the load, the count, the object gone, the webhook.

    :raises OomTestFailed: something is not as it must be.
    """
    watch.mark("upload")
    answer, seconds = curl(file.path, "http://receiver:8080/accept")
    watch.mark("load")
    upload_id = answer["uploadId"]
    result.update(
        uploadSeconds=round(seconds, 2), uploadMegabytesPerSecond=round(file.summary.size_bytes / _MIB / seconds, 1)
    )
    # Only a load that has ended may have deleted it by now.
    stored = stand.bucket.data(upload_id)
    if not stored and status_of(upload_id)["status"] != "completed":
        raise OomTestFailed("after the upload its object is not in the bucket")
    result["objectStored"] = bool(stored)
    status = expect(follow(upload_id, lambda _: False), "completed")
    taken = (_time(status["completedAt"]) - _time(status["startedAt"])).total_seconds()
    result.update(
        loadSeconds=round(taken, 2),
        rowsPerSecond=round(status["rowsProcessed"] / taken),
        rowsInFile=file.summary.rows,
        rowsProcessed=status["rowsProcessed"],
        rowsInTable=stand.count(),
    )
    equal("the number of rows in the table", result["rowsInTable"], file.summary.rows)
    equal("rowsProcessed", status["rowsProcessed"], file.summary.rows)
    until("the object is deleted", lambda: not stand.bucket.data(upload_id), seconds=_AFTERWARDS_SECONDS)
    result["objectDeleted"] = True
    received = until("a webhook", lambda: stand.receiver.got(upload_id), seconds=_AFTERWARDS_SECONDS)
    body = json.loads(received[-1]["body"])
    equal("the webhook's status", body["status"], "completed")
    equal(
        "the webhook's rowsProcessed and rowsFailed",
        (body["rowsProcessed"], body["rowsFailed"]),
        (file.summary.rows, 0),
    )
    equal("the webhook's timestamp", body["timestamp"], status["completedAt"])
    equal("the number of webhooks", len({each["headers"]["webhook-id"] for each in received}), 1)
    result["webhookVerified"] = True
    ttl = stand.status_ttl_seconds(upload_id)
    if not _WEEK_SECONDS - 3600 < ttl <= _WEEK_SECONDS:
        raise OomTestFailed(f"the status expires in {ttl} s, not in 7 days")
    result["statusExpiresInSeconds"] = ttl


def fail_and_retry(stand: Stand, file: File, result: dict[str, Any]) -> str:
    """A load whose table is dropped under it, and its retry; its webhooks are refused twice each.

    :return: the upload's id, for `check_tries`.
    :raises OomTestFailed: something is not as it must be.
    """
    # Of the same shape and empty, to be put in its place; the rows of the first load go with the table.
    stand.project.sql("CREATE TABLE put_in_place (LIKE webhook_events INCLUDING ALL); TRUNCATE webhook_events")
    answer, _ = curl(file.path, "http://receiver:8080/refuse/2")
    upload_id: str = answer["uploadId"]
    # In the middle of a large file; of a small one at once, for docker takes a while to answer.
    early = file.summary.rows // 5 if file.summary.rows >= _MANY_ROWS else 1
    follow(upload_id, lambda status: status["rowsProcessed"] >= early)
    stand.project.sql("DROP TABLE webhook_events")
    failed = expect(follow(upload_id, lambda _: False), "failed")
    result.update(failedWith=failed["error"]["code"], failedAtRows=failed["rowsProcessed"])
    if not 0 < failed["rowsProcessed"] < file.summary.rows:
        raise OomTestFailed(f"the load failed at row {failed['rowsProcessed']}, not in the middle: take more rows")
    if not stand.bucket.data(upload_id):
        raise OomTestFailed("the failed load's object is not in the bucket")
    until("a webhook about the failure", lambda: stand.receiver.got(upload_id), seconds=_AFTERWARDS_SECONDS)
    stand.project.sql("ALTER TABLE put_in_place RENAME TO webhook_events")
    code, document = request("POST", f"{BASE}/upload/{upload_id}/retry")
    if code != 202:
        raise OomTestFailed(f"the retry was answered by {code}: {document}")
    expect(follow(upload_id, lambda _: False), "completed")
    # What went into the dropped table does not count.
    equal("after the retry, the number of rows in the table", stand.count(), file.summary.rows)
    result["retryRowsInTable"] = file.summary.rows
    until("the object is deleted", lambda: not stand.bucket.data(upload_id), seconds=_AFTERWARDS_SECONDS)
    return upload_id


def check_tries(stand: Stand, upload_id: str, result: dict[str, Any]) -> None:
    """The webhook of the load that was retried came three times: the receiver refused the first two.

    :raises OomTestFailed: it did not, or with several ids.
    """
    result["webhookTries"] = until(
        "a webhook that is accepted at the third try", lambda: _third_try(stand, upload_id), seconds=_RETRIES_SECONDS
    )


def _third_try(stand: Stand, upload_id: str) -> list[int]:
    """The answers that the webhook of the completed load got: with the first one accepted, all of them."""
    of_end = [each for each in stand.receiver.got(upload_id) if json.loads(each["body"])["status"] == "completed"]
    answers = [each["status"] for each in of_end]
    if 204 not in answers:
        return []
    equal("the answers to the webhook", answers, [503, 503, 204])
    equal("the number of ids of the webhook", len({each["headers"]["webhook-id"] for each in of_end}), 1)
    return answers


def share_among_workers(stand: Stand, folder: Path, rows: int, result: dict[str, Any]) -> str:
    """Ten files at once, three more workers, one of which is killed while it loads.

    :param rows: of each file.
    :return: the container that was killed.
    :raises OomTestFailed: something is not as it must be.
    """
    stand.project.sql("TRUNCATE webhook_events")
    stand.project("--profile", "workers", "up", "--detach", "--no-recreate", "--scale", f"worker={_WORKERS}")
    files = [make(folder, f"{number}.csv", rows, seed=100 + number) for number in range(_FILES)]
    began = time.monotonic()
    uploads = [curl(file.path)[0]["uploadId"] for file in files[:_EARLY_FILES]]
    # While nobody can write into the table, no load ends: whoever has one is killed in it.
    with stand.project.holding("webhook_events"):
        uploads += [curl(file.path)[0]["uploadId"] for file in files[_EARLY_FILES:]]
        killed: str = until("a worker that loads", lambda: _loading(stand), seconds=_AFTERWARDS_SECONDS)
        docker("kill", killed)
        if not _is_loading(stand.project.logs("worker")[killed]):
            raise OomTestFailed("the worker had ended its load before it was killed")
    for upload_id in uploads:
        status = expect(follow(upload_id, lambda _: False), "completed")
        equal("rowsProcessed of one of ten files", status["rowsProcessed"], rows)
    result["tenFilesSeconds"] = round(time.monotonic() - began, 2)
    equal("the number of rows of ten files", stand.count(), _FILES * rows)
    result["tenFilesRowsInTable"] = _FILES * rows
    taken = {
        container: sum(event.get("event") == "load.completed" for event in events)
        for service in ("stream-api", "worker")
        for container, events in stand.project.logs(service).items()
    }
    # Of all that were completed since the start, those of the container with the API include the stages before.
    result["loadsByWorker"] = sorted(Counter(taken).values(), reverse=True)
    result["workerKilled"] = True
    until(
        "the objects of ten files are deleted",
        lambda: not any(stand.bucket.data(upload_id) for upload_id in uploads),
        seconds=_AFTERWARDS_SECONDS,
    )
    if sum(count > 0 for count in taken.values()) < 3:
        raise OomTestFailed(f"the loads were not shared: {taken}")
    return killed


def _loading(stand: Stand) -> str | None:
    """A worker that has taken a load and not ended it."""
    return next((key for key, events in stand.project.logs("worker").items() if _is_loading(events)), None)


def _is_loading(events: list[dict[str, Any]]) -> bool:
    names = [event.get("event") for event in events]
    return names.count("load.taken") > names.count("load.completed")


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
