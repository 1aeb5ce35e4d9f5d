"""Sampling masks by their usual names. All reach the acceleration asked for, the calibration region counted in."""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from suite.errors import InputError

MaskKind = Literal["uniform1d", "random1d", "gaussian1d", "gaussian2d", "poisson", "radial"]
KINDS: tuple[str, ...] = get_args(MaskKind)
Mask = NDArray[np.bool_]


def default_acs(kind: str, acceleration: float) -> float:
    """Share of each undersampled axis that is fully sampled around its centre (fastMRI: 8 % at 4x, 4 % at 8x)."""
    if not kind.endswith("1d"):
        return 0.0 if kind == "radial" else 0.1
    return 0.08 if acceleration <= 6 else 0.04


def sampling_mask(kind: str, shape: tuple[int, int], acceleration: float, acs: float, rng: np.random.Generator) -> Mask:
    """A mask `(nx,)` along the last axis for the `1d` kinds, else `(ny, nx)`.

    Args:
        kind: one of `KINDS`. `uniform1d` spaces its lines evenly outside the calibration lines (spacings differ by at most
            one); `gaussian` draws without replacement; `poisson` is variable-density Poisson disc without corners; `radial`
            is diameters at golden angles, rounded to the grid.
        shape: (ny, nx).
        acceleration: all points over sampled points.
        acs: fully sampled share around the centre of each undersampled axis.
        rng: random numbers.

    Raises:
        InputError: an unknown kind, or a calibration region larger than the samples allowed.
    """
    if kind not in KINDS:
        raise InputError(f"there is no mask '{kind}'; choose one of {', '.join(KINDS)}")
    if not acceleration >= 1 or not 0 <= acs <= 1:
        raise InputError(
            f"an acceleration of at least 1 and a share of 0..1 are needed, not {acceleration:g} and {acs:g}"
        )
    axes = shape[-1:] if kind.endswith("1d") else shape
    calibration = np.ones((), bool)
    for n in axes:
        line = np.zeros(n, bool)
        width = round(acs * n)
        line[n // 2 - width // 2 : n // 2 - width // 2 + width] = True
        calibration = np.logical_and.outer(calibration, line)
    count = round(math.prod(axes) / acceleration)
    if calibration.sum() > count or count < 1:
        raise InputError(
            f"{int(calibration.sum())} of {math.prod(axes)} points are calibration, and acceleration {acceleration:g} allows "
            f"{count}; lower --acs or --acceleration"
        )
    if kind == "uniform1d":
        return _uniform(calibration, count, rng)
    if kind == "poisson":
        return _poisson(calibration, count, rng)
    if kind == "radial":
        return _radial(calibration, count, rng)
    return _drawn(calibration, count, _density(kind, axes), rng)


def _density(kind: str, axes: tuple[int, ...]) -> NDArray[np.float64]:
    density = np.ones(())
    for n in axes:
        u = (np.arange(n) - n // 2) / (n / 2)
        density = np.multiply.outer(density, np.exp(-0.5 * (u / 0.4) ** 2) if "gaussian" in kind else np.ones(n))
    return density


def _drawn(calibration: Mask, count: int, density: NDArray[np.float64], rng: np.random.Generator) -> Mask:
    """Points without replacement: the largest of `u^(1/w)` (Efraimidis and Spirakis 2006)."""
    key = np.log(rng.random(calibration.shape)) / np.maximum(density, 1e-12)
    key[calibration] = np.inf
    mask = np.zeros(calibration.size, bool)
    mask[np.argsort(-key, axis=None)[:count]] = True
    return mask.reshape(calibration.shape)


def _uniform(calibration: Mask, count: int, rng: np.random.Generator) -> Mask:
    free = np.flatnonzero(~calibration)
    left = count - int(calibration.sum())
    mask = calibration.copy()
    if left > 0:
        step = len(free) / left
        mask[free[((np.arange(left) + rng.random()) * step).astype(int)]] = True
    return mask


def _poisson(calibration: Mask, count: int, rng: np.random.Generator) -> Mask:
    """Bisection on the size of the discs, then surplus points taken out at random."""
    ny, nx = calibration.shape
    v, u = (np.arange(ny) - ny // 2) / (ny / 2), (np.arange(nx) - nx // 2) / (nx / 2)
    radius = np.hypot(v[:, None], u[None, :])
    inside = np.flatnonzero((radius <= 1) | calibration)
    if count > len(inside):
        inside = np.arange(radius.size)
    order = rng.permutation(inside)
    low, high = 0.0, 4 * math.sqrt(radius.size / count)
    best = np.ones_like(calibration)
    best[(radius > 1) & ~calibration] = count > (radius <= 1).sum()
    for _ in range(12):
        middle = (low + high) / 2
        mask = calibration | _discs(order, middle * (0.2 + radius), radius.shape)
        if mask.sum() >= count:
            low, best = middle, mask
        else:
            high = middle
        if 0 <= mask.sum() - count <= 0.005 * count:
            break
    surplus = int(best.sum()) - count
    extra = np.flatnonzero(best & ~calibration)
    best.flat[rng.choice(extra, surplus, replace=False)] = False
    return best


def _discs(order: NDArray[np.intp], radius: NDArray[np.float64], shape: tuple[int, ...]) -> Mask:
    """Dart throwing: points in the given order, each keeping later ones out of its disc."""
    ny, nx = shape
    blocked, mask = np.zeros(shape, bool), np.zeros(shape, bool)
    reach = int(radius.max()) + 1
    dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    distance = np.hypot(dy, dx)
    for y, x in zip((order // nx).tolist(), (order % nx).tolist(), strict=True):
        if blocked[y, x]:
            continue
        mask[y, x] = True
        r = float(radius[y, x])
        k = int(r)
        top, left = max(0, y - k), max(0, x - k)
        bottom, right = min(ny, y + k + 1), min(nx, x + k + 1)
        disc = distance[reach + top - y : reach + bottom - y, reach + left - x : reach + right - x] < max(r, 0.5)
        blocked[top:bottom, left:right] |= disc
    return mask


def _radial(calibration: Mask, count: int, rng: np.random.Generator) -> Mask:
    ny, nx = calibration.shape
    mask = calibration.copy()
    steps = np.linspace(-0.5, 0.5, 2 * max(ny, nx), endpoint=False)
    angle = math.pi * rng.random()
    for _ in range(20 * max(ny, nx)):
        y = np.clip(np.round(ny // 2 + ny * steps * math.sin(angle)).astype(int), 0, ny - 1)
        x = np.clip(np.round(nx // 2 + nx * steps * math.cos(angle)).astype(int), 0, nx - 1)
        mask[y, x] = True
        if mask.sum() >= count:
            break
        angle += math.pi * (math.sqrt(5) - 1) / 2
    return mask
