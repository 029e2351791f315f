"""Results as JSON, for programs, and as Markdown, for readers.

A run of some chapters replaces these and leaves the others as they were measured, each with its own machine.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from bench.frame import Chapter, Figure, Goal, Series, Spread

_VERDICTS: Final = {"aim": "reached the aim", "must": "good enough", "missed": "**missed**"}


def write(folder: Path, chapters: list[Chapter], machine: dict[str, str], size: str) -> None:
    """Put chapters into `latest.json`, and write `latest.md` anew from it.

    :param machine: see `machine.describe`. :param size: name of the `Sizes`.
    """
    file = folder / "latest.json"
    known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"chapters": []}
    fresh = {chapter.name: {**_encoded(chapter), "machine": machine, "size": size} for chapter in chapters}
    kept = [fresh.pop(each["name"], each) for each in known["chapters"]]
    document = {"chapters": [*kept, *fresh.values()]}
    file.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "latest.md").write_text(render(document), encoding="utf-8")


def _encoded(chapter: Chapter) -> dict[str, Any]:
    document = asdict(chapter)
    for figure, encoded in zip(chapter.figures, document["figures"], strict=True):
        # For programs that only want to look: what follows from the values.
        ratio = figure.ratio
        encoded |= {"median": figure.value.median, "ratio": None if ratio is None else asdict(ratio)}
        encoded["verdict"] = figure.verdict
    for series in document["series"]:
        series["xs"], series["ys"] = ([round(each, 4) for each in series[axis]] for axis in ("xs", "ys"))
    return document


def decode(document: dict[str, Any]) -> Chapter:
    """A chapter as it was before `write`."""
    figures = []
    for encoded in document["figures"]:
        known = {name: value for name, value in encoded.items() if name not in {"median", "ratio", "verdict"}}
        goal = known.pop("goal")
        figures.append(Figure(**known, goal=None if goal is None else Goal(**goal)))
    return Chapter(
        **{name: document[name] for name in ("name", "title", "texts", "skipped", "pictures")},
        figures=figures,
        series=[Series(**each) for each in document["series"]],
    )


def render(document: dict[str, Any]) -> str:
    """The report in Markdown."""
    chapters = [(decode(each), each["machine"], each["size"]) for each in document["chapters"]]
    lines = [
        "# What the bench has measured",
        "",
        "Written by `make bench` or `make bench-full`; how, is told in `docs/performance.md`. Each figure and its",
        "reference were measured in turns in the same run. A ratio is the median of the ratios of neighbouring",
        "measurements; what is in parentheses is the least and the greatest. MB are 2^20 bytes.",
        "",
        *_goals([figure for chapter, _, _ in chapters for figure in chapter.figures]),
    ]
    shown: dict[str, str] = {}
    for chapter, machine, size in chapters:
        lines += [f"## {chapter.title}", ""]
        # Of a later chapter only what is other than before.
        rows = [f"| {name} | {value} |" for name, value in machine.items() if shown.get(name) != value]
        lines += ["| machine | |", "|---|---|", *rows, ""] if rows else []
        shown = machine
        lines += [f"Size of the run: {size}.", "", *_figures(chapter)]
        for text in chapter.texts:
            lines += [text, ""]
        lines += [f"Not measured: {each}." for each in chapter.skipped] + ([""] if chapter.skipped else [])
        for picture in chapter.pictures:
            lines += [f"![{chapter.title}: {picture}]({picture})", ""]
    return "\n".join(lines).rstrip() + "\n"


def _goals(figures: list[Figure]) -> list[str]:
    judged = [figure for figure in figures if figure.goal is not None]
    if not judged:
        return []
    lines = ["## What it is to show", "", "| figure | must | aim | measured | |", "|---|---|---|---|---|"]
    for figure in judged:
        goal = figure.goal
        if goal is None:
            continue
        measured = figure.value if goal.of == "value" else figure.ratio
        unit = "×" if goal.of == "ratio" else figure.unit
        title = figure.title + (f", against {figure.reference}" if goal.of == "ratio" else "")
        bounds = f"{goal.must:g} {unit} | {goal.aim:g} {unit}"
        lines.append(f"| {title} | {bounds} | {_spread(measured)} | {_VERDICTS.get(figure.verdict or '', '')} |")
    return [*lines, ""]


def _figures(chapter: Chapter) -> list[str]:
    if not chapter.figures:
        return []
    lines = ["| figure | measured | reference | measured | ratio |", "|---|---|---|---|---|"]
    for figure in chapter.figures:
        reference = _spread(figure.reference_value)
        measured = f"{_spread(figure.value)} {figure.unit}".strip()
        title = f"{figure.title} [{figure.note}]" if figure.note else figure.title
        lines.append(f"| {title} | {measured} | {figure.reference} | {reference} | {_spread(figure.ratio)} |")
    runs = sorted({len(figure.values) for figure in chapter.figures})
    return [*lines, "", f"Measured {' or '.join(map(str, runs))} times each.", ""]


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return ""
    if spread.low == spread.high:
        return _number(spread.median)
    return f"{_number(spread.median)} ({_number(spread.low)}–{_number(spread.high)})"


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
