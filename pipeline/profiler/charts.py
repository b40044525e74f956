"""Charts as inline SVG: pure functions of numbers, drawn in the colours of the page (page_style.py).

A chart scales with its place: ``plot`` keeps its proportions; a ``bar`` is stretched, so that the words beside it,
which are HTML, keep their size on a telephone.
"""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Callable, Sequence

from .figures import short

Points = Sequence[tuple[float, float]]

# Of a plot, in its own units: 13 of them are the height of its letters.
WIDTH, HEIGHT = 400, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 24, 26, 42
_FOOT = HEIGHT - _BOTTOM + 17  # where the numbers below stand


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Some ``count`` round numbers that cover [low, high] from the outside; ``high`` must be above ``low``."""
    rough = (high - low) / count
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * size for factor in (1, 2, 2.5, 5, 10, 20) if factor * size >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [position * step for position in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, every n-th of them, at most about six, that cover [low, high] from the outside; ``low`` > 0."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    step = max(1, math.ceil((last - first) / 6))
    return [10.0**power for power in range(first, max(last, first + 1) + step, step)]


@dataclasses.dataclass(frozen=True)
class Axis:
    """One direction of a plot."""

    label: str
    ticks: Sequence[float]  # the first and the last are its ends
    log: bool = False
    text: Callable[[float], str] = short

    def at(self, value: float) -> float:
        """Where a value lies, 0 to 1; what is beyond an end lies on it."""
        low, high, value = self.ticks[0], self.ticks[-1], min(max(value, self.ticks[0]), self.ticks[-1])
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low)


def axis(label: str, most: float) -> Axis:
    """From 0 to ``most``, or to 1 where that is nothing."""
    return Axis(label, nice_ticks(0, most if 0 < most < math.inf else 1))


def log_axis(label: str, values: Sequence[float], text: Callable[[float], str]) -> Axis:
    """Over all values, which are above 0."""
    return Axis(label, log_ticks(min(values, default=1), max(values, default=10)), log=True, text=text)


@dataclasses.dataclass(frozen=True)
class Plot:
    """Two axes, and where values lie between them in the plot's units."""

    across: Axis
    up: Axis

    def x(self, value: float) -> float:
        return _LEFT + self.across.at(value) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - _BOTTOM - self.up.at(value) * (HEIGHT - _TOP - _BOTTOM)


Mark = Callable[[Plot], str]  # draws something into a plot


