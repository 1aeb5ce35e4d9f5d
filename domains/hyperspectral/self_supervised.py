"""What `--method dds2m` needs of a cube: components beyond the subspace, and values held out to judge the fit by."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from domains.hyperspectral.containers import Cube, blocks
from domains.hyperspectral.eigen_images import fill_outside
from domains.hyperspectral.noise_model import NoiseModel
from domains.hyperspectral.restoration import reduction
from domains.hyperspectral.subspace import Floats, amplification, coefficients
from domains.hyperspectral.untrained import Fit, fit_untrained
from suite.errors import InputError
from suite.noise import generator
from suite.operators import Identity, LinearOperator

GUARDS = 8
"""Components kept beyond the rank: the network's spectra may turn into them."""

HELD = 0.05
"""Share of the known values that only judge."""

MOST_HELD = 400_000
LARGEST = 512**2
"""Pixels of a scene that one network is fitted to at most."""


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Values that take no part in a fit: their place in the measured scene, their band, themselves, their noise."""

    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    bands: NDArray[np.intp]
    values: Floats
    noise: Floats

    def error(self, images: Tensor, basis: Tensor) -> float:
        """Mean square error of components `(P, rows, columns)` there, in units of the noise: 1 is noise alone."""
        where = [torch.from_numpy(index) for index in (self.rows, self.columns, self.bands)]
        predicted = (images[:, where[0], where[1]] * basis[where[2]].T).sum(0)
        gap = (predicted - torch.from_numpy(self.values)) / torch.from_numpy(self.noise)
        return float(gap.double().square().mean())


def with_guards(cube: Cube, model: NoiseModel) -> NoiseModel:
    """The model with `GUARDS` more components: the strongest of what the subspace leaves."""
    bands = len(model.basis)
    extra = min(GUARDS, bands - model.rank - 1)
    if extra < 1:
        return model
    moments, pixels = np.zeros((bands, bands)), 0
    for block in blocks(*cube.shape, numbers=1 << 22):
        rows, mask = model.whiten(cube.values(block)[..., model.used])
        whitened, known = rows.reshape(-1, bands), mask.reshape(-1, bands)
        left = np.where(known, whitened - coefficients(whitened, known, model.basis) @ model.basis.T, 0)
        moments, pixels = moments + left.T.astype(np.float64) @ left, pixels + int(known.any(1).sum())
    variance, vectors = np.linalg.eigh(moments / max(1, pixels))
    basis = np.concatenate([model.basis, vectors[:, ::-1][:, :extra].astype(np.float32)], axis=1)
    basis = np.linalg.qr(basis)[0].astype(np.float32) * np.sign((basis * np.linalg.qr(basis)[0]).sum(0))
    return replace(model, basis=basis, variance=np.r_[model.variance, variance[::-1][:extra]])


def hold_out(
    cube: Cube, model: NoiseModel, seed: int
) -> tuple[Floats, NDArray[np.float64], NDArray[np.bool_], HeldOut]:
    """Components `(P, rows, columns)` from the values that stay, their noise, the pixels with data, and the values held out."""
    rows, columns, bands = cube.shape[0], cube.shape[1], int(model.used.sum())
    rng = np.random.default_rng(seed)
    share = min(HELD, MOST_HELD / (rows * columns * bands))
    images = np.empty((model.rank, rows, columns), np.float32)
    seen = np.zeros((rows, columns), bool)
    found: list[tuple[NDArray[np.intp], ...]] = []
    values, factors = [], []
    for block in blocks(*cube.shape, numbers=1 << 22):
        whitened, known = model.whiten(cube.values(block)[..., model.used])
        held = known & (rng.random(known.shape, np.float32) < share)
        kept = known & ~held
        flat, mask = whitened.reshape(-1, bands), kept.reshape(-1, bands)
        images[:, block] = coefficients(flat, mask, model.basis).T.reshape(-1, *whitened.shape[:2])
        seen[block] = mask.any(1).reshape(whitened.shape[:2])
        i, j, b = np.nonzero(held)
        found.append((i + block.start, j, b))
        values.append(whitened[held])
        if mask.any():
            factors.append(amplification(mask, model.basis, model.excess))
    i, j, b = (np.concatenate(parts) for parts in zip(*found, strict=True))
    judge = HeldOut(i, j, b, np.concatenate(values), model.excess[b])
    return images, np.sqrt(np.mean(factors, axis=0)), seen, judge


def dds2m(
    cube: Cube, model: NoiseModel, *, factor: int, seed: int, identity: str, steps: int
) -> tuple[Floats, NoiseModel, Fit]:
    """The components `(P, rows, columns)` of a scene, at `factor` times its resolution, by a network fitted to it alone.

    Raises:
        InputError: the scene is too large for one network.
    """
    pixels = cube.shape[0] * cube.shape[1] * factor**2
    if pixels > LARGEST:
        raise InputError(
            f"{cube.name}: has {pixels} pixels, and dds2m fits one network to at most {LARGEST}; cut the scene, or use subspace."
        )
    rank = model.rank
    model = with_guards(cube, model)
    images, noise, seen, judge = hold_out(cube, model, generator(seed, f"{identity} held").initial_seed() % 2**32)
    unit = torch.from_numpy(noise).float()[:, None, None]
    y = torch.from_numpy(fill_outside(images, ~seen)) / unit
    operator: LinearOperator = Identity()
    start = y[None]
    if factor > 1:
        operator = reduction((cube.shape[0] * factor, cube.shape[1] * factor), factor)
        start = F.interpolate(start, scale_factor=factor, mode="bicubic")
        seen = np.ones_like(seen)  # what has no data was filled
    basis = torch.from_numpy(model.basis)
    fit = fit_untrained(
        y[None],
        operator,
        torch.from_numpy(seen)[None, None],
        start,
        rank,
        lambda found: judge.error(operator(found)[0] * unit, basis),
        seed=seed,
        identity=identity,
        steps=steps,
    )
    return (fit.images * unit).numpy(), model, fit
