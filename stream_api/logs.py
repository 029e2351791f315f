"""Logging: structlog for ourselves, with the standard library's loggers (aiohttp, botocore …) led into it.

Events have static dotted names and fields: `log.info("upload.part_sent", part_number=3, size_bytes=8388608)`.
"""

from __future__ import annotations

import logging
import sys
from typing import Literal, TextIO

import structlog
from structlog.typing import Processor

#: What these say at INFO and below is noise in a service: each request, each retry of a library, each selector.
_NOISY = ("aiohttp.access", "aiobotocore", "asyncio", "botocore", "urllib3")


def configure(
    log_format: Literal["auto", "json", "console"] = "auto",
    level: Literal["debug", "info", "warning", "error"] = "info",
    *,
    stream: TextIO | None = None,
) -> None:
    """Set up logging for this process; may be called again, and the last call stands.

    :param log_format: `json` is one object a line; `console` is for people; `auto` is `console` on a terminal.
    :param level: events below it are dropped.
    :param stream: where lines go; standard error when unset, so that standard output stays for results.
    """
    target = sys.stderr if stream is None else stream
    as_json = log_format == "json" or (log_format == "auto" and not target.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        # Caching would bind modules that log early to the first configuration for ever.
        cache_logger_on_first_use=False,
    )
    rendering: list[Processor]
    if as_json:
        rendering = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        # Plain tracebacks: the pretty ones print local variables, and those hold credentials.
        rendering = [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(capture=True)
