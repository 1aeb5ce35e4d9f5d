"""The joint spatial-spectral prior at work: a posterior over the whole cube, without a subspace (`--method finch`).

Every band is standardised, so that band b has noise of deviation `n_b`. DDRM's transition is made for such data: while the
diffusion is noisier than a band, the band itself is its state; below, the network's estimate takes over. With the same noise in
all bands that is one evaluation, the posterior mean.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from suite.denoiser import Denoiser
from suite.measurement import Measurement
from suite.noise import Noise
from suite.operators import Identity
from suite.posterior.ddrm import DDRM

STEPS = 6
TILES = (96, 64, 64)
HALO = (8, 8, 8)
COARSEST = 6.0
"""Noisiest level the prior is asked at; bands with more noise than this follow the others."""


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


def joint_posterior(network: Denoiser, y: Tensor, noise: Tensor, seen: Tensor, *, draw: Noise, steps: int) -> Tensor:
    """An estimate of the standardised cube.

    Args:
        network: prior of band windows.
        y: `(bands, rows, columns)`, each band of mean 0 and deviation 1 without its noise; a first guess where not seen.
        noise: deviation in each band, `(bands,)`.
        seen: which values were measured, `(bands, rows, columns)`.
        steps: network evaluations; one where all bands are alike noisy and nothing is missing.
    """
    levels = noise.clamp(0.02, COARSEST)
    low, high = float(levels.min()), float(levels.max())
    whole = bool(seen.all())
    steps = steps if not whole or high > 1.2 * low else 1
    high = high if whole else max(high, 1.0)
    std = (
        torch.where(seen, noise[:, None, None], math.inf)[None, None] if not whole else noise[None, None, :, None, None]
    )
    denoiser = Windowed(network)
    time = denoiser.process.time_of_log_snr(torch.tensor(-math.log(high), dtype=torch.float64))
    if steps == 1:
        return denoiser(y[None, None], time.reshape(1, 1, 1, 1, 1))[0, 0]
    like = y[None, None]
    method = DDRM(start=float(time), finest=low, init=like)
    return method.run(denoiser, Measurement(Identity(), like, std), like, noise=draw, steps=steps)[0, 0]
