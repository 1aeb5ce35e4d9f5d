"""The standard noise cases of hyperspectral denoising (Wei et al. 2020, QRNN3D; Bodrito et al. 2021, T3SC).

Each band is scaled to 0..1 by its own minimum and maximum, the noise is added there, and the result is scaled back.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from domains.hyperspectral.restoration import cubic_reduction
from suite.config import Config
from suite.errors import InputError

Case = Literal["gaussian", "noniid", "stripe", "deadline", "impulse", "mixture", "missing", "lowres"]


class SimulationConfig(Config):
    """A noise case.

    Attributes:
        case: `gaussian`: the same sigma in every band. `noniid`: sigma of each band uniform in 10..70. The others add to
            `noniid`, on a third of the bands: `stripe` offsets of 5-15 % of the columns, uniform in +-0.25; `deadline` 5-15 % of
            the columns set to 0; `impulse` salt and pepper on 10, 30, 50 or 70 % of the pixels; `mixture` all three, each on its
            own third. Two problems beside the noise cases: `missing`, noise of `gaussian` and random values NaN; `lowres`, the
            cube reduced by bicubic interpolation, then noise of `gaussian`.
        sigma: of `gaussian`, `missing` and `lowres`, in 1/255 of a band's range.
        keep: of `missing`, share of the values that stay.
        factor: of `lowres`, old pixels per new one in either direction.
        seed: counts from 0.
    """

    case: Case = "gaussian"
    sigma: float = Field(default=50.0, ge=0)
    keep: float = Field(default=0.3, gt=0, le=1)
    factor: int = Field(default=2, ge=2, le=8)
    seed: int = Field(default=0, ge=0)


def band_range(values: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Minimum and extent of each band `(bands,)`, NaN left out; the extent of a constant or empty band is 1."""
    count = np.isfinite(values).any((0, 1))
    low = np.where(count, np.nanmin(np.where(count, values, 0), axis=(0, 1)), 0)
    high = np.where(count, np.nanmax(np.where(count, values, 0), axis=(0, 1)), 0)
    return low.astype(np.float32), np.where(high > low, high - low, 1).astype(np.float32)


def degrade(clean: NDArray[np.float32], config: SimulationConfig) -> NDArray[np.float32]:
    """The noisy cube `(rows, columns, bands)` in the units of the clean one; NaN stays NaN."""
    low, extent = band_range(clean)
    rng = np.random.default_rng(config.seed)
    if config.case == "lowres":
        clean = reduced(clean, config.factor)
    bands = clean.shape[2]
    x = (clean - low) / extent
    alike = config.case in ("gaussian", "missing", "lowres")
    sigma = np.full(bands, config.sigma) if alike else rng.uniform(10, 70, bands)
    x = x + (rng.standard_normal(x.shape) * (sigma / 255)).astype(np.float32)
    order, third = rng.permutation(bands), max(1, bands // 3)
    thirds = {"stripe": order[:third], "deadline": order[-third:], "impulse": order[third : 2 * third]}
    for case, chosen in thirds.items():
        if config.case in (case, "mixture"):
            for band in chosen:
                x[..., band] = _ADD[case](x[..., band], rng)
    missing = ~np.isfinite(clean)
    if config.case == "missing":
        x = np.where(rng.random(x.shape) < config.keep, x, np.float32(np.nan))
    out: NDArray[np.float32] = np.where(missing, clean, low + extent * x).astype(np.float32)
    return out


def reduced(clean: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """`(rows / factor, columns / factor, bands)` by antialiased bicubic interpolation; trailing pixels are cut.

    Raises:
        InputError: a value is missing, or the scene is smaller than the factor.
    """
    rows, columns = (n // factor * factor for n in clean.shape[:2])
    if min(rows, columns) == 0 or not np.isfinite(clean).all():
        raise InputError("the case lowres needs a cube without missing values that is larger than the factor")
    down, across = (cubic_reduction(n, factor).numpy() for n in (rows, columns))
    out = np.einsum("ir,jc,rcb->ijb", down, across, clean[:rows, :columns], optimize=True)
    return np.asarray(out, np.float32)


def _columns(columns: int, rng: np.random.Generator) -> NDArray[np.intp]:
    return rng.permutation(columns)[: max(1, int(columns * rng.uniform(0.05, 0.15)))]


def _stripe(layer: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    chosen = _columns(layer.shape[1], rng)
    layer = layer.copy()
    layer[:, chosen] += rng.uniform(-0.25, 0.25, len(chosen)).astype(np.float32)
    return layer


def _deadline(layer: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    layer = layer.copy()
    layer[:, _columns(layer.shape[1], rng)] = 0
    return layer


def _impulse(layer: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    hit = rng.random(layer.shape) < rng.choice([0.1, 0.3, 0.5, 0.7])
    salt = rng.random(layer.shape) < 0.5
    return np.where(hit, salt.astype(np.float32), layer)


_ADD = {"stripe": _stripe, "deadline": _deadline, "impulse": _impulse}
