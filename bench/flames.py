"""Stacks as they were sampled, by stage and as a flame graph.

py-spy's raw form has in each line a stack, outermost frame first, and how often it was seen. It takes threads that
wait for work for threads at work where it cannot tell (a pool's queue, the event loop's selector), so these are left
out here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from typing import Final

#: What a frame belongs to, by its file; the innermost frame that belongs to something decides. Only a stack in which no
#: frame does is the event loop's own, whose frames are everywhere.
_STAGES: Final = (
    ("cut records", re.compile(r"load/(grammar|cutter|encodings)\.py"), "#c65353"),
    ("parse", re.compile(r"load/parser\.py"), "#d98545"),
    ("encode", re.compile(r"load/encoder\.py"), "#d9b545"),
    ("ask Postgres about values", re.compile(r"load/(judge|turns)\.py"), "#a0b040"),
    ("validate", re.compile(r"load/(validator|columns/\w+|pieces|refusals|computed|flaws)\.py"), "#66aa55"),
    ("send to Postgres", re.compile(r"(load/(feeder|transacting|violations|sieve)|ledger/\w+)\.py|asyncpg"), "#4aa58c"),
    (
        "read from the store",
        re.compile(r"(load/(reader|source)|storage/\w+)\.py|botocore|aiohttp/(client|http_parser)"),
        "#4893bd",
    ),
    ("status and jobs", re.compile(r"(status/\w+|jobs/\w+|load/(reporting|recorder))\.py|bullmq|redis"), "#5570c0"),
    ("HTTP", re.compile(r"stream_api/(http|upload)/\w+\.py|aiohttp/web"), "#8062b8"),
    ("channels", re.compile(r"stream_api/flow/\w+\.py|load/(pipeline|model)\.py"), "#aa5fa8"),
)
_LOOP: Final = re.compile(r"asyncio/|selectors\.py")
_LOOPS, OTHER = "the event loop itself", "other"
_COLOURS: Final = {**{stage: colour for stage, _, colour in _STAGES}, _LOOPS: "#999999", OTHER: "#bbbbbb"}
#: Innermost frames of a thread that waits for work.
_WAITING: Final = re.compile(r"^_worker \(concurrent/futures/|select \(selectors\.py|wait \(threading\.py")
#: Outermost frames that are the same for everything.
_WRAPPING: Final = re.compile(
    r"runpy|stream_api/(__main__|cli)\.py|bench/launcher|asyncio/(runners|base_events|events)\.py|threading\.py|futures/"
)
_LINE: Final = re.compile(r":\d+\)$")
_FONT: Final = 'font-family="monospace" font-size="11"'
_WIDTH, _HEIGHT, _LEAST_WIDTH, _LETTER = 1200, 17, 0.6, 6.6

Stacks = Counter[tuple[str, ...]]


def read_stacks(text: str) -> Stacks:
    """Stacks of threads at work: the thread's name, then its frames without their line numbers."""
    found: Stacks = Counter()
    for line in text.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        if not count.isdecimal() or _WAITING.search(frames[-1]):
            continue
        first = next((number for number, each in enumerate(frames[1:], 1) if not _WRAPPING.search(each)), len(frames))
        # `thread (0x7f…): load_0` or `thread (123): load_0`
        name = frames[0].partition("): ")[2] or frames[0]
        found[(name, *(_LINE.sub(")", each) for each in frames[first:] or frames[-1:]))] += int(count)
    return found


def count_stages(stacks: Stacks) -> Counter[str]:
    """How often each stage was seen."""
    seen: Counter[str] = Counter()
    for frames, count in stacks.items():
        seen[_stage_of(frames)] += count
    return seen


def _stage_of(frames: tuple[str, ...]) -> str:
    for frame in reversed(frames):
        for stage, pattern, _ in _STAGES:
            if pattern.search(frame):
                return stage
    return _LOOPS if any(map(_LOOP.search, frames)) else OTHER


@dataclass
class _Node:
    count: int = 0
    children: dict[str, _Node] = field(default_factory=dict)


def draw_flames(stacks: Stacks, title: str) -> str:
    """A flame graph as SVG: outermost frames at the top, wide is often, colours are stages; names show at the mouse."""
    root = _Node()
    for frames, count in stacks.items():
        node = root
        node.count += count
        for frame in frames:
            node = node.children.setdefault(frame, _Node())
            node.count += count
    depth = max(map(len, stacks), default=0)
    stages = count_stages(stacks)
    legend = [
        f'<text x="{10 + 290 * (number % 4)}" y="{40 + 16 * (number // 4)}" fill="{_COLOURS[stage]}">■ '
        f"{escape(stage)} {count / (root.count or 1):.1%}</text>"
        for number, (stage, count) in enumerate(stages.most_common())
    ]
    top = 48 + 16 * ((len(legend) + 3) // 4)
    boxes = list(_boxes(root, (), 0.0, _WIDTH / (root.count or 1), top))
    height = top + (depth + 1) * _HEIGHT
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" {_FONT}>',
            f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
            f'<text x="10" y="20" font-size="14">{escape(title)}</text>',
            *legend,
            *boxes,
            "</svg>",
            "",
        ]
    )


def _boxes(node: _Node, above: tuple[str, ...], left: float, scale: float, top: int) -> Iterator[str]:
    for name, child in sorted(node.children.items()):
        width = child.count * scale
        if width >= _LEAST_WIDTH:
            frames = (*above, name)
            short = name[: int((width - 4) / _LETTER)] if width > 4 * _LETTER else ""
            y = top + len(above) * _HEIGHT
            yield (
                f'<g><title>{escape(name)}: {child.count} samples</title><rect x="{left:.1f}" y="{y}" '
                f'width="{max(width - 0.4, 0.2):.1f}" height="{_HEIGHT - 1}" fill="{_COLOURS[_stage_of(frames)]}"/>'
                f'<text x="{left + 2:.1f}" y="{y + 12}">{escape(short)}</text></g>'
            )
            yield from _boxes(child, frames, left, scale, top)
        left += width
