"""Verification of ensembles: area-weighted scores with intervals by block bootstrap over the dates.

CRPS is that of `scores` (Apache-2.0). "ecdf" scores the issued ensemble as it is; "fair" estimates the score of an infinite
ensemble of the same law, so it compares systems at unequal sizes but says nothing about the forecast that was issued.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from domains.weather.diagrams import murphy, reliability, spread_error

Array = NDArray[np.float64]
QUANTILES = (0.05, 0.95, 0.99)
MOST_LAG = 5
BLOCK = 10  # dates per block of the bootstrap
RESAMPLES = 500


@dataclass(frozen=True)
class Reference:
    """The climatology forecasts are judged against.

    Attributes:
        mean: `(D, C, H, W)` for the dates of the forecast.
        quantiles: `(Q, C, H, W)` at `QUANTILES`.
        area_quantiles: of the area means `(Q, C)`.
        deviation: standard deviation `(C, H, W)`.
        source: where it is from, for the record.
    """

    mean: Array
    quantiles: Array
    area_quantiles: Array
    deviation: Array
    source: str

    def part(self, rows: slice) -> Reference:
        """Of some of the dates."""
        return replace(self, mean=self.mean[rows])


def reference_of(fields: NDArray[Any], season: Array, weights: Array, season_now: Array, source: str) -> Reference:
    """Climatology from fields `(N, C, H, W)`: the annual cycle where it is there to be seen, quantiles of all.

    Args:
        weights: areas `(H, W)`.
        season, season_now: sine and cosine of the day of the year of the fields and of the dates, `(., 2)`.
    """
    x = np.concatenate([np.ones((len(season), 1)), season], 1)
    dates = len(season_now)
    now = np.concatenate([np.ones((dates, 1)), season_now], 1)
    flat = np.asarray(fields, np.float64).reshape(len(fields), -1)
    if len(fields) >= 100 and np.linalg.cond(x.T @ x) < 100:
        mean = now @ np.linalg.lstsq(x, flat, rcond=None)[0]
    else:
        mean = np.repeat(flat.mean(0)[None], dates, 0)
    known = np.asarray(fields, np.float64)
    quantiles = np.nanquantile(known, QUANTILES, axis=0)
    area = np.where(np.isfinite(known[0]), weights, 0.0)
    area_means = (np.nan_to_num(known) * area).sum((2, 3)) / area.sum((1, 2)).clip(1e-30)
    deviation = np.nan_to_num(np.nanstd(known, 0))
    shape = (dates, *fields.shape[1:])
    return Reference(mean.reshape(shape), quantiles, np.quantile(area_means, QUANTILES, axis=0), deviation, source)


def scores_per_date(
    members: NDArray[Any], truth: NDArray[Any], weights: Array, periodic: bool, reference: Reference
) -> dict[str, Array]:
    """What is averaged over dates; each entry `(D, ...)`.

    Args:
        members: `(D, M, C, H, W)`.
        truth: `(D, C, H, W)`; NaN points count for nothing.
        weights: areas `(H, W)`.
    """
    x, y = np.asarray(members, np.float64), np.asarray(truth, np.float64)
    w = np.where(np.isfinite(y), weights, 0.0)
    w = w / w.mean((-2, -1), keepdims=True).clip(1e-12)
    x, y = np.nan_to_num(x), np.nan_to_num(y)
    axes = (1, 2, 3)
    out: dict[str, Array] = {}
    mean = x.mean(1)
    out["crps"] = (_crps(x, y, "ecdf") * w).mean(axes)
    out["squared_error"] = ((mean - y) ** 2 * w).mean(axes)
    out["absolute_error"] = (np.abs(mean - y) * w).mean(axes)
    out["bias"] = ((mean - y) * w).mean(axes)
    out["energy"], fair = _energy(x, y, w)
    out["variogram"] = _variogram(x, y, periodic)
    area_x, area_y = (x * w[:, None]).mean((3, 4)), (y * w).mean((2, 3))
    out["crps_area_mean"] = _crps(area_x, area_y, "ecdf").mean(1)
    if x.shape[1] > 1:
        out["crps_fair"] = (_crps(x, y, "fair") * w).mean(axes)
        out["energy_fair"] = fair
        out["variance"] = (x.var(1, ddof=1) * w).mean(axes)
        out["ranks"] = _ranks(x, y, w)
        out["spread_error"] = spread_error(x.var(1, ddof=1), mean - y, reference.deviation, w)
    anomaly, target = mean - reference.mean, y - reference.mean
    out["acc_parts"] = np.stack(
        [(a * b * w).mean(axes) for a, b in ((anomaly, target), (anomaly, anomaly), (target, target))], 1
    )
    for q, level, area_level in zip(QUANTILES, reference.quantiles, reference.area_quantiles, strict=True):
        chance, event = _event(x, y, q, level)
        name = f"q{100 * q:02.0f}"
        out[f"brier_{name}"] = ((chance - event) ** 2 * w).mean(axes)
        out[f"reliability_{name}"] = reliability(chance, event, w)
        chance, event = _event(area_x, area_y, q, area_level)
        out[f"brier_area_{name}"] = ((chance - event) ** 2).mean(1)
    if x.shape[-1] >= 8:
        out["spectrum"] = np.stack([_power(x - reference.mean[:, None]).mean(1), _power(y - reference.mean)], 1)
    return out


def _event(x: Array, y: Array, q: float, level: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Probability and occurrence of values below a low quantile, or above a high one."""
    if q < 0.5:
        return (x < level).mean(1), y < level
    return (x > level).mean(1), y > level


