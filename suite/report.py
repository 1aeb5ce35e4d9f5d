"""`report.html`: one self-contained page about a run, for somebody who reads images and not code.

A domain fills a `Report` and calls `write_report`. Pictures are 8-bit grey PNG (lossless) inside the page, one per
slice and display window; the page needs no network, and without scripts it shows the middle slice of every stack. It
holds what it is given and nothing else: give it no names of patients, and no paths.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from suite import __version__
from suite.chart import Chart, to_svg

Windows = Mapping[str, tuple[float, float]]

MAX_SLICES = 64
MAX_BYTES = 24_000_000
MAX_PIXELS = 1024


@dataclass(frozen=True)
class Stack:
    """A stack of grey-scale slices.

    Attributes:
        label: what it is ("recon", "reference", "difference", "std").
        slices: `(z, y, x)`, or `(y, x)` for one slice; row 0 on top. NaN is shown black.
        windows: display window name -> (level, width) in the slices' unit; None: those of the figure.
    """

    label: str
    slices: np.ndarray
    windows: Windows | None = None


@dataclass(frozen=True)
class Figure:
    """Stacks of equal length shown side by side, scrolled and windowed together.

    Attributes:
        title: heading.
        stacks: at least one.
        windows: for the stacks that have none of their own; the first is shown first.
        caption: a sentence below (the unit of the windows, orientation, ...).
        aspect: height over width of a pixel.
        marks: what lies (left, right, above, below), e.g. ("R", "L", "A", "P"); None: not told.
    """

    title: str
    stacks: Sequence[Stack]
    windows: Windows
    caption: str = ""
    aspect: float = 1.0
    marks: tuple[str, str, str, str] | None = None


@dataclass(frozen=True)
class Report:
    """What the page says, in this order.

    Attributes:
        title: heading of the page.
        verdict: "pass", "check" (somebody should look), or "fail", with `reasons`, each a sentence.
        facts: name -> value, e.g. method, evaluations, seconds.
        metrics: rows of a table, one mapping column -> value each; the first row's keys are the columns.
        warnings: sentences.
        charts: line and bar charts, before the pictures.
        figures: pictures.
    """

    title: str
    verdict: Literal["pass", "check", "fail"]
    reasons: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, Any]] = ()
    warnings: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    figures: Sequence[Figure] = ()


def write_report(report: Report, path: Path) -> None:
    """Write the page, of about 25 MB at most: many or large slices are sampled evenly to `MAX_BYTES` of pictures.

    Raises:
        ValueError: the stacks of a figure differ in length, or a stack is neither `(y, x)` nor `(z, y, x)`.
    """
    budget = MAX_BYTES // max(1, len(report.figures))
    figures = [_figure(figure, budget) for figure in report.figures]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("suite"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = _number
    charts = [Markup(to_svg(chart)) for chart in report.charts]
    template = environment.get_template("report.html")
    page = template.render(report=report, charts=charts, figures=figures, version=__version__)
    path.write_text(page, encoding="utf-8")


def to_grey(image: np.ndarray, level: float, width: float) -> np.ndarray:
    """Values through a display window to 0..255: black at `level - width/2`, white at `level + width/2`."""
    low = level - width / 2
    unit = (np.nan_to_num(image, nan=low) - low) / (width if width > 0 else 1.0)
    grey: np.ndarray = np.rint(np.clip(unit, 0.0, 1.0) * 255.0).astype(np.uint8)
    return grey


def _png(image: np.ndarray, window: tuple[float, float]) -> str:
    """One slice through a window as base64 PNG, reduced by a whole factor above `MAX_PIXELS` a side."""
    picture = Image.fromarray(to_grey(image, *window)).reduce(math.ceil(max(image.shape) / MAX_PIXELS))
    stream = io.BytesIO()
    picture.save(stream, format="PNG", compress_level=4)  # a fifth of the time of the highest, 2 % larger
    return base64.b64encode(stream.getvalue()).decode("ascii")


def _figure(figure: Figure, budget: int) -> dict[str, Any]:
    """The figure as the template wants it; `data` is what its script reads."""
    volumes = [np.asarray(stack.slices, dtype=np.float32) for stack in figure.stacks]
    volumes = [volume[None] if volume.ndim == 2 else volume for volume in volumes]
    if any(volume.ndim != 3 for volume in volumes) or len({len(volume) for volume in volumes}) != 1:
        raise ValueError(f"figure '{figure.title}': stacks of one length, (y, x) or (z, y, x), are needed")
    windows = [figure.windows if stack.windows is None else stack.windows for stack in figure.stacks]
    chosen = _choose(volumes, windows, budget)
    start = len(chosen) // 2
    stacks = [_pictures(volume[chosen], ws) for volume, ws in zip(volumes, windows, strict=True)]
    shown = [
        {
            "label": s.label,
            "columns": v.shape[2],
            "rows": v.shape[1] * figure.aspect,
            "text": p[0]["text"],
            "png": p[0]["png"][start],
        }
        for s, v, p in zip(figure.stacks, volumes, stacks, strict=True)
    ]
    for pictures in stacks:
        pictures[0]["png"][start] = None  # already in the page
    return {
        "title": figure.title,
        "caption": figure.caption,
        "marks": dict(zip(("left", "right", "above", "below"), figure.marks or (), strict=False)),
        "windows": list(figure.windows),
        "shown": shown,
        "total": len(volumes[0]),
        "reduced": any(max(volume.shape[1:]) > MAX_PIXELS for volume in volumes),
        "data": {"start": start, "slices": [index + 1 for index in chosen], "stacks": stacks},
    }


def _choose(volumes: Sequence[np.ndarray], windows: Sequence[Windows], budget: int) -> list[int]:
    """Evenly spread slices, as many as `MAX_SLICES` and the budget of bytes allow; a single one is the middle one."""
    total = len(volumes[0])
    cost = sum(
        len(_png(v[total // 2], window)) for v, ws in zip(volumes, windows, strict=True) for window in ws.values()
    )
    count = min(total, MAX_SLICES, budget // cost)
    if count < 2:
        return [total // 2]
    return [round(i) for i in np.linspace(0, total - 1, count)]


def _pictures(slices: np.ndarray, windows: Windows) -> list[dict[str, Any]]:
    """For each window its name, its caption and the pictures."""
    return [
        {
            "window": name,
            "text": f"{name + ', ' if len(windows) > 1 else ''}level {level:.4g}, width {width:.4g}",
            "png": [_png(image, (level, width)) for image in slices],
        }
        for name, (level, width) in windows.items()
    ]


def _number(value: Any) -> str:
    """A value for a table: floats to four digits, None as a dash."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
