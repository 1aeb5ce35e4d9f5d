"""Sequential Monte Carlo: asymptotically exact for any prior and any linear measurement."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from suite.denoiser import Denoiser
from suite.errors import InputError
from suite.grid import time_grid
from suite.linalg import dot
from suite.measurement import Measurement
from suite.noise import Noise
from suite.posterior.base import PosteriorMethod, error_variance, prior_std
from suite.process import Process
from suite.solver import Callback


class SMC(PosteriorMethod):
    """Twisted particle filter along the reverse process (Wu et al. 2023, TDS; also Trippe et al. 2023; Cardoso et al. 2024;
    Dou and Song 2024), one filter of `particles` for each batch item.

    The reverse kernel of the prior is `k(z_s | z_t) = int N(x0; D, r_t^2) q(z_s | z_t, x0) dx0` with the Markov bridge q: exact
    for white Gaussian data, and for any data as the steps get small. The twist `psi_t(z) = N(y; A D(z), r_t^2 A A^T + R)` is
    PiGDM's likelihood. A particle moves by `x0 ~ N(D, r_t^2) N(y | A x0)` (perturb and MAP) and `q(z_s | z_t, x0)`: the
    optimal proposal where D moves along the bridge as for white data, `D' = D + k (z_s - E z_s)`. What is left for the weight
    is how far the network disagrees,

        w = N(y; A D(z_s), S) / N(y; A D', S),       S = r_s^2 A A^T + R,

    so it needs no gradient of the network, is 1 for white Gaussian priors, and corrects for every other one. Particles are
    resampled (systematically) when the effective sample size falls below half of them.

    The result converges to the posterior of the discretised prior as the particles grow, and that to the posterior as the steps
    do: in `diffsuite verify` its std ratios are 0.99 to 1.01, for mixtures too, see docs/verify.md. One evaluation of the
    network takes all particles of all items at once.

    Args:
        particles: of each filter.
        data_std: standard deviation s of the prior's data (default: the prior's own `data_std`, or 1).
        levels: first and last noise level q = sigma/alpha, over s; the start of the process stands in for the first.
        iterations, tolerance: of the conjugate gradients.
    """

    name = "smc"
    estimator = "sample"
    exact_for = ("white", "correlated", "mixture")
    steps = 100

    def __init__(
        self,
        particles: int = 32,
        data_std: float | None = None,
        levels: tuple[float, float] = (20.0, 0.03),
        iterations: int = 200,
        tolerance: float = 1e-5,
    ) -> None:
        if particles < 1:
            raise InputError(f"a particle filter needs at least one particle, not {particles}")
        self.particles, self.data_std, self.levels = particles, data_std, levels
        self.iterations, self.tolerance = iterations, tolerance

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
        if measurement.noise_level == 0:
            raise InputError("smc weighs particles by the noise of the data and this measurement has none; use daps")
        cloud = _Cloud(self, prior, measurement, like, noise, y)
        first, last = (-math.log(q * cloud.data_std) for q in self.levels)
        times = time_grid(prior.process, self.steps if steps is None else steps, "logsnr", log_snr_range=(first, last))[
            :-1
        ]
        knots = [t.reshape((1,) * like.ndim).to(like.device) for t in times]
        x = prior.process.start(cloud.draw(), cloud.y)
        mean = prior(x, knots[0], cloud.y)
        weight = cloud.weigh(mean, None, knots[0])
        for number, (t, s) in enumerate(pairwise(knots), 1):
            x, expected = cloud.move(x, mean, t, s)
            mean = prior(x, s, cloud.y)
            weight = weight + cloud.weigh(mean, expected, s)
            order, weight = cloud.resample(weight)
            x, mean = x[order], mean[order]
            if callback is not None:
                best = cloud.pick(weight)
                callback(number, x[best], mean[best])
        out = cloud.clean(mean, knots[-1])[cloud.pick(weight)]
        if callback is not None:
            callback(len(knots), out, out)
        return out


class _Cloud:
    """All particles of all filters, particle-major: row `p * B + i` is particle p of item i."""

    def __init__(
        self, method: SMC, prior: Denoiser, measurement: Measurement, like: Tensor, noise: Noise, y: Tensor | None
    ) -> None:
        self.method, self.process, self.measurement, self.noise = method, prior.process, measurement, noise
        self.items, self.count, self.like = len(like), method.particles, like
        self.y = None if y is None else y.expand_as(like).repeat(self.count, *(1,) * (like.ndim - 1))
        self.data_std = prior_std(prior, method.data_std)

    def draw(self) -> Tensor:
        """White noise for every particle; a filter's numbers do not depend on its neighbours."""
        white = self.noise.normal(self.like.new_empty(self.items, self.count, *self.like.shape[1:]))
        return white.transpose(0, 1).flatten(0, 1)

    def each(self, function: Callable[..., Tensor], *states: Tensor) -> Tensor:
        """A function of a batch of items, for each particle in turn: the measurement knows the items, not the particles."""
        return torch.cat([function(*parts) for parts in zip(*(s.split(self.items) for s in states), strict=True)])

    def near_data(self, v: Tensor, t: Tensor) -> Tensor:
        """`argmin |W (A x - y)|^2 + |x - v|^2 / r_t^2`."""
        precision = 1 / self.variance(t)
        return self.measurement.proximal(
            v, float(precision), iterations=self.method.iterations, tolerance=self.method.tolerance
        )

    def variance(self, t: Tensor) -> Tensor:
        return error_variance(self.process, t, self.data_std)

    def clean(self, mean: Tensor, t: Tensor) -> Tensor:
        """`x0 ~ N(D, r_t^2) N(y | A x0)`."""
        precision = float(1 / self.variance(t))

        def posterior(v: Tensor) -> Tensor:
            return self.measurement.posterior_draw(
                v, precision, self.noise, iterations=self.method.iterations, tolerance=self.method.tolerance
            )

        return self.each(posterior, mean)

    def move(self, x: Tensor, mean: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """`(x_s, D')`: the proposal, and the denoised mean it foresees there."""
        a, b, v = bridge(self.process, t, s)
        r2 = self.variance(t)
        z = self.process.shift(x, t, self.y)
        new = a * z + b * self.clean(mean, t) + v * self.draw()
        gain = b * r2 / (v**2 + b**2 * r2)
        expected = mean + gain * (new - a * z - b * mean)
        if self.y is not None:
            new = new + self.process.beta(s) * self.y
        return new.to(x.dtype), expected.to(x.dtype)

    def weigh(self, mean: Tensor, expected: Tensor | None, t: Tensor) -> Tensor:
        """`log N(y; A D, S) - log N(y; A D', S)`, `(P, B)`; without D' the first term alone (up to a constant).

        With `e = W (A D - y)` and likewise e', the difference of the quadratic forms is `(e - e') S^-1 (e + e')`, and
        `S^-1 e` is the residual of the proximal point of D: one solve, at the midpoint.
        """
        residual = self.measurement.residual

        def log_ratio(d: Tensor, d1: Tensor) -> Tensor:
            return -dot(residual(d) - residual(d1), residual(self.near_data((d + d1) / 2, t)))

        def log_twist(d: Tensor) -> Tensor:
            return -dot(residual(d), residual(self.near_data(d, t))) / 2

        out = self.each(log_twist, mean) if expected is None else self.each(log_ratio, mean, expected)
        return out.unflatten(0, (self.count, self.items))

    def resample(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Rows to go on with, and their log weights `(P, B)`: systematic, in the filters that have become unequal."""
        share = torch.softmax(weight.double(), 0)
        poor = 1 / share.square().sum(0) < self.count / 2
        u = self._uniform()
        places = (u + torch.arange(self.count, device=u.device)[:, None]) / self.count
        chosen = torch.searchsorted(share.T.cumsum(1).contiguous(), places.T.contiguous()).T.clamp_max(self.count - 1)
        stay = torch.arange(self.count, device=u.device)[:, None].expand_as(chosen)
        rows = torch.where(poor, chosen, stay) * self.items + torch.arange(self.items, device=u.device)
        return rows.flatten(), torch.where(poor, torch.zeros_like(weight), weight)

    def pick(self, weight: Tensor) -> Tensor:
        """One row for each filter, drawn by weight."""
        share = torch.softmax(weight.double(), 0).T.cumsum(1).contiguous()
        chosen = torch.searchsorted(share, self._uniform().T.contiguous())[:, 0].clamp_max(self.count - 1)
        return chosen * self.items + torch.arange(self.items, device=chosen.device)

    def _uniform(self) -> Tensor:
        white = self.noise.normal(torch.empty(self.items, 1, dtype=torch.float64, device=self.like.device))
        return torch.special.ndtr(white).T


def bridge(process: Process, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`(a, b, v)` of `z_s = a z_t + b x0 + v xi`: the law of z_s between z_t and x0 when z is Markov (DDPM's posterior)."""
    alpha_t, alpha_s, sigma_t, sigma_s = process.alpha(t), process.alpha(s), process.sigma(t), process.sigma(s)
    seen = sigma_t > 0
    decay = torch.where(seen, alpha_t * sigma_s / (alpha_s * torch.where(seen, sigma_t, 1.0)), 0.0)  # exp(-h)
    a = torch.where(seen, decay * sigma_s / torch.where(seen, sigma_t, 1.0), 0.0)
    return a, alpha_s * (1 - decay**2), sigma_s * torch.sqrt((1 - decay**2).clamp_min(0))
