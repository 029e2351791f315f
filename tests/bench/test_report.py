from __future__ import annotations

import json
from pathlib import Path

from bench.frame import Chapter, Figure, Goal, Series
from bench.pictures import draw
from bench.report import decode, write


def _chapter(name: str, rate: float) -> Chapter:
    figure = Figure(
        name=f"{name}.rate",
        title="7 columns",
        unit="rows/s",
        values=[rate, 2 * rate],
        reference=r"psql \copy",
        reference_values=[100.0, 100.0],
        goal=Goal(must=1.3, aim=1.6),
    )
    return Chapter(
        name=name,
        title=name.title(),
        figures=[figure],
        series=[Series(name="memory", label="1 MB", xs=[0.0, 1.0], ys=[90.0, 95.5])],
        texts=["A table."],
        skipped=["pgloader is not installed"],
        pictures=["a.png"],
    )


def test_what_is_written_can_be_read_again(tmp_path: Path) -> None:
    chapter = _chapter("load", 150.0)
    write(tmp_path, [chapter], {"cores": "2"}, "quick")
    (document,) = json.loads((tmp_path / "latest.json").read_text())["chapters"]
    assert decode(document) == chapter
    assert (document["machine"], document["size"]) == ({"cores": "2"}, "quick")
    assert document["figures"][0]["ratio"] == {"median": 2.25, "low": 1.5, "high": 3.0}


def test_the_report_says_the_figures_the_goals_and_what_is_missing(tmp_path: Path) -> None:
    write(tmp_path, [_chapter("load", 100.0)], {"cores": "2"}, "quick")
    report = (tmp_path / "latest.md").read_text()
    assert r"| 7 columns, against psql \copy | 1.3 × | 1.6 × | 1.50 (1.00–2.00) | good enough |" in report
    assert r"| 7 columns | 150 (100–200) rows/s | psql \copy | 100 | 1.50 (1.00–2.00) |" in report
    for text in ("| cores | 2 |", "Not measured: pgloader", "A table.", "](a.png)", "Measured 2 times each."):
        assert text in report


def test_a_later_run_of_one_part_leaves_the_others(tmp_path: Path) -> None:
    write(tmp_path, [_chapter("load", 100.0), _chapter("upload", 200.0)], {"commit": "a"}, "full")
    write(tmp_path, [_chapter("load", 300.0)], {"commit": "b"}, "quick")
    chapters = json.loads((tmp_path / "latest.json").read_text())["chapters"]
    assert [(each["name"], each["machine"]["commit"], each["size"]) for each in chapters] == [
        ("load", "b", "quick"),
        ("upload", "a", "full"),
    ]
    assert chapters[0]["figures"][0]["values"] == [300, 600]


def test_pictures_are_drawn_where_there_is_something_to_draw(tmp_path: Path) -> None:
    assert draw(_chapter("memory", 1.0), tmp_path) == ["memory.png"]
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")
    assert draw(Chapter(name="memory", title="Memory"), tmp_path) == []
    assert draw(Chapter(name="unknown", title="Unknown"), tmp_path) == []
