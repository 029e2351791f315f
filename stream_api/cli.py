"""The command `stream-api` and its roles."""

from __future__ import annotations

import argparse
import asyncio
import errno
import os
import socket
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog
from pydantic import SecretStr, ValidationError

from stream_api import logs
from stream_api.config import Settings
from stream_api.errors import Failure

log = structlog.get_logger()

#: Exit codes: as for most commands, 1 is a failure and 2 a mistake in how it was called or set up.
_FAILED, _USAGE, _INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one role and return the exit code.

    :param arguments: those of the process unless given.
    """
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except ValidationError as exc:
        for sentence in _sentences(exc):
            print(f"stream-api: {sentence}", file=sys.stderr)
        return _USAGE
    except Failure as exc:
        print(f"stream-api: {exc.title.lower()}: {exc.detail}", file=sys.stderr)
        return _FAILED
    except KeyboardInterrupt:
        return _INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stream-api",
        description="Takes CSV files of any size over HTTP and loads them into PostgreSQL.",
        epilog="Settings are environment variables: see README.md.",
    )
    parser.add_argument("--version", action="version", version=version("stream-api"))
    roles = parser.add_subparsers(dest="role", required=True, metavar="ROLE")

    def add(role: str, what: str) -> argparse.ArgumentParser:
        return roles.add_parser(role, help=what, description=f"{what[0].upper()}{what[1:]}.", epilog=parser.epilog)

    serve = add("serve", "the HTTP API, and a worker beside it")
    serve.add_argument("--host", help="address to listen on (default: STREAM_API_HOST, or 127.0.0.1)")
    serve.add_argument("--port", type=int, help="port to listen on (default: STREAM_API_PORT, or 3002)")
    serve.add_argument("--no-worker", action="store_true", help="leave the loads to `stream-api worker`")

    add("worker", "a worker alone: loads what was uploaded")
    check = add("check-datasets", "say what is wrong with a file of datasets, or that nothing is")
    check.add_argument("file", type=Path, metavar="FILE", help="as STREAM_API_DATASETS names it")
    add("migrate", "create or update the tables in the database")

    dev = add("dev", "everything on this machine, without Docker: for development and trials")
    dev.add_argument("--data-dir", type=Path, metavar="DIR", help="where the servers keep their data (default: .dev)")
    dev.add_argument("--port", type=int, help="port of the service, 0 for a free one (default: 3002)")
    dev.add_argument("--services-only", action="store_true", help="start the servers, leave the service to you")
    dev.add_argument(
        "--store", choices=["seaweedfs", "minio"], default="seaweedfs", help="the object storage (default: seaweedfs)"
    )
    return parser


def _run(options: argparse.Namespace) -> int:
    # Each role imports what it needs: pyarrow and the S3 client take most of a second.
    if options.role == "dev":
        return _dev(options)
    if options.role == "check-datasets":
        return _check_datasets(options.file)
    given: dict[str, Any] = {}
    if options.role == "serve":
        given = {name: getattr(options, name) for name in ("host", "port") if getattr(options, name) is not None}
    settings = Settings(**given)
    logs.configure(settings.log_format, settings.log_level)
    for name in Settings.unknown_names(os.environ):
        log.warning("settings.unknown", name=name, detail="No setting has this name: see the table in README.md.")
    if options.role == "migrate":
        return _migrate(settings)
    return _service(settings, options)


def _service(settings: Settings, options: argparse.Namespace) -> int:
    from stream_api import app  # noqa: PLC0415
    from stream_api.datasets.file import DatasetsInvalid  # noqa: PLC0415
    from stream_api.memory import MemoryLimitTooLow  # noqa: PLC0415

    role = app.work(settings) if options.role == "worker" else app.serve(settings, worker=not options.no_worker)
    try:
        asyncio.run(role)
    except MemoryLimitTooLow as exc:
        print(f"stream-api: {exc}", file=sys.stderr)
        return _USAGE
    except DatasetsInvalid as exc:
        return _refuse(exc)
    except OSError as exc:
        if isinstance(exc, socket.gaierror):
            why = "this host has no address"
        elif exc.errno in {errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES}:
            # uvloop and asyncio word these differently; the errno is the same.
            why = os.strerror(exc.errno).lower()
        else:
            raise
        print(
            f"stream-api: cannot listen on {settings.host}:{settings.port} (STREAM_API_HOST, STREAM_API_PORT): {why}",
            file=sys.stderr,
        )
        return _FAILED
    return 0


def _check_datasets(file: Path) -> int:
    from stream_api.datasets.file import DatasetsInvalid, read_datasets  # noqa: PLC0415

    try:
        datasets = read_datasets(file)
    except DatasetsInvalid as exc:
        print(exc, file=sys.stderr)
        return _FAILED
    print("\n".join(f"{name}: {dataset.table}" for name, dataset in datasets.items()) or "no datasets")
    return 0


def _migrate(settings: Settings) -> int:
    from stream_api.ledger.migrate import migrate  # noqa: PLC0415

    try:
        applied = asyncio.run(migrate(settings))
    except Failure as failure:
        detail = f"{failure.detail} (DATABASE_URL names {settings.database_host})"
        raise Failure(failure.code, detail) from failure
    print("\n".join(f"applied {name}" for name in applied) or "nothing to apply")
    return 0


def _dev(options: argparse.Namespace) -> int:
    from stream_api.datasets.file import DatasetsInvalid  # noqa: PLC0415

    try:
        from stream_api.dev import run  # noqa: PLC0415
        from stream_api.dev.server import ServerFailed  # noqa: PLC0415
        from stream_api.dev.stack import StackInUse, default_folder  # noqa: PLC0415
    except ImportError as exc:
        print(f"stream-api: {exc}. Install the embedded servers: pip install 'stream-api[dev]'", file=sys.stderr)
        return _USAGE
    folder = options.data_dir or default_folder()
    try:
        return run.run(folder, store=options.store, port=options.port, services_only=options.services_only)
    except DatasetsInvalid as exc:
        return _refuse(exc)
    except (ServerFailed, StackInUse, OSError) as exc:
        print(f"stream-api: {exc}", file=sys.stderr)
        return _FAILED


def _refuse(problems: Exception) -> int:
    print(f"stream-api: the file of datasets (STREAM_API_DATASETS) is not right:\n{problems}", file=sys.stderr)
    return _USAGE


def _sentences(error: ValidationError) -> list[str]:
    """What is wrong with the settings, by the names that the user wrote; never a secret's value."""
    sentences = []
    for each in error.errors(include_url=False, include_context=False):
        message = each["msg"].removeprefix("Value error, ")
        if not each["loc"]:
            sentences.append(message)
            continue
        given = str(each["loc"][0])
        field = Settings.model_fields.get(given)
        name = f"STREAM_API_{given.upper()}" if field is not None and field.validation_alias is None else given
        secret = any(
            SecretStr in (known.annotation, *getattr(known.annotation, "__args__", ()))
            for key, known in Settings.model_fields.items()
            if given in (key, known.validation_alias)
        )
        value = "" if secret else f" (it is {each['input']!r})"
        sentences.append(f"{name}: {message[0].lower()}{message[1:]}{value}")
    return sentences
