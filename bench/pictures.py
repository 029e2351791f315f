"""Pictures of what was measured, as PNG. Drawn without a display."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from bench.frame import Chapter, Figure, Series

_LIMIT_MEGABYTES: Final = 512
_SIZE: Final = (8.0, 4.5)
_DPI: Final = 120


def draw(chapter: Chapter, folder: Path) -> list[str]:
    """Draw the pictures of a chapter into a folder; their names."""
    drawn = []
    for name, paint in _PICTURES.get(chapter.name, {}).items():
        drawing = Drawing(figsize=_SIZE, layout="constrained")
        axes = drawing.subplots()
        if paint(axes, chapter):
            # Without a date inside, so that the same figures give the same file.
            drawing.savefig(folder / name, dpi=_DPI, metadata={"Software": None})
            drawn.append(name)
    return drawn


def _series(chapter: Chapter, name: str) -> list[Series]:
    return [each for each in chapter.series if each.name == name]


def _ratios(axes: Axes, figures: list[Figure], title: str) -> bool:
    """Bars of the median ratios, with their spread; the line is the reference."""
    shown = [(figure.title, figure.ratio) for figure in figures]
    bars = [(label, ratio) for label, ratio in shown if ratio is not None]
    if not bars:
        return False
    labels = [label for label, _ in bars][::-1]
    ratios = [ratio for _, ratio in bars][::-1]
    medians = [ratio.median for ratio in ratios]
    spread = [[r.median - r.low for r in ratios], [r.high - r.median for r in ratios]]
    axes.barh(labels, medians, xerr=spread, capsize=3, color="#4878a8")
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xlabel("times the reference: median, least and greatest")
    axes.tick_params(axis="y", labelsize=7)
    axes.set_title(title)
    return True


def _loads(axes: Axes, chapter: Chapter) -> bool:
    figures = [each for each in chapter.figures if each.reference == r"psql \copy"]
    return _ratios(axes, figures, r"Rows a second against psql \copy of the same file")


def _uploads(axes: Axes, chapter: Chapter) -> bool:
    figures = [each for each in chapter.figures if each.name.endswith(".put")]
    return _ratios(axes, figures, "Uploads against a plain PUT into the same store")


def _memory(axes: Axes, chapter: Chapter) -> bool:
    curves = _series(chapter, "memory")
    for curve in curves:
        axes.plot(curve.xs, curve.ys, label=curve.label, linewidth=1)
    axes.axhline(_LIMIT_MEGABYTES, color="red", linestyle="--", label="limit")
    axes.set(ylim=(0, _LIMIT_MEGABYTES * 1.1), xlabel="seconds since the start of the upload", ylabel="MB")
    axes.set_title("Resident memory of the service, upload and load")
    axes.legend()
    return bool(curves)


def _lag(axes: Axes, chapter: Chapter) -> bool:
    curves = _series(chapter, "together.alone.lag")
    for curve in curves:
        axes.plot([100 * x for x in curve.xs], curve.ys, label=curve.label)
    axes.set(xlabel="percentile", ylabel="ms", yscale="log", title="How late the event loop is while a load runs")
    axes.legend()
    return bool(curves)


def _curves(name: str, title: str, xlabel: str, ylabel: str, scale: str) -> Callable[[Axes, Chapter], bool]:
    def paint(axes: Axes, chapter: Chapter) -> bool:
        curves = _series(chapter, name)
        for curve in curves:
            axes.plot(curve.xs, curve.ys, marker="o", label=curve.label)
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel, xscale=scale)
        if name == "curve.seconds":
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.legend()
        return bool(curves)

    return paint


_PICTURES: Final[dict[str, dict[str, Callable[[Axes, Chapter], bool]]]] = {
    "load": {"load.png": _loads},
    "upload": {"upload.png": _uploads},
    "memory": {"memory.png": _memory},
    "together": {"lag.png": _lag},
    "scaling": {
        "curve-seconds.png": _curves("curve.seconds", "Time against rows", "rows", "seconds", "log"),
        "curve-memory.png": _curves("curve.memory", "Peak memory against rows", "rows", "MB", "log"),
        "delay.png": _curves("delay", "A distant database", "round trip in ms", "rows/s", "linear"),
        "workers.png": _curves("workers", "Workers on one queue", "worker processes", "rows/s", "linear"),
    },
}
