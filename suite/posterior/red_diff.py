"""RED-diff: the prior as a regulariser of an optimisation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from suite.denoiser import Denoiser
from suite.errors import InputError
from suite.grid import time_grid
from suite.measurement import Measurement
from suite.noise import Noise
from suite.posterior.base import PosteriorMethod, error_variance
from suite.solver import Callback


class REDDiff(PosteriorMethod):
    """Optimises mu by Adam on `|W (A mu - y)|^2 / 2 + sum_t w_t <stop(eps_theta - eps), mu>` (Mardani et al. 2024, eq. 8).

    One step for each time, from noisy to clean, with fresh eps at `x_t = alpha mu + beta y + sigma eps`. The paper's weight
    `w_t = lambda sigma/alpha` makes the prior's gradient `lambda (mu - D)`; divided by `r_t^2 = s^2 q^2 / (s^2 + q^2)`, as here,

        gradient = A^T W^T W (A mu - y) + lambda (mu - D) / r_t^2,       D = E[x0 | x_t],

    it has the mean `(mu - m) / s^2` for white data N(m, s^2) at every t, and the score of the prior at the clean end for any:
    with lambda = 1 the minimum is the maximum a posteriori, whatever the size of the image, of A or of the noise. Sums are taken
    per item, and Adam's step is a share of s.

    A point estimate: its spread is that of the optimiser, not an uncertainty.

    Args:
        weight: lambda.
        data_std: standard deviation s of the prior's data (default: the prior's own `data_std`, or 1).
        rate: Adam's first step over s; it falls to 0 along a half cosine.
        momenta: Adam's decay rates.
        grid, start: time grid.
    """

    name = "red_diff"
    estimator = "point"
    steps = 100

    def __init__(
        self,
        weight: float = 1.0,
        data_std: float | None = None,
        rate: float = 0.1,
        momenta: tuple[float, float] = (0.9, 0.99),
        levels: tuple[float, float] = (2.0, 0.02),
    ) -> None:
        self.weight, self.data_std, self.rate, self.momenta = weight, data_std, rate, momenta
        self.levels = levels

    @torch.no_grad()
    def run(
        self,
        prior: Denoiser,
        measurement: Measurement,
        like: Tensor,
        *,
        noise: Noise,
        steps: int | None = None,
        y: Tensor | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """See `PosteriorMethod.run`."""
        process = prior.process
        std = float(getattr(prior, "data_std", 1.0)) if self.data_std is None else self.data_std
        first, last = (-math.log(q * std) for q in self.levels)
        times = time_grid(process, steps or self.steps, "logsnr", log_snr_range=(first, last))[:-1]
        x = None
        for number, time in enumerate(times, 1):
            t = time.reshape((1,) * like.ndim).to(like.device)
            r2 = float(error_variance(process, t, std))
            if x is None:
                mean = prior(process.start(noise.normal(like), y), t, y)
                x = measurement.proximal(mean, 1 / std**2, iterations=50)
                m1, m2 = torch.zeros_like(x), torch.zeros_like(x)
                continue
            mean = prior(process.marginal(x, t, noise.normal(like), y).to(like.dtype), t, y)
            g = measurement.gradient(x) + self.weight * (x - mean) / r2
            b1, b2 = self.momenta
            k = number - 1
            m1, m2 = b1 * m1 + (1 - b1) * g, b2 * m2 + (1 - b2) * g**2
            rate = self.rate * std * (1 + math.cos(math.pi * (number-1) / len(times))) / 2
            x = x - rate * (m1 / (1 - b1**k)) / ((m2 / (1 - b2**k)).sqrt() + 1e-12)
            if callback is not None:
                callback(number, x, mean)
        return x
