"""Second-order statistics of spectra: covariance, and the noise of each band by regression on the others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def covariance(pixels: NDArray[np.float32]) -> NDArray[np.float64]:
    """`(bands, bands)` second moments of `(pixels, bands)`, about zero; summed in float64 block by block."""
    total = np.zeros((pixels.shape[1],) * 2)
    for first in range(0, len(pixels), 1 << 16):
        block = pixels[first : first + (1 << 16)].astype(np.float64)
        total += block.T @ block
    return total / len(pixels)


def regression_noise(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Standard deviation of each band's residual after regression on all other bands (HySime's noise estimate).

    Bioucas-Dias and Nascimento 2008, "Hyperspectral subspace identification", algorithm 1. The residual variance of band b is
    `1 / (C^-1)_bb`, C the covariance, so one inverse serves all bands; it is divided by the share of degrees of freedom that
    are left.
    """
    return regression_residual(covariance(pixels - pixels.mean(0)), len(pixels)).astype(np.float32)


def regression_residual(moments: NDArray[np.float64], pixels: int) -> NDArray[np.float64]:
    """The same from the covariance of centred pixels and their number."""
    scale = np.sqrt(np.maximum(np.diag(moments), 1e-30))
    correlation = moments / np.outer(scale, scale) + 1e-9 * np.eye(len(moments))  # duplicated bands leave it singular
    residual = 1 / np.diag(np.linalg.inv(correlation))
    left = max(0.05, 1 - (len(moments) - 1) / pixels)
    return np.asarray(scale * np.sqrt(residual / left))
