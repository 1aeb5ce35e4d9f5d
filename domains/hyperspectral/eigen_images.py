"""Denoising of eigen-images `(rank, rows, columns)` whose white noise has a known deviation: with the prior, or by NLM.

The likelihood of an eigen-image is `N(z_hat; z, s^2)` with the identity as its operator, so z_hat itself is the state of the
diffusion at the noise level s, and no guidance is needed: the posterior mean is `D(z_hat; s)`, one evaluation, and the reverse
diffusion started at (z_hat, s) draws from the posterior (Kawar et al. 2021, "Stochastic image denoising by sampling from the
posterior distribution").
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from skimage.restoration import denoise_nl_means
from torch import Tensor

from domains.hyperspectral.training import GUIDES
from suite.denoiser import Denoiser
from suite.noise import Noise
from suite.prior import Prior
from suite.solver import DPMppSDE2M, sample

Floats = NDArray[np.float32]
TILE, HALO = 384, 32
FINEST = 0.01
"""Eigen-images with less noise than this (deviation 1 of the signal) are left as they are."""

LOWEST, RHO = 0.01, 7.0
"""Noise level from which the last step of a draw goes to the clean state, and the spacing before (Karras et al. 2022, eq. 5)."""


def fill_outside(images: Floats, outside: NDArray[np.bool_]) -> Floats:
    """Pixels without data take the value of the nearest one with data."""
    if not outside.any():
        return images
    rows, columns = distance_transform_edt(outside, return_distances=False, return_indices=True)
    filled: Floats = images[:, rows, columns]
    return filled


class EigenPosterior:
    """The posterior of every eigen-image under the prior.

    Args:
        prior: see `domains.hyperspectral.training`.
        images: `(rank, rows, columns)`, strongest first.
        noise: deviation of each, `(rank,)`.
        precision, clock: see `suite.prior.PriorDenoiser`.
    """

    def __init__(
        self,
        prior: Prior,
        images: Floats,
        noise: NDArray[np.float64],
        *,
        precision: str = "auto",
        clock: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        device = next(prior.net.parameters()).device
        z = torch.from_numpy(np.ascontiguousarray(images))[:, None].to(device)
        sigma = torch.from_numpy(noise).float().to(device)[:, None, None, None]
        self.centre = z.mean((2, 3), keepdim=True)
        total = z.var((2, 3), keepdim=True)
        self.scale = (total - sigma**2).clamp_min(0.01 * sigma**2).sqrt()
        self.y = (z - self.centre) / self.scale
        self.level = (sigma / self.scale).double()
        self.standard = (z - self.centre) / total.sqrt()
        self.network = prior.denoiser(precision=precision, clock=clock)
        self.denoiser = Tiled(self.network)
        self.evaluations = 0

    def mean(self, turns: int = 8) -> Floats:
        """Posterior mean; the average over the first `turns` of the 8 ways to lay the image, one evaluation each."""
        found = self.y.clone()
        for k in range(len(self.y)):
            if float(self.level[k]) >= FINEST:
                found[k] = self._average(k, turns)
        self.evaluations += turns
        return self._units(found)

    def _average(self, k: int, turns: int) -> Tensor:
        t = self.network.process.time_of_log_snr(-self.level[k : k + 1].log())
        y, guides = self.y[k : k + 1], self.guides(k)
        total = torch.zeros_like(y[0])
        for chosen in (range(0, turns, 2), range(1, turns, 2)):  # those of one shape go through the network together
            if len(chosen):
                laid = torch.cat([lay(y, turn) for turn in chosen])
                found = self.denoiser(laid, t, torch.cat([lay(guides, turn) for turn in chosen]))
                total += sum(lay_back(found[i : i + 1], turn)[0] for i, turn in enumerate(chosen))
        return total / turns

    def guides(self, k: int) -> Tensor:
        """The strongest other eigen-images `(1, GUIDES, rows, columns)`, noisy; zero where there are too few."""
        out = torch.zeros(1, GUIDES, *self.y.shape[2:], dtype=self.y.dtype, device=self.y.device)
        for slot, other in enumerate([i for i in range(len(self.y)) if i != k][:GUIDES]):
            out[0, slot] = self.standard[other, 0]
        return out

    def draw(self, noise: Noise, steps: int) -> Floats:
        """One posterior draw: the stochastic reverse diffusion from each image's own noise level, `steps` evaluations."""
        process = self.network.process
        out = torch.empty_like(self.y)
        for k in range(len(self.y)):
            level = float(self.level[k])
            if level < FINEST:
                out[k] = self.y[k] - level * noise.normal(self.y[k : k + 1])[0]
                continue
            ends = level ** (1 / RHO), min(0.5 * level, LOWEST) ** (1 / RHO)
            ratios = torch.linspace(*ends, steps, dtype=torch.float64) ** RHO
            grid = torch.cat([process.time_of_log_snr(-ratios.log()), torch.zeros(1, dtype=torch.float64)])
            alpha = process.alpha(grid[:1]).to(self.y.dtype)
            out[k : k + 1] = sample(
                self.denoiser, DPMppSDE2M(), grid, alpha * self.y[k : k + 1], y=self.guides(k), noise=noise
            )
        self.evaluations += steps
        return self._units(out)

    def _units(self, u: Tensor) -> Floats:
        out: Floats = (u * self.scale + self.centre)[:, 0].float().cpu().numpy()
        return out


def lay(x: Tensor, turn: int) -> Tensor:
    """One of the 8 ways to lay an image `(..., rows, columns)`."""
    x = torch.rot90(x, turn % 4, (-2, -1))
    return x.flip(-2) if turn >= 4 else x


def lay_back(x: Tensor, turn: int) -> Tensor:
    """The inverse of `lay`."""
    return torch.rot90(x.flip(-2) if turn >= 4 else x, -(turn % 4), (-2, -1))


class Tiled(Denoiser):
    """A denoiser applied to tiles that see `HALO` pixels beyond their edges, so that large scenes need little memory."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner.process)
        self.inner = inner

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        rows, columns = x.shape[2:]
        if max(rows, columns) <= TILE + 2 * HALO:
            return self.inner(x, t, y)
        out = torch.empty_like(x)
        for i in range(0, rows, TILE):
            for j in range(0, columns, TILE):
                top, left = max(0, i - HALO), max(0, j - HALO)
                window = (..., slice(top, i + TILE + HALO), slice(left, j + TILE + HALO))
                part = self.inner(x[window], t, None if y is None else y[window])
                out[..., i : i + TILE, j : j + TILE] = part[..., i - top :, j - left :][..., :TILE, :TILE]
        return out


def nlm(images: Floats, noise: NDArray[np.float64]) -> Floats:
    """Non-local means (Buades, Coll and Morel 2005) on each eigen-image, the patch distance corrected for the known noise."""
    out = np.empty_like(images)
    for k, (image, sigma) in enumerate(zip(images, noise, strict=True)):
        out[k] = denoise_nl_means(
            image, patch_size=5, patch_distance=9, h=0.6 * float(sigma), sigma=float(sigma), fast_mode=True
        )
    return out
