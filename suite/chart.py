"""Small charts as SVG text, for reports and pages: lines, bars and points on two axes, no library, no script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal

from numpy.typing import NDArray

WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 30, 42
COLOURS = ("#20639b", "#c8553d", "#3b8b5d", "#8a6d3b", "#7b5ea7", "#5d6873")
Values = Sequence[float] | NDArray[Any]


@dataclass(frozen=True)
class Series:
    """One set of points.

    Attributes:
        label: for the legend; empty: none.
        x, y: equally long; pairs that are not finite are left out.
        style: how they are drawn; a "guide" is a thin grey dashed line.
    """

    label: str
    x: Values
    y: Values
    style: Literal["line", "bars", "points", "guide"] = "line"


@dataclass(frozen=True)
class Chart:
    """Axes and what is on them.

    Attributes:
        title, x_label, y_label: texts.
        series: drawn in this order.
        log: logarithmic axes, of "x", "y" or "xy".
        zero: the y axis starts at zero.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    log: str = ""
    zero: bool = False
    marks: Sequence[tuple[float, float, str]] = field(default_factory=tuple)


def to_svg(chart: Chart) -> str:
    """The chart as one `<svg>` element.

    Raises:
        ValueError: no series has a point that can be drawn.
    """
    kept = [(s, _points(s, chart.log)) for s in chart.series]
    points = [p for _, some in kept for p in some]
    if not points:
        raise ValueError(f"the chart '{chart.title}' has no point to draw")
    x = _Axis([p[0] for p in points], LEFT, WIDTH - RIGHT, "x" in chart.log, False)
    y = _Axis([p[1] for p in points], HEIGHT - BOTTOM, TOP, "y" in chart.log, chart.zero)
    parts = [_frame(chart, x, y)]
    colours = iter(COLOURS * (1 + len(chart.series) // len(COLOURS)))
    legend = []
    for series, some in kept:
        colour = "#9aa3ab" if series.style == "guide" else next(colours)
        parts.append(_drawn(series.style, [(x(a), y(b)) for a, b in some], colour, y.start))
        legend += [(series.label, colour)] if series.label else []
    parts += [
        f'<text x="{LEFT + 8}" y="{TOP + 14 + 15 * i}" fill="{colour}">{escape(text)}</text>'
        for i, (text, colour) in enumerate(legend)
    ]
    style = 'font-family="system-ui, sans-serif" font-size="12" fill="#1d2227"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" {style}>'
    return head + f"<title>{escape(chart.title)}</title>" + "".join(parts) + "</svg>"


def _points(series: Series, log: str) -> list[tuple[float, float]]:
    pairs = [(float(a), float(b)) for a, b in zip(series.x, series.y, strict=True)]
    return [
        (a, b)
        for a, b in pairs
        if math.isfinite(a) and math.isfinite(b) and (a > 0 or "x" not in log) and (b > 0 or "y" not in log)
    ]


class _Axis:
    """From values to pixels, and round numbers for the ticks."""

    def __init__(self, values: Sequence[float], start: float, end: float, log: bool, zero: bool) -> None:
        self.log, self.start, self.end = log, start, end
        low, high = min(values), max(values)
        low = min(low, 0.0) if zero and not log else low
        low, high = (math.log10(low), math.log10(high)) if log else (low, high)
        pad = 0.04 * (high - low) or abs(high) or 1.0
        self.low, self.high = low if zero and not log else low - pad, high + pad

    def __call__(self, value: float) -> float:
        unit = ((math.log10(value) if self.log else value) - self.low) / (self.high - self.low)
        return self.start + unit * (self.end - self.start)

    def ticks(self) -> list[float]:
        raw = (self.high - self.low) / 5
        size = 10 ** math.floor(math.log10(raw))
        step = next(f * size for f in (1, 2, 5, 10) if f * size >= raw)
        step = max(1.0, round(step)) if self.log else step
        first = math.ceil(self.low / step - 1e-9)
        at = [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]
        if self.log and len(at) < 2:  # within a decade
            return [10**self.low * (10 ** (self.high - self.low)) ** (k / 4) for k in range(5)]
        return [10**v if self.log else v for v in at]


def _frame(chart: Chart, x: _Axis, y: _Axis) -> str:
    out = [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>']
    out.append(f'<text x="{LEFT}" y="18" font-weight="bold">{escape(chart.title)}</text>')
    line = 'stroke="#d5dade" stroke-width="1"'
    for value in x.ticks():
        out.append(f'<path d="M{x(value):.1f} {HEIGHT - BOTTOM}V{TOP}" {line}/>')
        out.append(f'<text x="{x(value):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{value:.4g}</text>')
    for value in y.ticks():
        out.append(f'<path d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}" {line}/>')
        out.append(f'<text x="{LEFT - 5}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    out.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(chart.x_label)}</text>')
    turned = f'transform="translate(13 {middle}) rotate(-90)" text-anchor="middle"'
    out.append(f"<text {turned}>{escape(chart.y_label)}</text>")
    out += [f'<text x="{x(a) + 5:.1f}" y="{y(b) - 5:.1f}">{escape(text)}</text>' for a, b, text in chart.marks]
    return "".join(out)


def _drawn(style: str, at: list[tuple[float, float]], colour: str, base: float) -> str:
    if style == "bars":
        wide = 0.85 * (abs(at[-1][0] - at[0][0]) / max(1, len(at) - 1) if len(at) > 1 else 30)
        rest = f'fill="{colour}" fill-opacity="0.75"'
        return "".join(
            f'<rect x="{a - wide / 2:.1f}" y="{min(b, base):.1f}" width="{wide:.1f}" height="{abs(base - b):.1f}" {rest}/>'
            for a, b in at
        )
    if style == "points":
        return "".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4" fill="{colour}"/>' for a, b in at)
    path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in at)
    dash = ' stroke-dasharray="5 4"' if style == "guide" else ""
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{1.2 if dash else 2}"{dash}/>'
