"""Ultrasound image quality.

Sources: gCNR, CNR and the challenge's score as coded in the DehazingEcho2025 evaluation and in zea; temporal coherency as in the
published clutter filter (Tabassian et al. 2024, Error_analysis.py).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp

Array = NDArray[Any]
Mask = NDArray[np.bool_]


def gcnr(a: Array, b: Array, bins: int = 256) -> float:
    """`1 - sum_k min(f_k, g_k)`: histograms of two regions on common bins over the union of their values, each of sum 1."""
    low, high = min(a.min(), b.min()), max(a.max(), b.max())
    if low == high:
        return 0.0
    f, g = (np.histogram(v, bins, (low, high))[0] / v.size for v in (a, b))
    return float(1 - np.minimum(f, g).sum())


def cnr(a: Array, b: Array) -> float:
    """`(mean_a - mean_b) / sqrt(var_a + var_b)`, signed; on the scale of the values given."""
    return float((a.mean() - b.mean()) / math.sqrt(a.var() + b.var()))


def ks(before: Array, after: Array) -> float:
    """`sup |F_before - F_after|`, the two-sample Kolmogorov-Smirnov distance."""
    return float(ks_2samp(np.ravel(before), np.ravel(after)).statistic)


def speckle_snr(envelope: Array) -> float:
    """Mean over standard deviation of a linear envelope; 1.91 for fully developed speckle, more where it is smoothed."""
    return float(envelope.mean() / envelope.std())


def speckle_width(region: Array, axis: int) -> float:
    """Full width at half maximum, in pixels, of the autocovariance along an axis of a rectangle `(..., row, column)`."""
    lines = np.moveaxis(np.asarray(region, np.float64), axis, -1)
    lines = lines - lines.mean()
    n = lines.shape[-1]
    power = np.abs(np.fft.rfft(lines, 2 * n)) ** 2
    covariance = np.fft.irfft(power)[..., :n].reshape(-1, n).sum(0) / np.arange(n, 0, -1)
    if covariance[0] <= 0:
        return float("nan")
    ratio = covariance / covariance[0]
    below = np.flatnonzero(ratio < 0.5)
    if not below.size:
        return float("nan")
    k = int(below[0])
    return float(2 * (k - 1 + (ratio[k - 1] - 0.5) / (ratio[k - 1] - ratio[k])))


def psnr(x: Array, reference: Array, mask: Mask, peak: float = 255.0) -> float:
    """Mean over frames of `10 log10(peak^2 / MSE)` inside the mask, dB."""
    error = ((x.astype(np.float64) - reference)[:, mask] ** 2).mean(1)
    return float(np.mean(10 * np.log10(peak**2 / np.maximum(error, 1e-12))))


def mae(x: Array, reference: Array, mask: Mask) -> float:
    """Mean absolute error inside the mask."""
    return float(np.abs(x.astype(np.float64) - reference)[:, mask].mean())


def temporal_coherency(x: Array, reference: Array) -> float:
    """Mean over frames of `|S_(t+1) - S_t|`, `S_t` the sum of `|x - reference|` of frame t; 0 for one frame."""
    total = np.abs(x.astype(np.float64) - reference).reshape(len(x), -1).sum(1)
    return float(np.abs(np.diff(total)).mean()) if len(x) > 1 else 0.0


def flicker(x: Array, mask: Mask) -> float:
    """Energy of the differences between successive frames inside the mask; 0 for one frame."""
    return float((np.diff(x[:, mask].astype(np.float64), axis=0) ** 2).mean()) if len(x) > 1 else 0.0


def flicker_ratio(x: Array, before: Array, mask: Mask) -> float | None:
    """`flicker` after over before; above 1 the output flickers more than the input did. None for one frame."""
    energy = flicker(before, mask)
    return flicker(x, mask) / energy if energy > 0 else None


# --- the challenge's score ----------------------------------------------------------------------------------------------

RANGES = {
    "fid": (150.0, 60.0),
    "cnr": (1.0, 1.5),
    "gcnr": (0.5, 0.8),
    "ks_a": (0.3, 0.1),
    "ks_b": (0.0, 0.5),
    "dice": (0.85, 0.95),
    "asd": (2.0, 0.7),
}
"""(worst, best) of each figure; scores are linear between and clipped outside."""

GROUPS = {"quality": (("fid", "cnr", "gcnr"), 5), "change": (("ks_a", "ks_b"), 3), "segmentation": (("dice", "asd"), 2)}


def challenge_score(figures: dict[str, float]) -> dict[str, float]:
    """DehazingEcho2025's score as far as its figures are at hand: means of the groups, weighted 5 : 3 : 2, times 100.

    FID, Dice and ASD need the challenge's own networks; groups and weights of what is missing are left out, so that the
    figure is comparable only between results scored on the same figures. It rewards any change in region B (the ventricle), has
    no ground truth and no term for time.
    """
    scores = {}
    for name, value in figures.items():
        worst, best = RANGES[name]
        scores[name] = float(np.clip((value - worst) / (best - worst), 0, 1))
    total = weight = 0.0
    for names, share in GROUPS.values():
        known = [scores[name] for name in names if name in scores]
        if known:
            total, weight = total + share * float(np.mean(known)), weight + share
    return {"score": 100 * total / weight, "weight_known": weight / 10}


# --- all of them --------------------------------------------------------------------------------------------------------

HAZY = 12.0
"""Grey levels of 255 above which a pixel counts as hazy."""


def against_reference(x: Array, reference: Array, before: Array | None, sector: Mask) -> dict[str, float | None]:
    """Figures of a result beside its truth, grey levels 0..255 `(frame, row, column)`."""
    found: dict[str, float | None] = {
        "psnr": psnr(x, reference, sector),
        "mae": mae(x, reference, sector),
        "temporal_coherency": temporal_coherency(x * sector, reference * sector),
    }
    if before is not None:
        found["psnr_input"] = psnr(before, reference, sector)
        found["psnr_gain"] = psnr(x, reference, sector) - psnr(before, reference, sector)
        elsewhere = sector & (np.abs(before.astype(np.float64) - reference).max(0) <= HAZY)
        if elsewhere.any():
            found["change_outside"] = float(np.abs((x.astype(np.float64) - before)[:, elsewhere]).mean())
    return found


def against_input(x: Array, before: Array, sector: Mask) -> dict[str, float | None]:
    """Figures that need no truth."""
    change = before.astype(np.float64) - x
    touched = np.abs(change)[:, sector] > HAZY
    still = np.abs(change)[:, sector][~touched]
    return {
        "flicker_ratio": flicker_ratio(x, before, sector),
        "mean_change": float(np.abs(change)[:, sector].mean()),
        "haze_share": float(touched.mean()),
        "change_elsewhere": float(still.mean()) if still.size else None,
        "ks_sector": ks(before[:, sector], x[:, sector]),
    }


def by_region(x: Array, before: Array, a: Mask, b: Mask) -> dict[str, float | None]:
    """gCNR, CNR and KS of tissue (region A) and blood (region B); masks `(frame, row, column)`.

    Each region is the union over all frames, as in the challenge.
    """
    found: dict[str, float | None] = {}
    for name, cine in (("", x), ("_input", before)):
        inside, blood = cine[a].astype(np.float64), cine[b].astype(np.float64)
        found[f"gcnr{name}"], found[f"cnr{name}"] = gcnr(inside, blood), cnr(inside, blood)
    found["ks_a"], found["ks_b"] = ks(before[a], x[a]), ks(before[b], x[b])
    return found
