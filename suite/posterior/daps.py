"""Decoupled annealing posterior sampling: posterior samples without a gradient of the network."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from suite.denoiser import Denoiser
from suite.errors import InputError
from suite.grid import time_grid
from suite.linalg import dot, expand
from suite.measurement import Measurement
from suite.noise import Noise
from suite.posterior.base import PosteriorMethod, error_variance, prior_std
from suite.process import Process
from suite.solver import Callback

Renoise = Literal["shared", "fresh"]


class DAPS(PosteriorMethod):
    """Decoupled annealing (Zhang et al. 2025): one network evaluation and one data step at each noise level q = sigma/alpha.

    At every level `x0 | x_t, y ~ N(D, r^2) N(y | A x0)` with `D = E[x0 | x_t]` and `r^2 = s^2 q^2 / (s^2 + q^2)`, s the standard
    deviation of the data; then x0 is carried to the next, cleaner level by the marginal of the process. The levels share nothing
    else, so errors made at one of them are forgotten at the later ones. (The paper's D is the end point of the probability-flow
    ODE. That is itself as wide as the prior, and with r around it the spread comes out too large; the posterior mean takes one
    evaluation and is exact for white Gaussian data.)

    `renoise="fresh"` is this algorithm, with x0 drawn exactly (perturb and MAP; Langevin steps where A is not linear). For
    white data of variance s^2 it is exact with any number of levels. A network, however, then meets more noise than it is told:
    where it is sure of x0, the white spread r comes on top of q.

    `renoise="shared"` (default where A is linear) takes the mean `E = E[x0 | x_t, y]` in place of the draw, and lets the noise
    alone carry the spread: with z = x_t / alpha_t, and R the noise drawn one level before, R' the new one,

        z_s = z + theta (E - z) + p R + w R',        w = sqrt(theta / 2) q_s,    theta = 3/2.

    With p = w this is the scheme of Leimkuhler and Matthews (2013) for Langevin dynamics with steps theta q^2. Its law is exact
    for Gaussians of any covariance, so directions that the prior or the data determine hold noise q and no more. p exceeds w a
    little to keep up with the falling q: white unobserved data keep their variance when, with a = 1 - theta + theta r^2 / q^2,

        a^2 (s^2 + q^2) + 2 a p w_t + p^2 + w^2 = s^2 + q_s^2,        w_t = sqrt(theta / 2) q.

    Only the last level draws x0. Both variants keep the error of the scalar r in the pull towards the data, which is what more
    levels reduce: for Gaussians the std ratios in `diffsuite verify` are 0.99 to 1.01; for mixtures 1.01 to 1.05, and means up
    to 0.18 posterior standard deviations off, see docs/verify.md.

    Args:
        renoise: see above; an operator that is not linear always takes "fresh".
        data_std: standard deviation s of the prior's data (default: the prior's own `data_std`, or 1).
        levels: first and last noise level q, over s; the start of the process stands in for the first.
        iterations, tolerance: of the conjugate gradients.
        langevin_steps: at each level, where A is not linear.
    """

    name = "daps"
    estimator = "sample"
    exact_for = ("white", "correlated")
    steps = 60

    def __init__(
        self,
        renoise: Renoise = "shared",
        data_std: float | None = None,
        levels: tuple[float, float] = (1.5, 0.02),
        iterations: int = 50,
        tolerance: float = 1e-4,
        langevin_steps: int = 100,
    ) -> None:
        if renoise not in ("shared", "fresh"):
            raise InputError(f"DAPS carries x0 on with 'shared' or 'fresh' noise, not {renoise!r}")
        self.renoise, self.data_std, self.levels = renoise, data_std, levels
        self.iterations, self.tolerance, self.langevin_steps = iterations, tolerance, langevin_steps

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
        std = prior_std(prior, self.data_std)
        first, last = (-math.log(q * std) for q in self.levels)
        times = time_grid(process, self.steps if steps is None else steps, "logsnr", log_snr_range=(first, last))[:-1]
        knots = [t.reshape((1,) * like.ndim).to(like.device) for t in times]
        shared = _SharedNoise(process, std, noise, y) if self.renoise == "shared" and measurement.linear else None
        x = process.start(noise.normal(like), y) if shared is None else shared.start(like)
        for number, t in enumerate(knots, 1):
            mean, variance = prior(x, t, y), float(error_variance(process, t, std))
            if number == len(knots):
                x = x0 = self.draw(measurement, mean, variance, noise)
            elif shared is None:
                x0 = self.draw(measurement, mean, variance, noise)
                x = process.marginal(x0, knots[number], noise.normal(like), y).to(like.dtype)
            else:
                x0 = measurement.proximal(mean, 1 / variance, iterations=self.iterations, tolerance=self.tolerance)
                x = shared.carry(x, x0, t, knots[number])
            if callback is not None:
                callback(number, x, x0)
        return x

    def draw(self, measurement: Measurement, mean: Tensor, variance: float, noise: Noise) -> Tensor:
        """`x0 ~ N(mean, variance) N(y | A x0)`."""
        if not measurement.linear:
            return langevin(measurement, mean, variance, noise, self.langevin_steps)
        return measurement.posterior_draw(
            mean, 1 / variance, noise, iterations=self.iterations, tolerance=self.tolerance
        )


class _SharedNoise:
    """The step of `renoise="shared"`, with the noise it remembers."""

    theta = 1.5  # of the Langevin step; below 2 for stability, above 1 to forget faster

    def __init__(self, process: Process, data_std: float, noise: Noise, y: Tensor | None) -> None:
        self.process, self.data_std, self.noise, self.y = process, data_std, noise, y
        self.first = True

    def start(self, like: Tensor) -> Tensor:
        self.old = self.noise.normal(like)
        share = self.theta / 2
        return self.process.start(math.sqrt(share) * self.old + math.sqrt(1 - share) * self.noise.normal(like), self.y)

    def carry(self, x: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """`x_s` from x_t and the mean of x0."""
        # From the start, where alpha may be 0, the step is plain: z_s = E + p R + w R'.
        theta = 1.0 if self.first else self.theta
        alpha, sigma = float(self.process.alpha(t)), float(self.process.sigma(t))
        q_s = float(self.process.sigma(s) / self.process.alpha(s))
        s2, share = self.data_std**2, self.theta / 2
        gain = alpha**2 * s2 / (alpha**2 * s2 + sigma**2)  # g = r^2 / q^2
        if self.first:  # a = g, written without q
            a2_total, a_w = gain * s2, math.sqrt(share) * alpha * sigma * s2 / (alpha**2 * s2 + sigma**2)
            centre = x0
        else:
            a, q = 1 - theta + theta * gain, sigma / alpha
            a2_total, a_w = a**2 * (s2 + q**2), a * math.sqrt(share) * q
            z = self.process.shift(x, t, self.y) / alpha
            centre = z + theta * (x0 - z)
        p = math.sqrt(max(0.0, a_w**2 + s2 + (1 - share) * q_s**2 - a2_total)) - a_w
        new = self.noise.normal(x)
        out = self.process.marginal(centre + p * self.old, s, math.sqrt(share) * new, self.y)
        self.old, self.first = new, False
        return out.to(x.dtype)


def langevin(measurement: Measurement, mean: Tensor, variance: float, noise: Noise, steps: int) -> Tensor:
    """Draws from `exp(-U)`, `U(x) = |W (A(x) - y)|^2 / 2 + |x - mean|^2 / (2 variance)`, A differentiable.

    Kinetic Langevin dynamics from the mean, unadjusted, in the BAOAB splitting of Leimkuhler and Matthews (2013), whose law of x
    is exact where U is quadratic. Each item has its own step, 0.7 over the root of the largest curvature of U around the mean;
    the friction is critical for the prior term, so `steps` should exceed a few times sqrt(1 + |W A'|^2 variance).
    """

    def gradient(x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (pull,) = torch.autograd.grad(measurement.negative_log_likelihood(x).sum(), x)
        return pull + (x.detach() - mean) / variance

    step = expand(0.7 / curvature(gradient, mean, math.sqrt(variance), noise).sqrt(), mean)
    keep = torch.exp(-2 * step / math.sqrt(variance))
    x, velocity, force = mean, noise.normal(mean), -gradient(mean)
    for _ in range(steps):
        velocity = velocity + step / 2 * force
        x = x + step / 2 * velocity
        velocity = keep * velocity + (1 - keep**2).sqrt() * noise.normal(x)
        x = x + step / 2 * velocity
        force = -gradient(x)
        velocity = velocity + step / 2 * force
    return x


def curvature(
    gradient: Callable[[Tensor], Tensor], x: Tensor, scale: float, noise: Noise, iterations: int = 8
) -> Tensor:
    """Largest curvature `(B,)` of a potential around x: power iteration on differences of its gradient over `scale`."""
    v, largest = noise.normal(x), torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for _ in range(iterations):
        v = v * expand(scale / dot(v, v).sqrt(), v)
        v = (gradient(x + v / 2) - gradient(x - v / 2)) / scale
        largest = torch.maximum(largest, dot(v, v).sqrt())
    return largest
