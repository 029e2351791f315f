"""All settings, read once from the environment into one frozen object."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple, Self

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

KIB = 1024
MIB = 1024 * KIB

#: S3 takes at most this many parts in one multipart upload
#: (https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html).
S3_MAX_PARTS = 10_000
#: S3 refuses parts below this size, but for the last one (same page).
S3_MIN_PART_BYTES = 5 * MIB

#: A table's name as SQL writes it, with or without its schema: `events`, `audit.events`, `"Weird name"`.
_TABLE_NAME: Final = re.compile(r'(?:[^\W\d][\w$]*|"(?:[^"\0]|"")+")(?:\.(?:[^\W\d][\w$]*|"(?:[^"\0]|"")+"))?')

_REJECT_LIMIT: Final = re.compile(r"(?P<count>[0-9]{1,18})|(?P<share>[0-9]{1,3}(?:\.[0-9]{1,9})?)\s?%")
_PERCENT: Final = 100
#: A share of fewer rows says little: until then it is judged only at the end of the file.
_LEAST_ROWS_OF_SHARE: Final = 10_000

_HOST_NAME: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
#: Of Standard Webhooks: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
_SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - what every one begins with
_SECRET_LEAST_BYTES: Final = 24
_SECRET_MOST_BYTES: Final = 64


def _url(*schemes: str, host: bool = True) -> AfterValidator:
    """Checks a URL's scheme, and that it names a host. Its value, which may hold a password, is in no message."""

    def check(value: SecretStr | str | None) -> SecretStr | str | None:
        if value is None:
            return None
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        scheme, separator, rest = text.partition("://")
        if not separator or scheme.lower() not in schemes:
            msg = f"must begin with {' or '.join(f'{each}://' for each in schemes)}"
            raise ValueError(msg)
        if host and rest.partition("/")[0] in {"", "@"}:
            msg = f"names no host: {schemes[0]}://HOST:PORT"
            raise ValueError(msg)
        return value

    return AfterValidator(check)


def checked_table_name(value: str) -> str:
    """The value, which SQL takes for the name of a table.

    :raises ValueError: it does not.
    """
    if _TABLE_NAME.fullmatch(value) is None:
        msg = 'must be the name of a table as SQL writes it: events, audit.events or "Weird name"'
        raise ValueError(msg)
    return value


def _unset_if_empty(value: object) -> object:
    # A variable that is set to nothing, as compose files do it, is one that is not set.
    return None if value == "" else value


def _webhook_keys(text: str) -> list[bytes]:
    """The keys in `whsec_…` secrets. No message has any of their text."""
    keys = []
    for number, secret in enumerate(re.split(r"[\s,]+", text.strip(" ,\n")), start=1):
        prefix, encoded = secret[: len(_SECRET_PREFIX)], secret[len(_SECRET_PREFIX) :]
        try:
            # Secrets are met with and without their padding.
            key = base64.b64decode(encoded.rstrip("=") + "=" * (-len(encoded.rstrip("=")) % 4), validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if prefix != _SECRET_PREFIX or not _SECRET_LEAST_BYTES <= len(key) <= _SECRET_MOST_BYTES:
            msg = (
                f"secret number {number} is not {_SECRET_PREFIX} followed by the base64 of {_SECRET_LEAST_BYTES} to "
                f"{_SECRET_MOST_BYTES} bytes"
            )
            raise ValueError(msg)
        keys.append(key)
    return keys


def _checked_secrets(value: SecretStr | None) -> SecretStr | None:
    # A variable that is set to nothing, as compose files do it, is one that is not set.
    if value is None or not value.get_secret_value().strip():
        return None
    _webhook_keys(value.get_secret_value())
    return value


class Allowed(NamedTuple):
    """Where webhooks may go beside the public internet.

    :param hosts: names, in lower case.
    :param networks: of addresses.
    """

    hosts: frozenset[str]
    networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]


