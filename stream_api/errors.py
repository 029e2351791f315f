"""The one table of errors: a stable code, an HTTP status, whether a retry can help, and a safe message.

Every failure that a user can meet has a code in `CODES`. Adapters translate the errors of their libraries with
`raise Failure(...) from exc`; what is not translated is a bug and is answered as a generic 500.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class ErrorCode:
    """What is fixed about one kind of failure.

    :param status: the HTTP status when a request fails with it; for failures of a load, of the request that asks.
    :param title: a short sentence that does not change from one occurrence to the next (RFC 9457, `title`).
    :param transient: the same thing tried later, unchanged, can succeed.
    """

    status: int
    title: str
    transient: bool = False


CODES: Final[dict[str, ErrorCode]] = {
    # The request.
    "bad_request": ErrorCode(400, "The request could not be understood"),
    "content_type_unsupported": ErrorCode(415, "The body is neither a form nor a CSV file"),
    "content_encoding_unsupported": ErrorCode(415, "The body is compressed"),
    "malformed_multipart": ErrorCode(400, "The multipart body is malformed"),
    "upload_incomplete": ErrorCode(400, "The body ended before the file was complete"),
    "file_missing": ErrorCode(422, "The form has no field named file"),
    "file_repeated": ErrorCode(422, "The form has more than one field named file"),
    "file_empty": ErrorCode(422, "The file is empty"),
    "field_repeated": ErrorCode(422, "A field was given twice, in the form or in the query"),
    "field_too_large": ErrorCode(413, "The fields are too large"),
    "field_encoding_unsupported": ErrorCode(415, "A form field has a content transfer encoding"),
    "too_many_fields": ErrorCode(413, "There are too many fields"),
    "callback_url_invalid": ErrorCode(422, "callbackUrl is not a valid http or https URL"),
    "dialect_invalid": ErrorCode(422, "A field about the dialect is not valid"),
    "option_invalid": ErrorCode(422, "A field about the load is not valid"),
    "max_rejects_invalid": ErrorCode(422, "maxRejects is neither a number of rows nor a share"),
    "dataset_unknown": ErrorCode(422, "There is no such dataset"),
    "idempotency_key_invalid": ErrorCode(400, "The Idempotency-Key is not valid"),
    "idempotency_key_in_use": ErrorCode(409, "An upload with this Idempotency-Key is under way", transient=True),
    "idempotency_key_reused": ErrorCode(422, "The Idempotency-Key was used for another upload"),
    "file_too_large": ErrorCode(413, "The file is larger than this server takes"),
    "client_too_slow": ErrorCode(408, "The client sent too slowly while others waited"),
    "server_busy": ErrorCode(503, "Too many uploads are waiting", transient=True),
    "upload_not_found": ErrorCode(404, "There is no such upload"),
    "upload_not_failed": ErrorCode(409, "Only a failed upload can be retried"),
    "plan_fixed": ErrorCode(409, "Rows are committed, and the plan of the load stays as it is"),
    "upload_completed": ErrorCode(409, "The upload is completed and cannot be cancelled"),
    "upload_cancelled": ErrorCode(409, "The upload was cancelled"),
    "upload_not_ended": ErrorCode(409, "The upload has not ended yet"),
    "header_not_loaded": ErrorCode(409, "The part of the file that holds its header is not loaded yet"),
    "webhook_missing": ErrorCode(409, "The upload has no callbackUrl"),
    "upload_gone": ErrorCode(410, "The upload's data is no longer stored"),
    "not_found": ErrorCode(404, "There is no such page"),
    "method_not_allowed": ErrorCode(405, "The method is not allowed here"),
    "internal_error": ErrorCode(500, "Something went wrong on our side", transient=True),
    # The services behind us.
    "not_ready": ErrorCode(503, "Not everything that the service needs can be used", transient=True),
    "stopping": ErrorCode(503, "The service is stopping", transient=True),
    "storage_unavailable": ErrorCode(503, "The object storage cannot be reached", transient=True),
    "storage_refused": ErrorCode(502, "The object storage refused the request"),
    "database_unavailable": ErrorCode(503, "The database cannot be reached", transient=True),
    "database_refused": ErrorCode(502, "The database refused the request"),
    "queue_unavailable": ErrorCode(503, "The job queue cannot be reached", transient=True),
    # A load.
    "dataset_busy": ErrorCode(503, "As many loads into this dataset run as may", transient=True),
    "dataset_invalid": ErrorCode(422, "The rules of the dataset do not go with its table"),
    "header_mismatch": ErrorCode(422, "The file's header does not fit the table"),
    "conflict_key_invalid": ErrorCode(422, "The table has no such key for conflicts"),
    "table_missing": ErrorCode(422, "The target table does not exist"),
    "table_denied": ErrorCode(422, "The target table takes no rows from this service"),
    "disk_full": ErrorCode(507, "The disk of the database is full"),
    "plan_changed": ErrorCode(422, "The target table no longer fits the plan of this load"),
    "constraint_violated": ErrorCode(422, "A row violates a constraint of the table"),
    "header_too_long": ErrorCode(422, "The file's header is longer than the limit"),
    "header_unreadable": ErrorCode(422, "The file's header cannot be read"),
    "too_many_columns": ErrorCode(422, "The file's header has too many columns"),
    "encoding_unsupported": ErrorCode(422, "The file is not text in a known encoding"),
    "compression_invalid": ErrorCode(422, "The compressed file is damaged"),
    "compression_truncated": ErrorCode(422, "The compressed file ends before its end"),
    "compression_window": ErrorCode(422, "The compressed file needs too much memory"),
    "expansion_too_large": ErrorCode(422, "The compressed file expands beyond the limit"),
    "too_many_rejects": ErrorCode(422, "More rows were rejected than may be"),
    "manifest_unreadable": ErrorCode(500, "The upload's manifest cannot be read"),
    "data_gone": ErrorCode(410, "The upload's data is no longer in the object storage"),
    "data_changed": ErrorCode(409, "The upload's data is not what was stored"),
    "ledger_incomplete": ErrorCode(500, "The ledger does not cover the file", transient=True),
    "staging_lost": ErrorCode(500, "The rows collected for the load have gone missing", transient=True),
    "superseded": ErrorCode(409, "A later upload has already replaced the table's content"),
    "replace_refused": ErrorCode(422, "The table's content cannot be replaced"),
    "rows_dropped": ErrorCode(500, "The database took another number of rows than were sent"),
}


class Failure(Exception):
    """A failure with a code from `CODES`.

    :param code: a key of `CODES`.
    :param detail: what happened this time and what to do about it; safe to show to the client.
    :param extra: further members of the problem document, JSON-ready, in camelCase (such as `limitBytes`).
    :param transient: overrides the table where the occurrence knows better.
    """

    def __init__(self, code: str, detail: str, *, transient: bool | None = None, **extra: Any) -> None:
        super().__init__(f"{code}: {detail}")
        self.code: Final = code
        self.detail: Final = detail
        self.extra: Final = extra
        self.transient: Final = CODES[code].transient if transient is None else transient

    @property
    def status(self) -> int:
        """The HTTP status of the answer."""
        return CODES[self.code].status

    @property
    def title(self) -> str:
        """The sentence that all failures of this code share."""
        return CODES[self.code].title


def field_refused(code: str, field: str, value: str, allowed: list[str]) -> Failure:
    """The failure of a field of an upload that has a value which it may not have.

    :param allowed: what it may be, for the client to read.
    """
    detail = f"{field} may not be {value[:100]!r}; allowed: {', '.join(allowed)}."
    return Failure(code, detail, field=field, allowed=allowed)


class RunLost(Exception):
    """The load is no longer this worker's: another run has been taken, or the upload reached an end state.

    Whoever catches it stops, and writes no status, sends no webhook and deletes nothing.
    """
