from __future__ import annotations

from xml.etree import ElementTree as ET

from bench.flames import count_stages, draw_flames, read_stacks

STACKS = """\
thread (1): MainThread;run (asyncio/runners.py:190);_copy (stream_api/load/feeder.py:10) 3
thread (1): MainThread;run (asyncio/runners.py:190);_copy (stream_api/load/feeder.py:12) 2
thread (1): MainThread;run (asyncio/runners.py:190);select (selectors.py:468) 90
thread (2): load_0;_bootstrap (threading.py:1);parse (stream_api/load/parser.py:20);count (stream_api/load/grammar.py:5) 4
thread (2): load_0;_bootstrap (threading.py:1);_worker (concurrent/futures/thread.py:81) 50
thread (2): load_0;_bootstrap (threading.py:1);<lambda> (somewhere.py:1) 1
no count at all
"""  # noqa: E501


def test_threads_that_wait_are_left_out_and_line_numbers_are_forgotten() -> None:
    assert read_stacks(STACKS) == {
        ("MainThread", "_copy (stream_api/load/feeder.py)"): 5,
        ("load_0", "parse (stream_api/load/parser.py)", "count (stream_api/load/grammar.py)"): 4,
        ("load_0", "<lambda> (somewhere.py)"): 1,
    }


def test_stages_are_counted_by_the_innermost_frame_that_tells() -> None:
    assert count_stages(read_stacks(STACKS)) == {"send to Postgres": 5, "cut records": 4, "other": 1}


def test_what_a_stage_does_in_the_event_loop_is_that_stage() -> None:
    stacks = """\
thread (1): MainThread;_copy (asyncpg/connection.py:3);write (asyncio/selector_events.py:9) 2
thread (1): MainThread;_run_once (asyncio/base_events.py:3);_read_ready (asyncio/selector_events.py:9) 7
"""
    assert count_stages(read_stacks(stacks)) == {"send to Postgres": 2, "the event loop itself": 7}


def test_a_flame_graph_is_svg_as_wide_as_what_was_seen() -> None:
    svg = "{http://www.w3.org/2000/svg}"
    picture = ET.fromstring(draw_flames(read_stacks(STACKS), "a < b"))  # noqa: S314 - our own
    boxes = {each.findtext(f"{svg}title"): each.find(f"{svg}rect") for each in picture.iter(f"{svg}g")}
    assert set(boxes) == {
        "MainThread: 5 samples",
        "_copy (stream_api/load/feeder.py): 5 samples",
        "load_0: 5 samples",
        "parse (stream_api/load/parser.py): 4 samples",
        "count (stream_api/load/grammar.py): 4 samples",
        "<lambda> (somewhere.py): 1 samples",
    }
    widths = {title: float(box.get("width", 0)) for title, box in boxes.items() if box is not None}
    assert widths["load_0: 5 samples"] == widths["MainThread: 5 samples"] > widths["<lambda> (somewhere.py): 1 samples"]


def test_of_nothing_there_is_an_empty_picture() -> None:
    assert ET.fromstring(draw_flames(read_stacks(""), "nothing")).tag.endswith("svg")  # noqa: S314 - our own