def _allowed(text: str) -> Allowed:
    hosts, networks = set(), []
    for entry in filter(None, (each.strip() for each in text.split(","))):
        try:
            networks.append(ipaddress.ip_network(entry.strip("[]")))
        except ValueError:
            # What has only digits and dots, or a slash or colon, was to be a network.
            if _HOST_NAME.fullmatch(entry) is None or entry.replace(".", "").isdecimal():
                msg = f"{entry!r} is neither a host nor a network: localhost, 10.1.0.0/16 or fd00:1::/64, for example"
                raise ValueError(msg) from None
            hosts.add(entry.lower().rstrip("."))
    return Allowed(frozenset(hosts), tuple(networks))


def _checked_allowed(value: str) -> str:
    _allowed(value)
    return value


@dataclass(frozen=True, slots=True)
class RejectLimit:
    """How many rows of a file may be rejected.

    :param count: so many at most; `None` for a share.
    :param share: from 0 to 1, of the rows read.
    """

    count: int | None
    share: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `100` or `2.5%`.

        :raises ValueError: it is neither.
        """
        match = _REJECT_LIMIT.fullmatch(text.strip())
        if match is None or (match["share"] and float(match["share"]) > _PERCENT):
            msg = "must be a number of rows, as 100, or a share of them, from 0% to 100%, as 2.5%"
            raise ValueError(msg)
        if match["share"]:
            return cls(None, float(match["share"]) / _PERCENT)
        return cls(int(match["count"]))

    def exceeded(self, read: int, failed: int, *, final: bool) -> bool:
        """Whether that is too many.

        :param read: rows so far. :param failed: those of them that were rejected.
        :param final: these are all rows of the file.
        """
        if self.count is not None:
            return failed > self.count
        return (final or read >= _LEAST_ROWS_OF_SHARE) and failed > self.share * read

    def __str__(self) -> str:
        return f"{self.share * _PERCENT:g}%" if self.count is None else str(self.count)


def _checked_reject_limit(value: str) -> str:
    if value.strip():
        RejectLimit.parse(value)
    return value.strip()


Positive = Annotated[int, Field(gt=0)]


class Settings(BaseSettings):
    """Settings of one process. The environment is the only source; see README for the table.

    Names that an ecosystem already has are used as they are (`DATABASE_URL`, `AWS_ACCESS_KEY_ID`); the rest
    carry the prefix `STREAM_API_`.
    """

    model_config = SettingsConfigDict(env_prefix="STREAM_API_", frozen=True, extra="ignore", populate_by_name=True)

    # -- where things are ------------------------------------------------------------------------------------
    # asyncpg takes the host from a parameter too, as libpq does.
    database_url: Annotated[SecretStr, _url("postgresql", "postgres", host=False)] = Field(
        SecretStr("postgresql://postgres:postgres@127.0.0.1:5432/postgres"), validation_alias="DATABASE_URL"
    )
    """PostgreSQL 16 or later."""
    redis_url: Annotated[SecretStr, _url("redis", "rediss", "unix", host=False)] = Field(
        SecretStr("redis://127.0.0.1:6379/0"), validation_alias="REDIS_URL"
    )
    """Redis or Valkey; may be shared, everything lies under the prefix `stream-api`."""
    s3_endpoint_url: Annotated[str | None, _url("http", "https")] = Field(None, validation_alias="AWS_ENDPOINT_URL_S3")
    """An S3-compatible store; unset means AWS itself."""
    s3_access_key_id: str | None = Field(None, validation_alias="AWS_ACCESS_KEY_ID")
    """Unset, with its secret: what the AWS libraries find by themselves (profiles, roles)."""
    s3_secret_access_key: SecretStr | None = Field(None, validation_alias="AWS_SECRET_ACCESS_KEY")
    """The secret that belongs to the key."""
    s3_region: str = Field("us-east-1", validation_alias="AWS_REGION")
    """Part of every signature; most stores but AWS take any."""
    bucket: str = "stream-api"
    """The bucket must exist, but for `stream-api dev`, which creates it."""
    s3_addressing_style: Literal["auto", "path", "virtual"] = "path"
    """MinIO, SeaweedFS and most others want `path`; AWS takes both."""

    # -- the service -----------------------------------------------------------------------------------------
    host: str = "127.0.0.1"
    """Address to listen on; `0.0.0.0` for all, as in a container."""
    port: Annotated[int, Field(ge=0, le=65535)] = 3002
    """Port to listen on; 0 for a free one."""
    log_format: Literal["auto", "json", "console"] = "auto"
    """`auto` writes for people on a terminal and JSON elsewhere."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Events below it are not written."""
    shutdown_timeout_seconds: Annotated[float, Field(gt=0)] = 20.0
    """How long SIGTERM waits for requests under way, their removal included; loads are handed back at once."""
    shutdown_delay_seconds: Annotated[float, Field(ge=0)] = 0.0
    """How long SIGTERM goes on accepting requests while `/readyz` says no: time for load balancers to notice."""
    memory_limit_bytes: Positive | None = None
    """The limit that the formula is checked against at start; unset means that of the cgroup, if there is one."""

    # -- Stage 1: upload -------------------------------------------------------------------------------------
    part_bytes: Annotated[int, Field(ge=S3_MIN_PART_BYTES)] = 8 * MIB
    """Size of an S3 part. Bounds the file (10,000 parts) and is the unit of memory for uploads."""
    parts_in_flight: Annotated[int, Field(ge=1, le=16)] = 3
    """Parts of one upload on their way to S3 at once. 1 halves the speed; more than 3 brought nothing."""
    upload_budget_bytes: Positive = 96 * MIB
    """What all uploads of this process may hold. Below one part nothing could be uploaded."""
    admission_timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    """How long an upload may wait for room before 503. A waiting client sees a stalled upload."""
    min_upload_bytes_per_second: Annotated[int, Field(ge=0)] = 16 * KIB
    """A client slower than this, while others wait for the room that it holds, gets 408. 0 turns that off."""
    slow_client_grace_seconds: Annotated[float, Field(gt=0)] = 10.0
    """The rate is measured over at least this long."""
    client_idle_timeout_seconds: Annotated[float, Field(gt=0)] = 300.0
    """A client that sends nothing for this long has disappeared, whether others wait or not."""
    max_field_bytes: Positive = 64 * KIB
    """Limit for all text form fields of one upload together."""
    max_fields: Positive = 64
    """Limit for the number of form fields of one upload."""
    socket_receive_buffer_bytes: Positive = 256 * KIB
    """Receive buffer of each client's socket: the kernel charges it to the container."""
    max_connections: Positive = 120
    """Client connections at once; more wait in the listen queue. A term of the memory formula."""

    # -- Stage 2: load ---------------------------------------------------------------------------------------
    segment_bytes: Positive = 2 * MIB
    """Unit of the ledger: one COPY, one transaction. Written into the manifest, so a change harms nothing."""
    batch_bytes: Positive = 512 * KIB
    """Unit of parsing and encoding. Smaller ones parse slower (256 KiB: 69 % of the speed of 2 MiB)."""
    max_record_bytes: Annotated[int, Field(ge=16)] = 1 * MIB
    """A longer record is taken for a stray quote and costs its first line. Held in memory, three times over."""
    max_value_bytes: Positive = 1 * MIB
    """A longer value costs its record."""
    max_header_bytes: Annotated[int, Field(ge=16)] = 1 * MIB
    """A longer header, with what stands before it, fails the load."""
    max_columns: Annotated[int, Field(ge=1)] = 1600
    """Columns that a file may have. PostgreSQL allows a table no more than 1,600."""
    max_decoded_bytes: Positive = 1024 * 1024 * MIB
    """What a compressed file may expand to; beyond it the load fails."""
    max_expansion: Annotated[int, Field(ge=2)] = 200
    """How many times its size a compressed file may expand to, beyond the first 16 MiB. CSV has 5 to 30."""
    lanes: Annotated[int, Field(ge=1, le=16)] = 2
    """COPY connections of one load."""
    load_concurrency: Annotated[int, Field(ge=1, le=64)] = 1
    """Loads at once in one worker."""
    dataset_concurrency: Annotated[int, Field(ge=0, le=1000)] = 0
    """Loads into one dataset at once, over all workers, which should all have the same value; 0 means no bound."""
    worker_threads: Annotated[int, Field(ge=1, le=32)] = 2
    """Threads for parsing, validating and encoding, for all loads of the process."""
    load_attempts: Annotated[int, Field(ge=1, le=100)] = 4
    """Attempts of a load in a row that bring no segment, with pauses of up to a second; then its job is delayed."""
    disk_full_seconds: Annotated[float, Field(ge=0)] = 3600.0
    """How long a load waits, in one worker and without getting on, for a database whose disk is full; then it fails."""
    max_rejects: Annotated[str, AfterValidator(_checked_reject_limit)] = ""
    """Rejected rows beyond which a load fails: a number, or a share as `5%`; unset for no bound. For uploads without
    `maxRejects`."""
    datasets: Annotated[Path | None, BeforeValidator(_unset_if_empty)] = None
    """A TOML file that names the datasets beside the built-in one: see Datasets. Read at the start; what is wrong in it
    keeps the process from starting."""
    target_table: Annotated[str, AfterValidator(checked_table_name)] = "webhook_events"
    """The table of the built-in dataset `webhook_events`, where the file of datasets does not have one of that name."""
    database_connect_timeout_seconds: Annotated[float, Field(gt=0)] = 10.0
    """Longer ones count as an outage: the load waits and goes on later."""
    database_command_timeout_seconds: Annotated[float, Field(gt=0)] = 30.0
    """For the ledger's own statements; a COPY has no limit of its own: a locked table is waited for."""
    s3_connect_timeout_seconds: Annotated[float, Field(gt=0)] = 5.0
    """Longer ones count as an outage."""
    s3_read_timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    """For the answer to one attempt, and for each read of a download; a stalled store is taken for dead after this."""
    s3_max_attempts: Annotated[int, Field(ge=1, le=20)] = 4
    """Tries of one request, and of a download without progress, with exponential backoff between them."""
    s3_backoff_seconds: Annotated[float, Field(gt=0)] = 0.25
    """Pause before the second try; doubled before each further one, with jitter, up to 10 s."""

    # -- waiting clients -------------------------------------------------------------------------------------
    max_wait_seconds: Annotated[float, Field(gt=0)] = 3600.0
    """The longest that `?wait=` keeps a request open, one of `max_connections`; `wait=true` means this long."""

    # -- jobs ------------------------------------------------------------------------------------------------
    job_lease_seconds: Annotated[float, Field(ge=2)] = 6.0
    """A killed worker's load is taken over after about this long. Below 2 s a busy loop can lose its lease."""
    status_ttl_seconds: Positive = 7 * 24 * 3600
    """How long the status record lives, from its last change."""
    reconcile_seconds: Annotated[float, Field(gt=0)] = 15.0
    """How often a worker looks for uploads that are stored but have no job."""
    janitor_seconds: Annotated[float, Field(gt=0)] = 600.0
    """How often a worker looks for what is left over in the bucket, and for uploads that expire."""
    orphan_seconds: Annotated[float, Field(gt=0)] = 3600.0
    """What nobody knows is removed when it is seen again after so long; more than a living upload can stand still."""
    retention_seconds: Annotated[float, Field(gt=0)] = 7 * 24 * 3600.0
    """An upload expires so long after its last end state: file, status and ledger go, and nothing can be retried."""

    # -- webhooks --------------------------------------------------------------------------------------------
    webhook_secrets: Annotated[SecretStr | None, AfterValidator(_checked_secrets)] = None
    """Secrets to sign with (`whsec_…`, 24 to 64 bytes in base64), by commas or spaces, the newest first."""
    webhook_allow: Annotated[str, AfterValidator(_checked_allowed)] = ""
    """Hosts and networks, by commas, that webhooks may go to though they are not on the public internet."""
    webhook_concurrency: Annotated[int, Field(ge=1, le=1000)] = 16
    """Deliveries at once in one worker; a slow receiver holds one for as long as the time-out."""
    webhook_backoff_seconds: Annotated[float, Field(gt=0)] = 5.0
    """Pause before the first retry; the second waits 5 times and the third 25 times as long, each with jitter."""
    webhook_connect_timeout_seconds: Annotated[float, Field(gt=0)] = 10.0
    """For connecting to a receiver, TLS included."""
    webhook_timeout_seconds: Annotated[float, Field(gt=0)] = 20.0
    """For one try in all, to the end of the answer."""
    webhook_sweep_seconds: Annotated[float, Field(gt=0)] = 10.0
    """How often a worker looks for deliveries that are due and that no job drives, as when Redis has lost them."""

    @cached_property
    def max_file_bytes(self) -> int:
        """The largest file that fits into 10,000 parts."""
        return S3_MAX_PARTS * self.part_bytes

    @cached_property
    def webhook_keys(self) -> list[bytes]:
        """What webhooks are signed with, the newest first; none when there is no secret."""
        return [] if self.webhook_secrets is None else _webhook_keys(self.webhook_secrets.get_secret_value())

    @cached_property
    def webhook_allowed(self) -> Allowed:
        """Where webhooks may go beside the public internet."""
        return _allowed(self.webhook_allow)

    @property
    def longest_stall_seconds(self) -> float:
        """How long an upload that lives may send S3 nothing: it waits for room, for its client, and for one request."""
        request_seconds = self.s3_connect_timeout_seconds + self.s3_read_timeout_seconds + self.part_bytes / (64 * KIB)
        return (
            self.admission_timeout_seconds
            + self.client_idle_timeout_seconds
            + self.s3_max_attempts * (request_seconds + 10)
        )

    @property
    def database_host(self) -> str:
        """Host and port of the database, without its credentials, for messages."""
        authority = self.database_url.get_secret_value().partition("://")[2].partition("?")[0].partition("/")[0]
        return authority.rpartition("@")[2] or "no host"

    @classmethod
    def unknown_names(cls, names: Iterable[str]) -> list[str]:
        """Of names of environment variables, those with our prefix that name no setting: typing mistakes, mostly."""
        prefix: str = cls.model_config["env_prefix"]
        known: Collection[str] = {f"{prefix}{field}".upper() for field in cls.model_fields}
        return sorted(name for name in names if name.upper().startswith(prefix) and name.upper() not in known)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.s3_access_key_id is None) != (self.s3_secret_access_key is None):
            msg = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY belong together: set both, or neither"
            raise ValueError(msg)
        if self.upload_budget_bytes < self.part_bytes:
            msg = (
                f"STREAM_API_UPLOAD_BUDGET_BYTES ({self.upload_budget_bytes}) is smaller than one part "
                f"(STREAM_API_PART_BYTES, {self.part_bytes}): no upload could ever start"
            )
            raise ValueError(msg)
        if self.batch_bytes > self.segment_bytes:
            msg = "STREAM_API_BATCH_BYTES must not be larger than STREAM_API_SEGMENT_BYTES: a batch lies in one segment"
            raise ValueError(msg)
        if self.orphan_seconds <= self.longest_stall_seconds:
            msg = (
                f"STREAM_API_ORPHAN_SECONDS ({self.orphan_seconds:g}) must be more than an upload that lives can stand "
                f"still ({self.longest_stall_seconds:g} s: STREAM_API_ADMISSION_TIMEOUT_SECONDS, "
                "STREAM_API_CLIENT_IDLE_TIMEOUT_SECONDS, and STREAM_API_S3_MAX_ATTEMPTS times the time-outs of S3 "
                "and the slowest sending of STREAM_API_PART_BYTES), "
                "or the janitor would remove it"
            )
            raise ValueError(msg)
        return self
