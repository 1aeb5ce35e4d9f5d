"""From projections of any format to a `Scan`: NaN and dead-pixel repair, log transform, checks of the geometry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from domains.ct.containers import Array, Scan
from suite.errors import InputError
from suite.files import reading

GEOMETRY_NUMBERS = (
    "pixel_size_mm", "detector_pitch_mm", "source_origin_mm", "origin_detector_mm", "center_column", "photons",
    "electronic_sigma", "mu_water_per_mm", "row_pitch_mm", "center_row", "slice_mm",
)  # fmt: skip
_CENTERS = {"center_column", "center_row"}
_MAY_BE_ZERO = _CENTERS | {"electronic_sigma"}


def geometry_number(path: Path, name: str, value: Any) -> float:
    """A finite geometry value, positive unless zero makes sense.

    Raises:
        InputError: it is neither.
    """
    with reading(path, f"has an unreadable {name}"):
        number = float(np.asarray(value).reshape(()))
    if not np.isfinite(number) or (number < 0 if name in _MAY_BE_ZERO - _CENTERS else False):
        raise InputError(f"{path}: has {name} {number:g}, and a finite number is needed.")
    if name not in _MAY_BE_ZERO and number <= 0:
        raise InputError(f"{path}: has {name} {number:g}, and a positive number is needed.")
    return number


def repaired(path: Path, values: Array, name: str) -> tuple[Array, list[str]]:
    """`values` `(view, row, column)` with single NaN interpolated along the detector row, and a sentence on it.

    Raises:
        InputError: over 5 % of the values, or a whole detector row of a view, is NaN or infinite.
    """
    bad = ~np.isfinite(values)
    if not bad.any():
        if values.min() == values.max():
            raise InputError(f"{path}: {name} holds one value everywhere ({values.min():g}), which is no measurement.")
        return values, []
    if bad.all():
        raise InputError(f"{path}: {name} is wholly NaN or infinite.")
    if bad.mean() > 0.05 or bad.all(axis=-1).any():
        raise InputError(f"{path}: {name} has {100 * bad.mean():.1f} % NaN or infinite values, too many to repair.")
    said = f"{path}: {int(bad.sum())} NaN or infinite value(s) of {name} were interpolated along the detector row."
    return interpolated(values, bad), [said]


def interpolated(values: Array, bad: NDArray[np.bool_]) -> Array:
    """`values` with entries where `bad` linearly interpolated along the last axis; `bad` may lack leading axes."""
    out = values.copy()
    for index in zip(*np.nonzero(bad.any(axis=-1)), strict=True):
        gap, good = np.flatnonzero(bad[index]), np.flatnonzero(~bad[index])
        right = np.searchsorted(good, gap).clip(1, len(good) - 1) if len(good) > 1 else np.zeros(len(gap), int)
        low, high = good[np.maximum(right - 1, 0)], good[right]
        weight = ((gap - low) / np.maximum(high - low, 1)).clip(0, 1).astype(np.float32)  # beyond the ends: nearest
        row = values[(..., *index, slice(None))]
        out[(..., *index, slice(None))][..., gap] = (1 - weight) * row[..., low] + weight * row[..., high]
    return out


def assembled(path: Path, values: Array, theta: NDArray[np.float64], white: Array | None, dark: Array | None) -> Scan:
    """A `Scan` from projections: log transform where an open-beam image exists, dead pixels interpolated."""
    if len(theta) != len(values):
        raise InputError(f"{path}: holds {len(values)} views and {len(theta)} angles, which must be equal.")
    if white is None:
        return Scan(values, theta, sources=(path,), warnings=_plausible(path, values))
    dark = np.zeros_like(white) if dark is None else np.nan_to_num(dark)
    open_beam = white - dark
    dead = ~(open_beam > 0.01 * np.nanmedian(open_beam, axis=-1, keepdims=True))
    notes: tuple[str, ...] = ()
    if dead.any():
        if dead.all(axis=-1).any() or dead.mean() > 0.2:
            raise InputError(f"{path}: data_white exceeds data_dark in too few pixels ({100 * (~dead).mean():.0f} %).")
        white, dark = interpolated(white, dead), interpolated(dark, dead)
        values = interpolated(values, dead)
        notes = (f"{path}: {int(dead.sum())} dead detector pixel(s) were interpolated along the row.",)
    lines, dim = log_transform(values, white, dark)
    if dim > 0.01:
        notes += (f"{path}: {100 * dim:.1f} % of the rays measured next to no photons; their logarithm is clipped.",)
    return Scan(lines, theta, counts=values, white=white, dark=dark, sources=(path,), warnings=notes)


def log_transform(counts: Array, white: Array, dark: Array) -> tuple[Array, float]:
    """Line integrals `-log((counts - dark) / (white - dark))` and the share of rays that had to be clipped.

    Counts at or below the dark level are lifted to half a count (or 1e-4 of the open beam, if that is less).
    """
    open_beam = white - dark
    floor = np.minimum(0.5, 1e-4 * open_beam)
    net = counts - dark
    return -np.log(np.maximum(net, floor) / open_beam), float((net < floor).mean())


def estimate_center_column(scan: Scan) -> float | None:
    """The rotation axis of a parallel scan from its data, for files that do not hold it.

    The centre of mass of a parallel projection is `center_column + a cos th + b sin th` with the object's own centre of
    mass (a, b) (first Helgason-Ludwig condition; Natterer 1986, II.4), so a linear fit over the views gives the axis.

    Returns:
        The 0-based bin, or None where the condition says nothing: fan beam, an arc below 90 degrees, or an object that
        leaves the detector (its mass varies by over 2 % or the fit misses by over a bin).
    """
    views, _, columns = scan.shape
    if scan.geometry != "parallel" or views < 8 or np.ptp(scan.theta_deg) < 90:
        return None
    profile = scan.line_integrals.mean(axis=1, dtype=np.float64)  # all rows turn about one axis
    mass = profile.sum(axis=1)
    if mass.mean() <= 0 or mass.std() > 0.02 * mass.mean():
        return None
    centroid = profile @ np.arange(columns) / mass
    theta = np.deg2rad(scan.theta_deg)
    design = np.stack([np.ones(views), np.cos(theta), np.sin(theta)], axis=1)
    fit = np.linalg.lstsq(design, centroid, rcond=None)[0]
    misses = float(np.std(design @ fit - centroid))
    return float(fit[0]) if misses < 1 and 0 < fit[0] < columns - 1 else None


def _plausible(path: Path, lines: Array) -> tuple[str, ...]:
    high = float(np.quantile(lines[:: len(lines) // 64 + 1], 0.999))
    if high > 30:
        return (f"{path}: the line integrals reach {high:.3g}, more than X-rays can measure; are these counts or HU?",)
    return ()
