"""The spectral subspace of a scene: whitened principal components, and their coefficients where values are missing.

In units of each band's noise, a spectrum is `w = E z + n` with n white of deviation 1 and E `(bands, rank)` orthonormal; then
`z_hat = E^T w` holds all that the spectrum says about z, with the same white noise, and every eigen-image is a denoising problem
of its own with a known Gaussian likelihood.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
RIDGE = 1e-4
"""Keeps a spectrum of which almost nothing is known from running away."""


def subspace(moments: NDArray[np.float64], pixels: int, *, most: int = 64) -> tuple[Floats, NDArray[np.float64]]:
    """Basis `(bands, rank)` and variances `(rank,)` of the components above the noise, from the whitened covariance.

    Noise of deviation 1 alone has covariance eigenvalues up to `(1 + sqrt(bands / pixels))^2` (Marchenko and Pastur 1967); what
    lies above that edge is signal, unless it lies in one band: that is noise which the estimate of the band missed. At
    least one component, at most `most`, and never all bands.
    """
    bands = len(moments)
    variance, vectors = np.linalg.eigh(moments)
    variance, vectors = variance[::-1], vectors[:, ::-1]
    edge = (1 + math.sqrt(bands / pixels)) ** 2
    signal = (variance > edge) & (np.square(vectors).max(0) < 0.5)
    chosen = np.flatnonzero(signal)[: max(1, min(most, bands - 1))]
    chosen = chosen if len(chosen) else np.array([0])
    return np.ascontiguousarray(vectors[:, chosen], dtype=np.float32), variance[chosen]


def coefficients(whitened: Floats, known: NDArray[np.bool_], basis: Floats) -> Floats:
    """Least-squares coefficients `(pixels, rank)` of spectra of which only some bands are known.

    `argmin |M (w - E z)|^2`, by the normal equations of each incomplete spectrum, `E^T M E z = E^T M w`.
    """
    rank = basis.shape[1]
    z: Floats = np.where(known, whitened, np.float32(0)) @ basis
    gaps = np.flatnonzero(~known.all(1))
    products = (basis[:, :, None] * basis[:, None, :]).reshape(len(basis), rank * rank)
    step = max(1, (1 << 22) // rank**2)
    for first in range(0, len(gaps), step):
        part = gaps[first : first + step]
        normal = (known[part].astype(np.float32) @ products).reshape(-1, rank, rank)
        z[part] = np.linalg.solve(normal + RIDGE * np.eye(rank, dtype=np.float32), z[part][..., None])[..., 0]
    return z


def amplification(known: NDArray[np.bool_], basis: Floats, noise: Floats, most: int = 512) -> NDArray[np.float64]:
    """Mean noise variance of each coefficient `(rank,)`: 1 where every band is known and all noise is 1.

    `diag(P S P^T)` with `P = (E^T M E)^-1 E^T M` and S the variances `noise^2` of the bands.
    """
    rows = np.flatnonzero(known.any(1))
    rows = rows[:: max(1, len(rows) // most)]
    wide = basis.astype(np.float64)
    total = np.zeros(basis.shape[1])
    for mask in known[rows]:
        kept = wide[mask]
        inverse = np.linalg.solve(kept.T @ kept + RIDGE * np.eye(kept.shape[1]), kept.T)
        total += np.square(inverse * noise[mask]).sum(1)
    return total / max(1, len(rows))
