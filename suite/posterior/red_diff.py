"""RED-diff: the prior as the regulariser of an optimisation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from suite.denoiser import Denoiser
from suite.errors import InputError
from suite.grid import time_grid
from suite.linalg import dot, expand
from suite.measurement import Measurement
from suite.noise import Noise
from suite.posterior.base import PosteriorMethod, error_variance, prior_std
from suite.solver import Callback


class REDDiff(PosteriorMethod):
    """Adam on `|W (A mu - y)|^2 / 2 + sum_t w_t <stop(eps_theta - eps), mu>` (Mardani et al. 2024, eq. 8).

    One step for each time, from noisy to clean, at `x_t = alpha mu + beta y + sigma eps` with fresh eps. The paper's weight
    `w_t = lambda sigma/alpha` makes the gradient of the prior `lambda (mu - D)`; over `r_t^2 = s^2 q^2 / (s^2 + q^2)`, as here,

        gradient = A^T W^T W (A mu - y) + lambda (mu - D) / r_t^2,       D = E[x0 | x_t],

    it has the mean `(mu - m) / s^2` for white data N(m, s^2) at every time, and at the clean end that of minus the prior's
    score for any data: with lambda = 1 the minimum is the maximum a posteriori, whatever the size of the image, the norm of A or
    the noise. Sums run over one item, and Adam's step is a share of s.

    D carries a part of eps along, which says nothing about mu and would drown the gradient at the clean end; its projection
    on eps is taken off D.

    A point estimate, whose spread is that of the optimiser: on the problems of `diffsuite verify` its std ratios are 0.02 to
    0.38, see docs/verify.md.

    Args:
        weight: lambda.
        data_std: standard deviation s of the prior's data (default: the prior's own `data_std`, or 1).
        rate: Adam's first step over s; it falls to 0 along half a cosine.
        momenta: Adam's decay rates.
        levels: first and last noise level q = sigma/alpha, over s; the start of the process stands in for the first.
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
        self.weight, self.data_std, self.rate, self.momenta, self.levels = weight, data_std, rate, momenta, levels

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
        """See `PosteriorMethod.run`. The start is the posterior mean for the prior N(D, s^2), D from pure noise."""
        if measurement.noise_level == 0:
            raise InputError("red_diff weighs the data by their noise and this measurement has none; use ddnm or dds")
        process = prior.process
        std = prior_std(prior, self.data_std)
        first, last = (-math.log(q * std) for q in self.levels)
        times = time_grid(process, self.steps if steps is None else steps, "logsnr", log_snr_range=(first, last))[:-1]
        t, *later = (time.reshape((1,) * like.ndim).to(like.device) for time in times)
        mean = prior(process.start(noise.normal(like), y), t, y)
        mu = measurement.proximal(mean, 1 / std**2)
        adam = _Adam(mu, self.momenta)
        for number, t in enumerate(later, 1):
            eps = noise.normal(like)
            mean = prior(process.marginal(mu, t, eps, y).to(like.dtype), t, y)
            mean = mean - expand(dot(mean - mu, eps) / dot(eps, eps), eps) * eps
            pull = self.weight / float(error_variance(process, t, std)) * (mu - mean)
            rate = self.rate * std * (1 + math.cos(math.pi * number / len(times))) / 2
            mu = mu - rate * adam.direction(measurement.gradient(mu) + pull)
            if callback is not None:
                callback(number, mu, mean)
        return mu


class _Adam:
    """Adam's direction (Kingma and Ba 2015, algorithm 1), element by element."""

    def __init__(self, like: Tensor, momenta: tuple[float, float]) -> None:
        self.first, self.second = torch.zeros_like(like), torch.zeros_like(like)
        self.momenta, self.count = momenta, 0

    def direction(self, gradient: Tensor) -> Tensor:
        self.count += 1
        b1, b2 = self.momenta
        self.first = b1 * self.first + (1 - b1) * gradient
        self.second = b2 * self.second + (1 - b2) * gradient**2
        tiny = torch.finfo(gradient.dtype).tiny
        return self.first / (1 - b1**self.count) / (self.second / (1 - b2**self.count) + tiny).sqrt()
