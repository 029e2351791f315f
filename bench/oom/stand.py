"""What the test does to the service from outside: curl, its API, the bucket, the receiver of webhooks."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import botocore.session
from botocore.config import Config

from bench.oom.engine import Engine, OomTestFailed, Project

BASE: Final = "http://localhost:3002"
BUCKET: Final = "stream-api"
_POLL_SECONDS: Final = 0.25
#: Without any progress for so long it has failed, whatever its status says.
_STALL_SECONDS: Final = 300.0


def request(method: str, url: str) -> tuple[int, Any]:
    """The status and the JSON of an answer.

    :raises OomTestFailed: when there is none.
    """
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=60)
    try:
        connection.request(method, parts.path)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    except (OSError, http.client.HTTPException, ValueError) as exc:
        raise OomTestFailed(f"{method} {url}: {exc!r}") from exc
    finally:
        connection.close()


def until(what: str, found: Callable[[], Any], *, seconds: float) -> Any:
    """What `found` gives, once that is true.

    :raises OomTestFailed: when it is not within so many seconds.
    """
    deadline = time.monotonic() + seconds
    while not (value := found()):
        if time.monotonic() > deadline:
            raise OomTestFailed(f"{what}: not within {seconds:.0f} s")
        time.sleep(_POLL_SECONDS)
    return value


def curl(file: Path, callback: str | None = None) -> tuple[dict[str, Any], float]:
    """Upload a file by the spec's own command; the answer, and how many seconds it took.

    :raises OomTestFailed: when it is not answered by 202.
    """
    program = shutil.which("curl")
    if program is None:
        raise OomTestFailed("curl is not installed")
    words = ["-X", "POST", "-F", f"file=@{file}"]
    if callback is not None:
        words = ["-X", "POST", "-F", f"callbackUrl={callback}", "-F", f"file=@{file}"]
    extra = ["--silent", "--show-error", "--noproxy", "*", "--write-out", "\n%{http_code} %{time_total}"]
    command = [program, *extra, *words, f"{BASE}/upload"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    body, _, figures = done.stdout.rpartition("\n")
    if done.returncode or not figures.startswith("202 "):
        raise OomTestFailed(f"curl ended with {done.returncode}: {figures} {body} {done.stderr}")
    return json.loads(body), float(figures.split()[1])


def status_of(upload_id: str) -> dict[str, Any]:
    """The status of an upload.

    :raises OomTestFailed: when it is not answered by 200.
    """
    code, document = request("GET", f"{BASE}/upload/{upload_id}/status")
    if code != http.HTTPStatus.OK:
        raise OomTestFailed(f"the status was answered by {code}: {document}")
    status: dict[str, Any] = document
    return status


def follow(upload_id: str, until_true: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The first status of which something is true, or in which the upload has ended.

    :raises OomTestFailed: when nothing moves any more.
    """
    seen, changed = -1.0, time.monotonic()
    while True:
        status = status_of(upload_id)
        if until_true(status) or status["status"] in {"completed", "failed", "cancelled"}:
            return status
        if status["progress"] != seen:
            seen, changed = status["progress"], time.monotonic()
        if time.monotonic() - changed > _STALL_SECONDS:
            raise OomTestFailed(f"the load made no progress for {_STALL_SECONDS:.0f} s: {status}")
        time.sleep(_POLL_SECONDS)


def expect(status: dict[str, Any], wanted: str) -> dict[str, Any]:
    """The status, which must have this word.

    :raises OomTestFailed: it has another.
    """
    if status["status"] != wanted:
        raise OomTestFailed(f"the upload is {status['status']}, not {wanted}: {status.get('error')}")
    return status


class Bucket:
    """The bucket, by MinIO's published port."""

    def __init__(self, access_key_id: str, secret_access_key: str) -> None:
        self._client: Final[Any] = botocore.session.Session().create_client(
            "s3",
            endpoint_url="http://127.0.0.1:9000",
            region_name="us-east-1",
            aws_access_key_id=access_key_id,
            aws_secret_access_key=secret_access_key,
            config=Config(signature_version="s3v4", s3={"addressing_style": "path"}, proxies={}),
        )

    def data(self, upload_id: str) -> list[str]:
        """The keys of an upload's file: one, or none once it is loaded."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=BUCKET, Prefix=f"uploads/{upload_id}/data"
        )
        return [item["Key"] for page in pages for item in page.get("Contents", ())]


class Receiver:
    """The receiver of webhooks.

    :param address: host and port that it is published at. :param secret: that webhooks are signed with.
    """

    def __init__(self, address: str, secret: str) -> None:
        self._url: Final = f"http://{address}/received"
        self._key: Final = base64.b64decode(secret.removeprefix("whsec_"))

    def got(self, upload_id: str) -> list[dict[str, Any]]:
        """The requests about an upload so far, each with the right signature.

        :raises OomTestFailed: one has not.
        """
        found = [each for each in request("GET", self._url)[1] if json.loads(each["body"])["uploadId"] == upload_id]
        for each in found:
            headers = each["headers"]
            signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.{each['body']}".encode()
            right = "v1," + base64.b64encode(hmac.digest(self._key, signed, hashlib.sha256)).decode()
            if not any(hmac.compare_digest(right, given) for given in headers["webhook-signature"].split()):
                raise OomTestFailed(f"the webhook has a wrong signature: {each}")
        return found


class Stand:
    """Everything a stage of the test needs.

    :param secret: that webhooks are signed with.
    """

    def __init__(self, project: Project, engine: Engine, secret: str) -> None:
        self.project: Final = project
        self.engine: Final = engine
        self.bucket: Final = Bucket("stream-api", "stream-api-dev")
        self.receiver: Final = Receiver(project("port", "receiver", "8080").strip(), secret)

    def count(self) -> int:
        """The rows of the table."""
        return int(self.project.sql("SELECT count(*) FROM webhook_events"))

    def status_ttl_seconds(self, upload_id: str) -> int:
        """How long the status lives yet."""
        return int(self.project("exec", "-T", "redis", "redis-cli", "TTL", f"stream-api:upload:{upload_id}"))
