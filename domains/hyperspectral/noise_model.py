"""One noise model for real cubes, estimated from the cube itself.

    y_b(i, j) = x_b(i, j) + c_b(j) + sigma_b n,   except where the value is an outlier or missing

with white n, column offsets c (stripes of a push-broom sensor, zero for most columns) and outliers that tell nothing about x
(dead lines, impulses). Every band is predicted from all the others in the spectral subspace; what the prediction leaves shows
the noise, the offsets and the outliers, and these make a better subspace.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from domains.hyperspectral.statistics import covariance, regression_noise, regression_residual
from domains.hyperspectral.subspace import Floats, coefficients, subspace

ROUNDS = 6
OUTLIER = 4.0
"""Residuals of more than so many (robust) deviations are outliers, in bands that have too many of them."""

MAD = 1.4826

MISSED = 4.0
"""Components just below the edge of detection that a scene has: 3.3 to 7.3 in Gaussian noise on scenes kept for validation."""


@dataclass(frozen=True, eq=False)
class NoiseModel:
    """The noise of a scene. Arrays over bands are in the cube's stored units.

    Attributes:
        used: bands the model covers, `(bands,)`; the rest (flagged, empty, constant) stays out. What follows is over used bands.
        mean: `(used,)`.
        unit: what a whitened value of 1 is, `(used,)`: the residual of the regression on the other bands.
        excess: deviation of the noise in that unit, a little below 1: the other bands' noise makes part of the residual.
        stripes: column offsets `(columns, used)`.
        dead: columns without information, `(columns, used)`.
        stuck: values that stand for no measurement (of dead lines and impulses), one array for each used band.
        outliers: bands in which single values are judged, `(used,)`.
        limit: largest whitened residual of a value that is none, `(used,)`.
        basis, variance: see `subspace`.
        signal: deviation of the noise-free band, `(used,)`.
        pixels: spectra of the estimate.
    """

    used: NDArray[np.bool_]
    mean: Floats
    unit: Floats
    excess: Floats
    stripes: Floats
    dead: NDArray[np.bool_]
    stuck: tuple[Floats, ...]
    outliers: NDArray[np.bool_]
    limit: Floats
    basis: Floats
    variance: NDArray[np.float64]
    signal: Floats
    pixels: int

    @property
    def rank(self) -> int:
        return self.basis.shape[1]

    @property
    def sigma(self) -> Floats:
        """Standard deviation of the white noise, `(used,)`."""
        return self.unit * self.excess

    @property
    def missed(self) -> Floats:
        """Expected deviation of what the subspace leaves out of each band, `(used,)`.

        A component shows when its variance exceeds `sqrt(bands / pixels)` times that of the noise (Baik, Ben Arous and Peche 2005);
        `MISSED` of that size, spread evenly over the bands, are taken to hide below.
        """
        bands = len(self.mean)
        out: Floats = self.sigma * np.float32(math.sqrt(MISSED * math.sqrt(bands / self.pixels) / bands))
        return out

    def whiten(self, values: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        """Rows `(rows, columns, used)` in units of the noise, stripes removed, and which values tell something.

        Single outliers are found by what the other bands predict, as in the estimate.
        """
        known = np.isfinite(values) & ~self.dead
        for band, stuck in enumerate(self.stuck):
            if len(stuck):
                known[..., band] &= ~np.isin(values[..., band], stuck)
        whitened = np.where(known, (values - self.mean - self.stripes) / self.unit, np.float32(0))
        if self.outliers.any():
            flat, mask = whitened.reshape(-1, whitened.shape[-1]), known.reshape(-1, whitened.shape[-1])
            left = residual(flat, mask, self.basis)
            mask[:, self.outliers] &= np.abs(left[:, self.outliers]) <= self.limit[self.outliers]
        return whitened, known


def residual(whitened: Floats, known: NDArray[np.bool_], basis: Floats) -> Floats:
    """What the other bands do not predict, in deviations of that difference: `(w - E z) / sqrt(1 - h)`, `h_b = |E_b|^2`.

    `(w - E z) / (1 - h)` is the error of the prediction that leaves the band out; its deviation is `1 / sqrt(1 - h)`.
    """
    free = np.sqrt(np.maximum(0.02, 1 - np.square(basis).sum(1)))
    left: Floats = (whitened - coefficients(whitened, known, basis) @ basis.T) / free
    return left


def estimate(values: Floats, usable: NDArray[np.bool_]) -> NoiseModel:
    """The noise model of rows `(rows, columns, bands)`, NaN where there is no data.

    Args:
        values: the scene, or every n-th row of it.
        usable: bands the file does not flag as bad; those without values or without variation are left out too.
    """
    spread = _spread(values, usable)
    used = usable & (spread > 0)
    cube = values[..., used]
    bands = cube.shape[2]
    outside = np.asarray(~np.isfinite(cube).any(2))
    stuck = [_stuck(cube, band) for band in range(bands)]
    known = np.isfinite(cube)
    for band, found in enumerate(stuck):
        if len(found):
            known[..., band] &= ~np.isin(cube[..., band], found)
    constant = np.asarray(np.ptp(np.where(known, cube, 0), axis=0) == 0)
    mean = np.array(
        [np.median(cube[..., b][known[..., b]]) if known[..., b].any() else 0.0 for b in range(bands)], np.float32
    )
    y = (cube - mean) / spread[used]
    fit = _Fit(y, known & ~constant, outside)
    for _ in range(ROUNDS):
        fit.update()
    scale = spread[used]
    return NoiseModel(
        used=used,
        mean=mean + scale * fit.mean,
        unit=scale * fit.sigma,
        excess=excess(fit.basis, fit.variance),
        stripes=scale * fit.stripes,
        dead=fit.dead,
        stuck=tuple(stuck),
        outliers=fit.outliers,
        limit=fit.limit,
        basis=fit.basis,
        variance=fit.variance,
        signal=scale * fit.signal,
        pixels=int(fit.inside.sum()),
    )


def excess(basis: Floats, variance: NDArray[np.float64]) -> Floats:
    """Deviation of the noise where the residual of the regression on the other bands is 1, `(bands,)`.

    For a covariance `E diag(s) E^T + I` that residual has the variance `1 / (C^-1)_bb = 1 / (1 - sum_k E_bk^2 s_k / (1 + s_k))`.
    """
    share = 1 - 1 / np.maximum(variance, 1)
    return np.sqrt(np.maximum(0.25, 1 - np.square(basis) @ share)).astype(np.float32)


class _Fit:
    """The alternating estimate, on values of deviation near 1. Outside pixels take no part."""

    def __init__(self, y: Floats, known: NDArray[np.bool_], outside: NDArray[np.bool_]) -> None:
        _, columns, bands = y.shape
        self.y, self.inside = y, ~outside
        self.finite = np.isfinite(y) & self.inside[..., None]
        self.given = known & self.inside[..., None]
        self.known = self.given.copy()
        self.stripes = np.zeros((columns, bands), np.float32)
        self.dead: NDArray[np.bool_] = np.asarray(~self.known.any(0))
        self.outliers = np.zeros(bands, bool)
        self.mean = np.zeros(bands, np.float32)
        start = np.clip(np.where(self.known, y, 0), -4, 4)[self.inside]
        self.sigma = np.clip(regression_noise(start), 1e-6, None)
        self.basis = np.zeros((bands, 1), np.float32)
        self.variance = np.zeros(1)
        self.signal = np.ones(bands, np.float32)
        self.limit = np.full(bands, OUTLIER, np.float32)

    def update(self) -> None:
        """One round: noise and subspace, then what the subspace leaves: stripes and outliers."""
        inside, known = self.inside, self.known
        everything = np.where(self.finite, (self.y - self.mean - self.stripes) / self.sigma, np.float32(0))
        flat, mask = everything[inside], known[inside]
        if self.basis.any():
            flat = np.where(mask, flat, coefficients(flat, mask, self.basis) @ self.basis.T)
        centre = flat.mean(0)
        moments = covariance(flat - centre)
        self.mean = self.mean + self.sigma * centre
        factor = regression_residual(moments, len(flat)) / np.sqrt(np.maximum(0.05, mask.mean(0)))
        factor = factor.astype(np.float32)
        self.sigma *= factor
        self.basis, self.variance = subspace(moments / np.outer(factor, factor), len(flat))
        everything = (everything - np.where(self.finite, centre, np.float32(0))) / factor
        prediction = coefficients(everything[inside], mask, self.basis) @ self.basis.T
        self.signal = self.sigma * prediction.std(0)
        free = np.sqrt(np.maximum(0.02, 1 - np.square(self.basis).sum(1)))
        left = np.zeros_like(everything)
        left[inside] = (everything[inside] - prediction) / free
        self._stripes(left)
        self._outliers(left)

    def _stripes(self, left: Floats) -> None:
        """Column offsets: posterior mean under `c = 0` for most columns and `c ~ N(0, tau^2)` for some, fitted by EM."""
        count = self.known.sum(0)
        where = count >= 8
        old = self.stripes / self.sigma
        total = np.where(where, _median(left, self.known) + old, 0)
        error = 1.2533 / np.sqrt(np.maximum(count, 1))  # of a median
        error = np.maximum(error, MAD * np.median(np.abs(total), axis=0))  # columns of a real scene differ by more
        new = _sparse(total, error, where).astype(np.float32)
        left -= new - old
        self.stripes = new * self.sigma

    def _outliers(self, left: Floats) -> None:
        """Bands with more outliers than the scene's rare spectra explain, and in them the outliers.

        A rare spectrum stands out in neighbouring bands alike, an impulse in its own.
        """
        shape = (-1, left.shape[2])
        scale = MAD * _median(np.abs(left).reshape(shape), self.known.reshape(shape))
        self.limit = (OUTLIER * np.where(scale > 0, scale, 1)).astype(np.float32)
        far = (np.abs(left) > self.limit) & self.given
        alone = far.copy()
        alone[..., 1:] &= ~far[..., :-1]
        alone[..., :-1] &= ~far[..., 1:]
        share = alone.sum((0, 1)) / np.maximum(1, self.given.sum((0, 1)))
        self.outliers = share > max(0.01, 5 * float(np.median(share)))
        good = self.given & ~(far & self.outliers)
        self.dead = np.asarray(good.sum(0) < 0.15 * np.maximum(1, self.finite.sum(0)))
        self.known = good & ~self.dead


def _median(values: Floats, known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Median of the known values along the first axis; 0 where there is none."""
    ordered = np.sort(np.where(known, values, np.float32(np.inf)), axis=0)
    count = known.sum(0)
    low, high = (
        np.take_along_axis(ordered, index[None], 0)[0] for index in (np.maximum(count - 1, 0) // 2, count // 2)
    )
    with np.errstate(invalid="ignore"):
        return np.where(count > 0, (low.astype(np.float64) + np.where(count > 1, high, low)) / 2, 0)


def _spread(values: Floats, usable: NDArray[np.bool_]) -> Floats:
    """A robust deviation of each band, 0 where it holds nothing or does not vary."""
    out = np.zeros(values.shape[2], np.float32)
    for band in np.flatnonzero(usable):
        layer = values[..., band][np.isfinite(values[..., band])]
        if len(layer) > 0.02 * values[..., band].size:
            low, high = np.percentile(layer, [10, 90])
            out[band] = (high - low) / 2.563 or float(layer.std())
    return out


def _stuck(cube: Floats, band: int) -> Floats:
    """Values that occur far more often than their neighbours: what a sensor or a file writes where it measured nothing.

    A candidate must hold 0.3 % of the pixels and 10 times the number of the values around it. The ends of the range are
    spared where the neighbouring bands are at their ends too: dark water clipped to 0, a saturated roof.
    """
    layer = cube[..., band]
    values, counts = np.unique(layer[np.isfinite(layer)], return_counts=True)
    total = max(1, int(counts.sum()))
    found = []
    for index in np.flatnonzero(counts > max(8, 0.003 * layer.size)):
        near = np.r_[counts[max(0, index - 10) : index], counts[index + 1 : index + 11]]
        if len(near) and counts[index] > 10 * (1 + float(np.median(near))):
            low, high = counts[:index].sum() / total < 0.002, counts[index + 1 :].sum() / total < 0.002
            if not ((low or high) and _clipped(cube, band, layer == values[index], low=bool(low))):
                found.append(values[index])
    return np.array(found, np.float32)


def _clipped(cube: Floats, band: int, where: NDArray[np.bool_], *, low: bool) -> bool:
    """Whether most pixels of `where` lie in the lowest (highest) quarter of both neighbouring bands."""
    agree = np.ones(int(where.sum()), bool)
    for other in {max(0, band - 1), min(cube.shape[2] - 1, band + 1)} - {band}:
        layer = cube[..., other]
        quarter = np.nanpercentile(layer, 25 if low else 75)
        agree &= layer[where] <= quarter if low else layer[where] >= quarter
    return bool(agree.mean() > 0.5)


def _sparse(total: NDArray[np.float64], error: NDArray[np.float64], where: NDArray[np.bool_]) -> NDArray[np.float64]:
    """`E[c | total]`, `(columns, bands)`, for `total = c + error n`, c zero with probability 1 - p and `N(0, tau^2)` with p.

    p and tau of each band by EM; columns that are more likely zero stay zero.
    """
    weights = where / np.maximum(1, where.sum(0))
    usual = np.sqrt((weights * error**2).sum(0))
    p, tau = np.full(total.shape[1], 0.05), 3 * usual
    for _ in range(30):
        odds = p / (1 - p) * error / np.hypot(error, tau)
        odds = odds * np.exp(np.minimum(600, 0.5 * total**2 * (1 / error**2 - 1 / (error**2 + tau**2))))
        weight = odds / (1 + odds)
        shrink = tau**2 / (tau**2 + error**2)
        second = (shrink * total) ** 2 + shrink * error**2
        p = np.clip((weights * weight).sum(0), 1e-4, 0.5)
        tau = np.maximum(
            2 * usual, np.sqrt((weights * weight * second).sum(0) / np.maximum(1e-12, (weights * weight).sum(0)))
        )
    return np.where(where & (weight > 0.5), shrink * total, 0.0)
