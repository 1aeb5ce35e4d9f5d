"""What the plots of a verification show: ranks, reliability, spread against error, spectra; in bins that add up over dates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
PROBABILITIES = np.linspace(0, 1, 11)  # centres of the bins of forecast probability
SPREADS = np.geomspace(0.05, 3, 16)  # edges of the bins of spread over the climatological deviation


def reliability(chance: Array, event: NDArray[np.bool_], weights: Array) -> Array:
    """Area, mean probability and frequency (both times area) by bin of probability, `(D, 3, 11)`.

    Args:
        chance: forecast probabilities `(D, ...)`.
        event: whether it happened.
        weights: areas, broadcast to the same shape.
    """
    index = np.rint(chance * 10).astype(int)
    return _binned(index, (np.ones_like(chance), chance, event.astype(float)), weights, len(PROBABILITIES))


def spread_error(variance: Array, error: Array, deviation: Array, weights: Array) -> Array:
    """Area, variance and squared error (both times area) by bin of spread `(D, 3, 15)`, in units of the climatology's variance.

    Args:
        variance: of the members `(D, ...)`.
        error: of their mean.
        deviation: climatological standard deviation `(...)`.
    """
    square = np.maximum(deviation**2, 1e-30)
    relative = variance / square
    index = np.digitize(np.sqrt(relative), SPREADS[1:-1])
    return _binned(index, (np.ones_like(relative), relative, error**2 / square), weights, len(SPREADS) - 1)


def _binned(index: NDArray[np.intp], values: tuple[Array, ...], weights: Array, bins: int) -> Array:
    full = np.broadcast_to(weights, index.shape)
    flat = [np.bincount((index + bins * np.arange(len(index)).reshape(-1, *(1,) * (index.ndim - 1))).ravel(),
                        (value * full).ravel(), bins * len(index)) for value in values]  # fmt: skip
    return np.stack([f.reshape(len(index), bins) for f in flat], 1)


def murphy(parts: Array) -> tuple[float, float]:
    """Reliability and resolution (Murphy 1973) from `reliability` summed over dates, `(3, 11)`."""
    area, chance, event = parts
    total = max(area.sum(), 1e-30)
    filled = area > 0
    p, o = chance[filled] / area[filled], event[filled] / area[filled]
    mean = event.sum() / total
    return float((area[filled] * (p - o) ** 2).sum() / total), float((area[filled] * (o - mean) ** 2).sum() / total)


def curves(parts: Mapping[str, Array], members: int) -> dict[str, Any]:
    """The diagrams of a set of dates, as lists for the record."""
    out: dict[str, Any] = {}
    if "ranks" in parts:
        ranks = parts["ranks"].mean(0)
        out["rank_histogram"] = ranks / ranks.sum() * len(ranks)
    for name, value in parts.items():
        if name.startswith("reliability_"):
            area, chance, event = value.sum(0)
            some = area > 0
            out[name] = {
                "probability": chance[some] / area[some],
                "frequency": event[some] / area[some],
                "share": area[some] / area.sum(),
            }
    if "spread_error" in parts:
        area, variance, square = parts["spread_error"].sum(0)
        some = area > 0.002 * area.sum()
        factor = (members + 1) / members
        out["spread_skill"] = {
            "spread": np.sqrt(factor * variance[some] / area[some]),
            "rmse": np.sqrt(square[some] / area[some]),
            "share": area[some] / area.sum(),
        }
    if "spectrum" in parts:
        forecast, truth = parts["spectrum"].mean(0)[:, 1:]
        out["spectrum"] = {"wavenumber": np.arange(1, len(truth) + 1), "forecast": forecast, "truth": truth}
    return out
