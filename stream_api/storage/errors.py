"""Errors of the S3 client, told apart by type and code, never by text."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

import aiohttp
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from stream_api.errors import Failure

#: Codes that a store gives when it wants us to come back later, whatever their HTTP status.
#: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
_TRANSIENT_CODES: Final = frozenset(
    {
        "ConditionalRequestConflict",
        "InternalError",
        "OperationAborted",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "TooManyRequestsException",
    }
)
#: What whoever runs the service can do about a refusal.
_ADVICE: Final = {
    "AccessDenied": "the credentials may not do this: check the policy of the key and of the bucket",
    "AuthorizationHeaderMalformed": "the region is wrong: check AWS_REGION",
    "ExpiredToken": "the credentials have expired: renew them",
    "InvalidAccessKeyId": "the access key is unknown: check AWS_ACCESS_KEY_ID",
    "NoSuchBucket": "the bucket does not exist: create it, or check STREAM_API_BUCKET",
    "PermanentRedirect": "the bucket lies elsewhere: check AWS_ENDPOINT_URL_S3 and AWS_REGION",
    "RequestTimeTooSkewed": "the clocks of this machine and of the store differ too much: check the time",
    "SignatureDoesNotMatch": "the secret is wrong: check AWS_SECRET_ACCESS_KEY",
}
#: Statuses of answers without a body (HEAD has none), by which a store tells the same.
_STATUS_ADVICE: Final = {
    301: _ADVICE["PermanentRedirect"],
    401: "the credentials are refused: check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    403: "the credentials are refused, or may not do this: check the key, the secret and the policy of the bucket",
}
_ABSENT_CODES: Final = frozenset({"NoSuchKey", "404", "NotFound"})
_NETWORK_ERRORS: Final = (
    boto.HTTPClientError,
    boto.ConnectionError,
    boto.IncompleteReadError,
    boto.ResponseStreamingError,
    ResponseParserError,
    aiohttp.ClientError,
    OSError,  # TimeoutError too
)


class AlreadyExists(Exception):
    """A put with `if_absent` found the key taken."""


def error_code(exc: BaseException) -> str | None:
    """S3's code of an error, such as `NoSuchKey`; the HTTP status as text where there was no body."""
    if isinstance(exc, boto.ClientError):
        return str(exc.response.get("Error", {}).get("Code", ""))
    return None


def http_status(exc: BaseException) -> int | None:
    """HTTP status of an answer that was an error."""
    if isinstance(exc, boto.ClientError):
        return int(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return None


def translate(exc: BaseException) -> Failure | None:
    """The failure that an error of the client stands for, or `None` if it stands for none (a bug, a cancellation)."""
    if isinstance(exc, Failure):
        return exc
    if isinstance(exc, _NETWORK_ERRORS):
        return Failure("storage_unavailable", "The object storage cannot be reached or did not answer in time.")
    if isinstance(exc, boto.NoCredentialsError | boto.PartialCredentialsError | boto.CredentialRetrievalError):
        advice = "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        return Failure("storage_refused", f"The object storage cannot be used: {advice}.")
    code, status = error_code(exc), http_status(exc)
    return None if code is None or status is None else _failure_of(code, status)


def _failure_of(code: str, status: int) -> Failure:
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS or code in _TRANSIENT_CODES:
        return Failure("storage_unavailable", f"The object storage answered {code or status}.", s3Code=code)
    # A missing bucket is another matter than a missing object, where the store says which it is.
    if code in _ABSENT_CODES:
        return Failure("data_gone", "There is no such object in the object storage.")
    # The second: a range that begins past the end, which cannot be if the object is the one that was measured.
    if status in (HTTPStatus.PRECONDITION_FAILED, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE):
        return Failure("data_changed", "The object in the object storage is not the one that was stored.")
    advice = _ADVICE.get(code) or _STATUS_ADVICE.get(status) or "see the log of the store"
    detail = f"The object storage refused the request ({code or status}): {advice}."
    return Failure("storage_refused", detail, s3Code=code)