def draw(title: str, description: str, plot: Plot, *marks: Mark) -> str:
    """The axes and all marks. ``title`` and ``description`` are for whoever does not see it."""
    axes = _label(plot.up.label, 4, 14)
    for tick in plot.up.ticks:
        at = plot.y(tick)
        axes += f'<path class="grid" d="M{_LEFT} {at:.1f}H{WIDTH - _RIGHT}"/>'
        axes += _label(plot.up.text(tick), _LEFT - 6, at + 4, anchor="end", kind="tick")
    for tick in plot.across.ticks:
        axes += _label(plot.across.text(tick), plot.x(tick), _FOOT, anchor="middle", kind="tick")
    axes += _label(plot.across.label, (_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 5, anchor="middle")
    return (
        f'<svg class="plot" role="img" viewBox="0 0 {WIDTH} {HEIGHT}"><title>{_text(title)}</title>'
        f"<desc>{_text(description)}</desc>{axes}{''.join(mark(plot) for mark in marks)}</svg>"
    )


def _label(text: str, x: float, y: float, *, anchor: str = "start", kind: str = "label") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{_text(text)}</text>'


def line(points: Points) -> Mark:
    """Straight from point to point."""

    def mark(plot: Plot) -> str:
        path = "L".join(f"{plot.x(a):.1f} {plot.y(b):.1f}" for a, b in points)
        return f'<path class="line" d="M{path}"/>' if points else ""

    return mark


def dots(points: Points, *, hole: bool = False) -> Mark:
    """A dot for each point; or the hole in one, which makes it hollow."""

    def mark(plot: Plot) -> str:
        path = "".join(f"M{plot.x(a):.1f} {plot.y(b):.1f}h0" for a, b in points)
        return f'<path class="{"hole" if hole else "dots"}" d="{path}"/>' if points else ""

    return mark


def cloud(points: Points) -> Mark:
    """Small dots through which others are seen."""

    def mark(plot: Plot) -> str:
        return f'<path class="cloud" d="{"".join(f"M{plot.x(a):.0f} {plot.y(b):.0f}h0" for a, b in points)}"/>'

    return mark


def steps(points: Points, end: float) -> Mark:
    """Each value holds until the next, the last until ``end``. Of what falls together: the mean, in a band."""

    def mark(plot: Plot) -> str:
        together: dict[int, list[float]] = {}
        for a, b in points:
            together.setdefault(4 * round(plot.x(a) / 4), []).append(b)
        places = [*together, round(plot.x(end))]
        line = band = ""
        for left, right, values in zip(places, places[1:], together.values(), strict=False):
            mean = plot.y(sum(values) / len(values))
            line += f"{'V' if line else f'M{left} '}{mean:.1f}H{right}"
            band += f"M{left} {plot.y(min(values)):.0f}V{plot.y(max(values)):.0f}H{right}V{plot.y(min(values)):.0f}z"
        return f'<path class="band" d="{band}"/><path class="line" d="{line}"/>' if line else ""

    return mark


def columns(edges: Sequence[float], counts: Sequence[float]) -> Mark:
    """A histogram: ``counts`` between ``edges``, of which there is one more."""

    def mark(plot: Plot) -> str:
        path = ""
        for low, high, count in zip(edges, edges[1:], counts, strict=False):
            left, right = plot.x(low) + 0.5, plot.x(high) - 0.5
            path += f"M{left:.1f} {plot.y(0):.1f}V{plot.y(count):.1f}H{right:.1f}V{plot.y(0):.1f}z" if count else ""
        return f'<path class="fill" d="{path}"/>'

    return mark


def across(value: float, label: str) -> Mark:
    """A dashed line at a height, its name on it."""

    def mark(plot: Plot) -> str:
        at = plot.y(value)
        return f'<path class="mark" d="M{_LEFT} {at:.1f}H{WIDTH - _RIGHT}"/>' + _label(label, _LEFT + 4, at - 5)

    return mark


def upright(value: float, label: str) -> Mark:
    """A dotted line at a place, its name beside it, on the side where there is room."""

    def mark(plot: Plot) -> str:
        at = plot.x(value)
        offset, anchor = (-5, "end") if plot.across.at(value) > 0.5 else (5, "start")
        path = f'<path class="knee" d="M{at:.1f} {_TOP}V{HEIGHT - _BOTTOM}"/>'
        return path + _label(label, at + offset, HEIGHT - _BOTTOM - 8, anchor=anchor)

    return mark


def bar(
    title: str,
    value: float,
    *,
    full: float,
    start: float = 0,
    low: float | None = None,
    high: float | None = None,
    mark: float | None = None,
    hollow: bool = False,
) -> str:
    """One bar from ``start``, ``value`` long, in a place that is ``full`` wide, without words.

    ``low`` to ``high`` is a whisker, ``mark`` a dashed line across, ``hollow`` an outline for what was not measured.
    """

    def at(position: float) -> str:
        return f"{100 * min(max(position / full, 0), 1):.2f}" if 0 < full < math.inf else "0"

    end, shape = at(start + value), "hollow" if hollow else "fill"
    parts = f'<path class="track" d="M0 0H101V10H0z"/><path class="{shape}" d="M{at(start)} 1H{end}V9H{at(start)}z"/>'
    if low is not None and high is not None:
        parts += f'<path class="whisker" d="M{at(low)} 5H{at(high)}M{at(low)} 3V7M{at(high)} 3V7"/>'
    if mark is not None:
        parts += f'<path class="halo" d="M{at(mark)} 0V10"/><path class="mark" d="M{at(mark)} 0V10"/>'
    head = f'<svg class="bar" role="img" viewBox="0 0 101 10" preserveAspectRatio="none"><title>{_text(title)}</title>'
    return f"{head}{parts}</svg>"


def _text(value: str) -> str:
    return html.escape(value)
