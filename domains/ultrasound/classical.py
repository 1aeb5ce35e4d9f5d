"""Haze reduction without learning, on grey values 0..1: what a learned result is compared with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Grey = NDArray[np.float32]
Mask = NDArray[np.bool_]

COMMON = 80
"""Percentile over the sector up to which a static layer counts as tissue."""


def background(grey: Grey, sector: Mask) -> Grey:
    """Haze as a smooth, static layer: a morphological opening of the minimum over time, above what most of the sector has.

    A static additive haze is nowhere brighter than the darkest value over time. The opening (a disc of radius 1/42 of the
    picture's side) takes out tissue finer than that. Radius and percentile were fitted to two simulated cines.
    """
    lowest = grey.min(0)
    radius = max(2, max(grey.shape[1:]) // 42)
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    opened = ndimage.grey_opening(lowest, footprint=x**2 + y**2 <= radius**2)
    smooth = ndimage.gaussian_filter(opened, radius / 2)
    haze = np.clip(smooth - np.percentile(smooth[sector], COMMON), 0, None) * sector
    return np.asarray(grey - np.minimum(haze, lowest), np.float32)


def svd_filter(grey: Grey, sector: Mask, components: int = 1) -> Grey:
    """Singular value clutter filter (Demené et al. 2015): the strongest space-time components are clutter.

    Their mean over the sector is added again, so that the brightness stays.
    """
    pixels = grey[:, sector]
    u, s, v = np.linalg.svd(pixels, full_matrices=False)
    slow = (u[:, :components] * s[:components]) @ v[:components]
    out = grey.copy()
    out[:, sector] = np.clip(pixels - slow + slow.mean(), 0, 1)
    return out


def rpca(grey: Grey, sector: Mask, iterations: int = 60) -> Grey:
    """Robust PCA (Candès et al. 2011) by the inexact augmented Lagrangian (Lin et al. 2010): low rank is haze, sparse is tissue.

    Of the low-rank part only what lies above this percentile counts as haze, else static tissue would go too.
    """
    y = grey[:, sector].astype(np.float64)
    weight = 1 / np.sqrt(max(y.shape))
    norm = np.linalg.norm(y, 2)
    dual = y / max(norm, float(np.abs(y).max()) / weight)
    sparse, mu = np.zeros_like(y), 1.25 / norm
    for _ in range(iterations):
        u, s, v = np.linalg.svd(y - sparse + dual / mu, full_matrices=False)
        low = (u * np.maximum(s - 1 / mu, 0)) @ v
        rest = y - low + dual / mu
        sparse = np.sign(rest) * np.maximum(np.abs(rest) - weight / mu, 0)
        dual += mu * (y - low - sparse)
        mu = min(1.5 * mu, 1e7 / norm)
        if np.linalg.norm(y - low - sparse) < 1e-6 * np.linalg.norm(y):
            break
    out = grey.copy()
    out[:, sector] = np.clip(y - np.clip(low - np.percentile(low, COMMON), 0, None), 0, 1)
    return out


CLASSICAL: dict[str, Callable[[Grey, Mask], Grey]] = {"background": background, "svd": svd_filter, "rpca": rpca}
"""Each takes grey values `(frame, row, column)` and the sector and returns them with less haze."""

REFERENCE = "background"
