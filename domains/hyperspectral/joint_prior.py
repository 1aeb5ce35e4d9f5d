"""The joint spatial-spectral prior at work: a posterior over the whole cube, without a subspace (`--method finch`).

Every band is standardised, so that band b has noise of deviation `n_b`. Where neighbouring bands are alike noisy, the cube is a
state of the diffusion around each band, at that band's level, and the network's answer the posterior mean. Elsewhere
DDRM's transition: while the diffusion is noisier than a band, the band itself is its state; below, the network's estimate is.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from domains.hyperspectral.eigen_images import lay, lay_back
from suite.denoiser import Denoiser
from suite.measurement import Measurement
from suite.noise import Noise
from suite.operators import Identity
from suite.posterior.ddrm import DDRM

STEPS, TURNS = 8, 8
TILES = (256, 64, 64)
HALO = (8, 8, 8)
COARSEST = 6.0
"""Noisiest level the prior is asked at; bands with more noise than this follow the others."""

ALIKE = 1.2
"""Neighbouring bands whose noise differs by no more than this factor (in the median) share a state of the diffusion."""

FARTHEST, MISFIT = 5.0, 1.5
"""Noise takes no value further from the truth, in deviations, and no larger mean square over 5 x 5 x 5 values. Where an answer says
so the network is beside itself (bright things it never saw), and those at other levels count."""

SPACING = 1.5
"""Levels at which the posterior mean is computed are at most this factor apart; bands between them are interpolated."""


class Windowed(Denoiser):
    """A denoiser of cubes `(1, 1, bands, rows, columns)` applied to windows that see `HALO` beyond their edges."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner.process)
        self.inner = inner

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        out = torch.empty_like(x)
        for first in itertools.product(*(range(0, n, tile) for n, tile in zip(x.shape[2:], TILES, strict=True))):
            wide: list[Any] = [slice(max(0, a - h), a + n + h) for a, n, h in zip(first, TILES, HALO, strict=True)]
            kept: list[Any] = [slice(a, a + n) for a, n in zip(first, TILES, strict=True)]
            inside: list[Any] = [slice(k.start - w.start, k.stop - w.start) for k, w in zip(kept, wide, strict=True)]
            out[(..., *kept)] = self.inner(x[(..., *wide)], t)[(..., *inside)]
        return out


def joint_posterior(
    network: Denoiser, y: Tensor, noise: Tensor, seen: Tensor, *, draw: Noise, steps: int
) -> tuple[Tensor, int]:
    """An estimate of the standardised cube.

    Args:
        network: prior of band windows.
        y: `(bands, rows, columns)`, each band of mean 0 and deviation 1 without its noise; a first guess where not seen.
        noise: deviation in each band, `(bands,)`.
        seen: which values were measured, `(bands, rows, columns)`.
        steps: network evaluations at most.

    Returns:
        The estimate, and the evaluations made.
    """
    levels = noise.clamp(0.02, COARSEST)
    denoiser, whole = Windowed(network), bool(seen.all())
    if whole and (steps == 1 or float((levels[1:] / levels[:-1]).log().abs().median()) <= math.log(ALIKE)):
        return _mean(denoiser, y, levels.log(), steps)
    low, high = float(levels.min()), float(levels.max()) if whole else max(float(levels.max()), 1.0)
    std = noise[:, None, None] if whole else torch.where(seen, noise[:, None, None], math.inf)
    like = y[None, None]
    method = DDRM(start=float(_time(denoiser, high)), finest=low, init=like)
    measured = Measurement(Identity(), like, std[None, None])
    return method.run(denoiser, measured, like, noise=draw, steps=steps)[0, 0], steps


def _mean(denoiser: Denoiser, y: Tensor, logs: Tensor, steps: int) -> tuple[Tensor, int]:
    """The posterior mean of each band at the logarithm of its own level, between those of a grid; averaged over ways to lay it."""
    low, high = float(logs.min()), float(logs.max())
    count = min(steps, 1 + math.ceil((high - low) / math.log(SPACING) - 1e-6))
    turns = min(TURNS, steps // count)
    if count == 1:
        grid, shares = logs.median()[None], torch.ones_like(logs)[None]
    else:
        grid = torch.linspace(low, high, count, device=logs.device)
        shares = (1 - (logs - grid[:, None]).abs() * (count - 1) / (high - low)).clamp_min(0)
    noise = logs.exp()[:, None, None]
    out, total = torch.zeros_like(y), torch.zeros_like(y)
    for level, share in zip(grid.tolist(), shares, strict=True):
        time = _time(denoiser, math.exp(level)).reshape(1, 1, 1, 1, 1)
        laid = (denoiser(lay(y, turn)[None, None].contiguous(), time)[0, 0] for turn in range(turns))
        found: Tensor = sum((lay_back(x, turn) for turn, x in enumerate(laid)), torch.zeros_like(y)) / turns
        removed = ((y - found) / noise).clamp(-FARTHEST, FARTHEST)
        misfit = F.avg_pool3d(removed.square()[None, None], 5, 1, 2, count_include_pad=False)[0, 0]
        weight = (share[:, None, None] + 1e-4) * (misfit < MISFIT) + 1e-9
        out, total = out + weight * (y - noise * removed), total + weight
    return out / total, count * turns


def _time(denoiser: Denoiser, level: float) -> Tensor:
    return denoiser.process.time_of_log_snr(torch.tensor(-math.log(level), dtype=torch.float64))
