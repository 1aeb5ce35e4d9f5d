"""The diffusion: the exact denoiser of the linear-Gaussian residual, and a network's correction to it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from domains.weather.hierarchy import Predictive
from domains.weather.network import MOST_SEEDS, FieldNet
from suite.denoiser import Denoiser
from suite.grid import time_grid
from suite.process import Process, process
from suite.solver import SOLVERS, sample

SIGMA_MIN = 0.01
STEPS = 12


@dataclass(frozen=True)
class Condition:
    """What one batch is conditioned on.

    Attributes:
        predictive: linear-Gaussian law for this K, lead and target.
        mean: its conditional mean `(B, C, H, W)`.
        context: features of the seeds `(B, F, H, W)`.
        scalars: `(B, SCALARS)`.
        mask: `(1, C, H, W)`, 1 where the fields exist.
    """

    predictive: Predictive
    mean: Tensor
    context: Tensor
    scalars: Tensor
    mask: Tensor

    def repeat(self, index: Tensor) -> Condition:
        """The same for the items `index` of the batch, repeated as often as they are named."""
        return Condition(self.predictive, self.mean[index], self.context[index], self.scalars[index], self.mask)


def scalars_of(seeds: int, truth: bool, lead: float, season: Tensor) -> Tensor:
    """`(B, SCALARS)` for `season` `(B, 2)`, sine and cosine of the day of the year."""
    out = torch.zeros(len(season), MOST_SEEDS + 5)
    out[:, seeds] = 1
    out[:, MOST_SEEDS + 1] = float(truth)
    out[:, MOST_SEEDS + 2] = lead
    out[:, MOST_SEEDS + 3 :] = season
    return out


def condition(
    net: FieldNet, predictive: Predictive, seeds: Tensor, scalars: Tensor, static: Tensor, mask: Tensor
) -> Condition:
    """`seeds` are standardised anomalies `(B, K, C, H, W)`; K = 0 is allowed."""
    shape = (seeds.shape[0], *seeds.shape[2:])
    centre = seeds.mean(1) if seeds.shape[1] else seeds.new_zeros(shape)
    with torch.autocast(seeds.device.type, enabled=False):
        mean = predictive.mean(centre.flatten(1)).reshape(shape)
    return Condition(predictive, mean, net.encode(seeds, mean, static), scalars, mask)


def corrected(net: FieldNet, z: Tensor, sigma: Tensor, given: Condition) -> tuple[Tensor, Tensor]:
    """`(D, scale)`: the denoised residual `D = D_G(z) + scale F`, `scale` the error of the Gaussian denoiser D_G.

    In the Gaussian case D_G is exact and F vanishes; where it is not, the target of F has unit variance at every level.
    """
    shape, level = z.shape, sigma.reshape(-1, 1).expand(len(z), 1)
    with torch.autocast(z.device.type, enabled=False):
        gaussian = given.predictive.posterior_mean(z.flatten(1), level).reshape(shape)
        scale = given.predictive.error(level)[..., None, None]
        total = (given.predictive.variance + level**2).sqrt()[..., None, None]
        inputs = torch.cat([z / total, gaussian / given.predictive.variance**0.5], 1)
    raw = net(inputs, level[:, 0].log() / 4, given.scalars, given.context)
    return (gaussian + scale * raw.float()) * given.mask, scale


class SeedDenoiser(Denoiser):
    """`E[r | r + sigma eps]` for the residual r about the conditional mean, under a variance-exploding process."""

    def __init__(
        self,
        net: FieldNet | None,
        given: Condition,
        proc: Process,
        clock: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        super().__init__(proc)
        self.net, self.given, self.clock = net, given, clock
        self.evaluations = 0

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        sigma = self.process.sigma(t).to(x.dtype)
        self.evaluations += 1
        if self.net is None:  # the Gaussian law itself
            level = sigma.reshape(-1, 1).expand(len(x), 1)
            return self.given.predictive.posterior_mean(x.flatten(1), level).reshape(x.shape)
        with self.clock():
            return corrected(self.net, x, sigma, self.given)[0]


def process_for(predictive: Predictive) -> Process:
    """EDM from three times the largest standard deviation of any direction down to `SIGMA_MIN`."""
    high = 3 * float(predictive.values.max()) ** 0.5
    return process("edm", sigma_min=SIGMA_MIN, sigma_max=max(high, 1.0), rho=7.0)


def sample_residual(
    denoiser: SeedDenoiser, eps: Tensor, *, spread: float = 1.0, steps: int = STEPS, solver: str = "deis"
) -> Tensor:
    """Residuals `(B, C, H, W)` from white noise `eps`, deterministically.

    The start is `N(0, C + sigma^2)` with the linear-Gaussian covariance C instead of `N(0, sigma^2)`; `spread` scales it,
    which scales every member's distance from the mean exactly by as much in the Gaussian case.

    Args:
        steps: network evaluations at most.
    """
    stepper = SOLVERS[solver]()
    intervals = max(1, steps if stepper.cost == 1 else (steps + 1) // stepper.cost)
    grid = time_grid(denoiser.process, intervals, "karras")
    sigma = float(denoiser.process.sigma(grid[0]))
    start = spread * denoiser.given.predictive.draw(eps.flatten(1), sigma).reshape(eps.shape)
    return sample(denoiser, stepper, grid, start * denoiser.given.mask)
