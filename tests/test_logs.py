from __future__ import annotations

import io
import json
import logging

import pytest
import structlog

from stream_api import logs

pytestmark = pytest.mark.usefixtures("kept_logging")


def _lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_our_events_are_one_json_object_a_line() -> None:
    stream = io.StringIO()
    logs.configure("auto", "info", stream=stream)
    structlog.get_logger("stream_api.upload").info("upload.part_sent", part_number=3, size_bytes=8_388_608)
    (line,) = _lines(stream)
    assert line.pop("timestamp")
    assert line == {
        "event": "upload.part_sent",
        "level": "info",
        "logger": "stream_api.upload",
        "part_number": 3,
        "size_bytes": 8_388_608,
    }


def test_loggers_of_libraries_are_led_into_ours() -> None:
    stream = io.StringIO()
    logs.configure("json", "info", stream=stream)
    logging.getLogger("aiohttp.server").error("broken %s", "pipe", exc_info=ValueError("why"))
    (line,) = _lines(stream)
    assert (line["event"], line["logger"], line["level"]) == ("broken pipe", "aiohttp.server", "error")
    assert "ValueError: why" in str(line["exception"])


def test_levels_below_the_wanted_one_and_chatter_are_dropped() -> None:
    stream = io.StringIO()
    logs.configure("json", "info", stream=stream)
    structlog.get_logger("stream_api").debug("dropped")
    logging.getLogger("aiohttp.access").info("GET /healthz")
    assert _lines(stream) == []


def test_fields_of_the_context_are_added() -> None:
    stream = io.StringIO()
    logs.configure("json", "info", stream=stream)
    with structlog.contextvars.bound_contextvars(upload_id="u1"):
        structlog.get_logger("stream_api").info("load.started")
    assert _lines(stream)[0]["upload_id"] == "u1"


def test_console_is_for_people_and_shows_no_local_variables() -> None:
    stream = io.StringIO()
    logs.configure("console", "info", stream=stream)
    password = "hunter2"
    try:
        _ = len(password) / 0
    except ZeroDivisionError:
        structlog.get_logger("stream_api").exception("load.failed")
    text = stream.getvalue()
    assert "load.failed" in text
    assert "ZeroDivisionError" in text
    assert password not in text
