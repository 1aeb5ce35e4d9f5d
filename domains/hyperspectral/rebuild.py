"""From an estimate of the whitened spectra back to the cube, rows by rows, with the checks of what was removed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from domains.hyperspectral.containers import Cube, blocks
from domains.hyperspectral.data import fit
from domains.hyperspectral.noise_model import NoiseModel
from domains.hyperspectral.subspace import Floats

Spectra = Callable[[slice], Floats]
"""Some rows of the clean cube in units of the noise, `(rows, columns, used)`."""


@dataclass(frozen=True)
class Estimate:
    """What a method says of a cube.

    Attributes:
        spectra: the estimate.
        draws: posterior draws.
        evaluations: network evaluations per image.
        estimator: `mean` of the posterior, or `point`.
        told: what the record should say beside that.
    """

    spectra: Spectra
    draws: Sequence[Spectra] = ()
    evaluations: int = 0
    estimator: Literal["mean", "point"] = "point"
    told: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Denoised:
    """A result.

    Attributes:
        data: `(rows, columns, bands)` in the type and units of the cube; bands and pixels outside the model as they were.
        std: deviation of the draws and of what the subspace leaves out, float32, NaN outside the model; None without draws.
        model: the noise model.
        lost: share of the values of each used band that told nothing (missing, dead, outliers).
        repaired: missing values that were filled.
        chi2: mean square of the residual over the noise, of the values that counted.
        whiteness: correlation of neighbouring residuals along rows and columns; 0 for white noise.
        estimate: what the method said.
    """

    data: NDArray[Any]
    std: Floats | None
    model: NoiseModel
    lost: NDArray[np.float64]
    repaired: int
    chi2: float
    whiteness: tuple[float, float]
    estimate: Estimate


def of_images(images: Floats, model: NoiseModel) -> Spectra:
    """Whitened spectra of eigen-images `(rank, rows, columns)`."""

    def spectra(rows: slice) -> Floats:
        out: Floats = np.tensordot(images[:, rows], model.basis, axes=(0, 1))
        return out

    return spectra


def rebuild(
    cube: Cube, model: NoiseModel, estimate: Estimate, lost: NDArray[np.float64], *, fill: bool = False
) -> Denoised:
    """The cube with the estimate in its used bands; values outside the model stay as they are.

    Args:
        fill: give pixels without any data their estimate too.
    """
    out = np.array(cube.data, copy=True, order="C")
    std = np.full(cube.shape, np.nan, np.float32) if estimate.draws else None
    bands = np.flatnonzero(model.used)
    total = square = along = across = 0.0
    repaired = 0
    for block in blocks(*cube.shape, numbers=1 << 22):
        stored = cube.values(block)[..., model.used]
        there = np.isfinite(stored)
        raw = np.asarray(cube.data[block])[..., model.used]
        gaps = ~there if fill else ~np.isfinite(raw) & there.any(2, keepdims=True)
        clean = estimate.spectra(block)
        fitted = fit(model.mean + model.unit * clean, cube.data.dtype)
        repaired += int(gaps.sum())
        out[block][..., bands] = np.where(there | gaps, fitted, raw)
        whitened, mask = model.whiten(stored)
        left = np.where(mask, (whitened - clean) / model.excess, 0)
        total, square = total + float(mask.sum()), square + float(np.square(left).sum(dtype=np.float64))
        along += float((left[:, 1:] * left[:, :-1]).sum(dtype=np.float64))
        across += float((left[1:] * left[:-1]).sum(dtype=np.float64))
        if std is not None:
            spread = np.std([draw(block) for draw in estimate.draws], axis=0, ddof=1) * model.unit
            spread = np.hypot(spread, model.missed)
            std[block][..., bands] = np.where(there | gaps, spread, np.nan)
    correlation = (along / max(square, 1e-12), across / max(square, 1e-12))
    return Denoised(out, std, model, lost, repaired, square / max(total, 1), correlation, estimate)