def _crps(x: Array, y: Array, method: str) -> Array:
    """`scores.probability.crps_for_ensemble`; members on axis 1."""
    from scores.probability import crps_for_ensemble

    names = [f"d{i}" for i in range(y.ndim)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = crps_for_ensemble(
            xr.DataArray(x, dims=[names[0], "member", *names[1:]]),
            xr.DataArray(y, dims=names),
            "member",
            method=method,  # type: ignore[arg-type]
            preserve_dims=names,
        )
    values: Array = out.transpose(*names).values
    return values


def _energy(x: Array, y: Array, w: Array) -> tuple[Array, Array]:
    """Energy score (Gneiting et al. 2008, eq. 22) with the area-weighted norm: of the issued ensemble, and fair."""
    root = np.sqrt(w)
    flat, target = (x * root[:, None]).reshape(*x.shape[:2], -1), (y * root).reshape(len(y), -1)
    count = x.shape[1]
    issued, fair = np.empty(len(x)), np.empty(len(x))
    for d in range(len(x)):
        near = np.linalg.norm(flat[d] - target[d], axis=1).mean()
        squares = (flat[d] ** 2).sum(1)
        gram = squares[:, None] + squares[None] - 2 * flat[d] @ flat[d].T
        np.fill_diagonal(gram, 0)
        apart = np.sqrt(gram.clip(0)).sum()
        issued[d] = near - apart / (2 * count**2)
        fair[d] = near - apart / (2 * count * max(count - 1, 1))
    return issued, fair


def _variogram(x: Array, y: Array, periodic: bool, p: float = 0.5) -> Array:
    """Variogram score of order 0.5 (Scheuerer and Hamill 2015) over pairs 1 to 5 points apart along either axis, mean."""
    total, pairs = np.zeros(len(x)), 0
    for axis in (-1, -2):
        size = x.shape[axis]
        for lag in range(1, min(MOST_LAG, size - 1) + 1):
            if axis == -1 and periodic:
                dx, dy = x - np.roll(x, -lag, axis), y - np.roll(y, -lag, axis)
            else:
                first = (..., slice(0, size - lag)) if axis == -1 else (..., slice(0, size - lag), slice(None))
                last = (..., slice(lag, size)) if axis == -1 else (..., slice(lag, size), slice(None))
                dx, dy = x[last] - x[first], y[last] - y[first]
            square = (np.abs(dy) ** p - (np.abs(dx) ** p).mean(1)) ** 2
            total += square.reshape(len(x), -1).sum(1)
            pairs += square[0].size
    return total / max(pairs, 1)


def _ranks(x: Array, y: Array, w: Array) -> Array:
    """Area-weighted rank histogram of each date `(D, M + 1)`; ties are shared between the ranks they cover."""
    dates, count = x.shape[:2]
    below, equal = (x < y[:, None]).sum(1).reshape(dates, -1), (x == y[:, None]).sum(1).reshape(dates, -1)
    share = (w / w.sum((1, 2, 3), keepdims=True)).reshape(dates, -1) / (equal + 1)
    rises = np.zeros((dates, count + 2))  # of the histogram, from rank to rank
    date = np.arange(dates)[:, None]
    np.add.at(rises, (date, below), share)
    np.add.at(rises, (date, below + equal + 1), -share)
    out: Array = rises.cumsum(1)[:, :-1]
    return out


def _power(x: Array) -> Array:
    """Power along the last axis, averaged over all others but the first ones `(D, [M,] wavenumber)`."""
    power = np.abs(np.fft.rfft(x, axis=-1)) ** 2
    return power.mean((-3, -2))


# --- means over the dates ---------------------------------------------------------------------------------------------


def summary(parts: Mapping[str, Array], members: int) -> dict[str, float]:
    """The metrics of a set of dates from `scores_per_date`."""
    mean = {name: value.mean(0) for name, value in parts.items()}
    plain = ("crps", "crps_fair", "energy", "energy_fair", "variogram", "crps_area_mean", "bias")
    out = {name: float(mean[name]) for name in plain if name in mean}
    out["rmse"] = float(np.sqrt(mean["squared_error"]))
    out["mae"] = float(mean["absolute_error"])
    cross, one, other = mean["acc_parts"]
    out["acc"] = float(cross / np.sqrt(one * other)) if one > 0 and other > 0 else 0.0
    if "variance" in mean:
        out["spread"] = float(np.sqrt(mean["variance"]))
        out["spread_skill"] = float(np.sqrt((members + 1) / members * mean["variance"]) / max(out["rmse"], 1e-300))
        ranks = mean["ranks"] / mean["ranks"].sum()
        out["rank_chi2"] = float(((ranks - 1 / len(ranks)) ** 2 * len(ranks)).sum() * len(parts["ranks"]))
        tail = max(1, round(0.05 * len(ranks)))
        out["rank_tails"] = float((ranks[:tail].sum() + ranks[-tail:].sum()) / (2 * tail / len(ranks)))
    out |= {name: float(value) for name, value in mean.items() if name.startswith("brier_")}
    for name, value in mean.items():
        if name.startswith("reliability_"):
            out[name], out[name.replace("reliability", "resolution")] = murphy(value)
    if "spectrum" in mean:
        forecast, truth = mean["spectrum"][:, 1:]
        out["spectrum_log_error"] = float(np.sqrt((np.log(forecast.clip(1e-300) / truth.clip(1e-300)) ** 2).mean()))
    return out


def intervals(parts: Mapping[str, Array], members: int, seed: int = 0) -> dict[str, list[float]]:
    """90 % intervals by the moving-block bootstrap over dates (Kuensch 1989); none below 20 dates."""
    dates = len(parts["crps"])
    if dates < 20:
        return {}
    rng = np.random.default_rng(seed)
    length = min(BLOCK, dates // 4)
    rows = []
    for _ in range(RESAMPLES):
        starts = rng.integers(0, dates - length + 1, -(-dates // length))
        index = (starts[:, None] + np.arange(length)).ravel()[:dates]
        rows.append(summary({name: value[index] for name, value in parts.items()}, members))
    return {
        name: [float(np.quantile([r[name] for r in rows], q)) for q in (0.05, 0.95)]
        for name in rows[0]
        if not name.startswith("rank_")
    }
