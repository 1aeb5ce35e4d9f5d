"""Quality of a denoised cube without a clean one: what was removed should be noise, and what stays should be free of it.

None of these numbers alone means quality: a constant cube has no noise. They are read together, the residual's correlations first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from domains.hyperspectral.containers import Cube
from domains.hyperspectral.statistics import regression_noise
from suite.errors import InputError

Floats = NDArray[np.float32]
EXPLAINED = {
    "sigma_regression": "median over bands: residual of the regression on all others (HySime), over the deviation of the input",
    "sigma_mad": "median over bands: robust deviation of the diagonal second difference, over the deviation of the input",
    "snr_gain_db": "median over bands of 20 log10(sigma_mad before / after)",
    "residual_correlation": "of neighbours in input - result, bands alike: along and across rows, between bands; 0 is white",
    "residual_over_noise": "median over bands: RMS of input - result over the regression noise of the input",
    "stripe_index": "mean over bands: RMS second difference of the column means, over the deviation of the input",
    "spectral_roughness": "RMS second difference along the spectrum, bands scaled by the deviation of the input",
    "rx_auc": "area under the curve of the RX anomaly detector against the anomaly map",
}


def reference_free(result: Cube, source: Cube, anomalies: NDArray[np.bool_] | None = None) -> dict[str, Any]:
    """Metrics of a result and its noisy input, before and after, with their meaning and the noise of each band.

    Bands flagged bad, empty or constant, and pixels without data in either cube, do not count.

    Args:
        anomalies: `(rows, columns)`, for a check that a detector sees at least as much afterwards.

    Raises:
        InputError: shapes differ, or nothing is left to compare.
    """
    if result.shape != source.shape:
        raise InputError(f"the result has shape {result.shape} and the input {source.shape}; they must agree")
    x, y = result.values(), source.values()
    inside = np.asarray(np.isfinite(x).any(2) & np.isfinite(y).any(2))
    bands = (np.isfinite(x) & np.isfinite(y))[inside].all(0) if inside.any() else np.zeros(x.shape[2], bool)
    if source.good is not None:
        bands &= source.good
    bands &= np.ptp(np.where(inside[..., None], y, np.nan_to_num(y[inside][:1])), axis=(0, 1)) > 0
    if bands.sum() < 3 or inside.sum() < 1.5 * bands.sum():
        raise InputError(f"{result.name} and {source.name} have too few bands or pixels with values in both")
    chosen = np.flatnonzero(bands)
    spread = y[inside][:, chosen].std(0)
    y, x = (np.where(inside[..., None], v[..., chosen] / spread, np.float32(np.nan)) for v in (y, x))
    before, after = band_noise(y, inside), band_noise(x, inside)
    along, across, spectral = residual_correlation(y - x)
    metrics: dict[str, float | None] = {
        "sigma_regression_before": float(np.median(before[0])),
        "sigma_regression_after": float(np.median(after[0])),
        "sigma_mad_before": float(np.median(before[1])),
        "sigma_mad_after": float(np.median(after[1])),
        "snr_gain_db": float(np.median(20 * np.log10(before[1] / np.maximum(after[1], 1e-12)))),
        "residual_correlation_along": along,
        "residual_correlation_across": across,
        "residual_correlation_spectral": spectral,
        "residual_over_noise": float(np.median((y - x)[inside].std(0) / before[0])),
        "stripe_index_before": stripe_index(y),
        "stripe_index_after": stripe_index(x),
        "spectral_roughness_before": spectral_roughness(y[inside]),
        "spectral_roughness_after": spectral_roughness(x[inside]),
    }
    if anomalies is not None:
        for name, values in (("before", y), ("after", x)):
            metrics[f"rx_auc_{name}"] = area_under_curve(rx_scores(values[inside]), anomalies[inside])
    table = [
        {"band": int(b), "sigma_before": float(s * d), "sigma_after": float(a * d)}
        for b, s, a, d in zip(chosen, before[1], after[1], spread, strict=True)
    ]
    settings = {"explained": EXPLAINED, "bands": len(chosen), "pixels": int(inside.sum())}
    return {"metrics": metrics, "settings": settings, "bands": table}


def band_noise(values: Floats, inside: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Deviation of each band's noise by regression on the others, and by its diagonal differences."""
    return regression_noise(values[inside].astype(np.float32)), difference_noise(values)


def difference_noise(values: Floats) -> NDArray[np.float64]:
    """`median |d| / 0.6745` of `d = (v[i, j] - v[i, j+1] - v[i+1, j] + v[i+1, j+1]) / 2`, `(bands,)`.

    The finest diagonal detail of a Haar wavelet (Donoho and Johnstone 1994): edges along rows or columns drop out.
    """
    d = (values[:-1, :-1] - values[:-1, 1:] - values[1:, :-1] + values[1:, 1:]) / 2
    return np.asarray(np.nanmedian(np.abs(d), axis=(0, 1)) / 0.6745, np.float64)


def residual_correlation(left: Floats) -> tuple[float, float, float]:
    """Correlation of neighbours along rows, across rows, and between bands; every band weighted alike."""
    scale = np.nanstd(left, axis=(0, 1))
    u = np.nan_to_num((left - np.nanmean(left, axis=(0, 1))) / np.where(scale > 0, scale, 1))
    power = max(float(np.square(u).mean()), 1e-12)
    pairs = ((u[:, 1:], u[:, :-1]), (u[1:], u[:-1]), (u[..., 1:], u[..., :-1]))
    along, across, spectral = (float((a * b).mean()) / power for a, b in pairs)
    return along, across, spectral


def stripe_index(values: Floats) -> float:
    """Mean over bands of the RMS second difference of column means, `m[j-1] - 2 m[j] + m[j+1]` over sqrt(6)."""
    known = np.isfinite(values)
    means = np.where(known, values, 0).sum(0) / np.maximum(1, known.sum(0))
    means = means[known.any((0, 2))]
    second = means[:-2] - 2 * means[1:-1] + means[2:]
    return float(np.sqrt(np.square(second).mean(0) / 6).mean())


def spectral_roughness(spectra: Floats) -> float:
    """RMS of `s[b-1] - 2 s[b] + s[b+1]` over sqrt(6): white noise of deviation 1 has 1."""
    second = spectra[:, :-2] - 2 * spectra[:, 1:-1] + spectra[:, 2:]
    return float(np.sqrt(np.square(second).mean() / 6))


def rx_scores(spectra: Floats) -> NDArray[np.float64]:
    """Squared Mahalanobis distance of each pixel from all (Reed and Yu 1990), in the directions that the scene has."""
    centred = spectra.astype(np.float64) - spectra.mean(0)
    variance, vectors = np.linalg.eigh(np.cov(centred.T))
    kept = variance > 1e-7 * variance.max()
    scores: NDArray[np.float64] = np.square(centred @ vectors[:, kept] / np.sqrt(variance[kept])).sum(1)
    return scores


def area_under_curve(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float | None:
    """Probability that a positive scores above a negative, ties half; None without both kinds."""
    from scipy.stats import rankdata

    count, others = int(positive.sum()), int((~positive).sum())
    if not count or not others:
        return None
    total = float(rankdata(scores)[positive].sum())
    return (total - count * (count + 1) / 2) / (count * others)
