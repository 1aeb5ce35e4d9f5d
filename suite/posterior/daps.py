"""Decoupled annealing posterior sampling: samples without a gradient of the network."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from suite.denoiser import Denoiser
from suite.errors import InputError
from suite.grid import time_grid
from suite.linalg import dot, expand
from suite.measurement import Measurement
from suite.noise import Noise
from suite.posterior.base import PosteriorMethod, error_variance
from suite.process import Process
from suite.solver import Callback

Renoise = Literal["shared", "fresh"]


class DAPS(PosteriorMethod):
    """Decoupled annealing (Zhang et al. 2025), one network evaluation for each noise level q = sigma/alpha.

    At each level `x0 | x_t, y ~ N(D, r_t^2) N(y | A x0)` with `D = E[x0 | x_t]` and `r_t^2 = s^2 q^2 / (s^2 + q^2)`, then x0 is
    carried to the next, cleaner level by the marginal `x_s = alpha_s x0 + beta_s y + sigma_s eps`. Nothing else links the levels,
    so an error made at one of them is forgotten at the next ones. (The paper's D is the end of the probability-flow ODE, which
    is itself as wide as the prior: with r_t around it the spread comes out too large. The posterior mean is exact for Gaussian
    data of covariance s^2, and close for others.)

    `renoise="fresh"` is this algorithm: x0 is drawn (perturb and MAP for linear operators, Langevin steps for others). For
    white data it is exact at any number of levels. A network, however, meets more noise than it is told: where it is sure of
    x0, the white spread r_t adds to sigma_s.

    `renoise="shared"` (linear operators; default) takes the mean of x0 instead of a draw and leaves the spread to the noise,

        x_s / alpha_s = E[x0 | x_t, y] + p R + w R',      w = q_s / sqrt(2),

    where R is the R' of the step before. With p = w this is Leimkuhler and Matthews' (2013) discretisation of Langevin
    dynamics at temperature one, whose law is exact for Gaussian data of any covariance, white or not; where the data or the
    prior leave no freedom, the noise of x_s is just sigma_s. p is slightly larger than w to make up for the falling q, such that
    unobserved white data keep their variance: `(s^2 + q^2) g^2 + 2 g p q / sqrt(2) + p^2 + w^2 = s^2 + q_s^2`, g = r_t^2/q^2.
    Only the last level draws x0.

    In both, what remains is the error of the scalar r_t in the gain towards the data, which falls as the levels become many.

    Args:
        renoise: see above; operators that are not linear always take "fresh".
        data_std: standard deviation s of the prior's data (default: the prior's own `data_std`, or 1).
        levels: first and last noise level q over s (before them comes the start of the process).
        iterations, tolerance: of the conjugate gradients.
        langevin_steps: for operators that are not linear, at each level.
    """

    name = "daps"
    estimator = "sample"
    exact_for = ("white", "correlated")
    steps = 50

    def __init__(
        self,
        renoise: Renoise = "shared",
        data_std: float | None = None,
        levels: tuple[float, float] = (2.0, 0.02),
        iterations: int = 50,
        tolerance: float = 1e-4,
        langevin_steps: int = 100,
        pace: float = 1.5,
    ) -> None:
        self.pace = pace
        if renoise not in ("shared", "fresh"):
            raise InputError(f"DAPS re-noises with 'shared' or 'fresh' noise, not {renoise!r}")
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
        std = float(getattr(prior, "data_std", 1.0)) if self.data_std is None else self.data_std
        first, last = (-math.log(q * std) for q in self.levels)
        times = time_grid(process, steps or self.steps, "logsnr", log_snr_range=(first, last))[:-1]
        knots = [t.reshape((1,) * like.ndim).to(like.device) for t in times]
        shared = self.renoise == "shared" and measurement.linear
        old = noise.normal(like)
        x = process.start((old + noise.normal(like)) / math.sqrt(2) if shared else old, y)
        for number, t in enumerate(knots, 1):
            mean = prior(x, t, y)
            variance = float(error_variance(process, t, std))
            if number == len(knots):
                x0 = self.draw(measurement, mean, variance, noise)
            elif shared:
                s, new = knots[number], noise.normal(like)
                x0 = measurement.proximal(mean, 1 / variance, iterations=self.iterations, tolerance=self.tolerance)
                th = self.pace if number > 1 else 1.0
                p, w = shared_noise(process, t, s, std, th, self.pace)
                z = process.shift(x, t, y) / process.alpha(t) if th != 1 else x0
                x0s = z + th * (x0 - z)
                x = process.marginal(x0s + p * old, s, w * new, y).to(like.dtype)
                old = new
            else:
                x0 = self.draw(measurement, mean, variance, noise)
                x = process.marginal(x0, knots[number], noise.normal(like), y).to(like.dtype)
            if callback is not None:
                callback(number, x0 if number == len(knots) else x, x0)
        return x0

    def draw(self, measurement: Measurement, mean: Tensor, variance: float, noise: Noise) -> Tensor:
        """`x0 ~ N(mean, variance) N(y | A x0)`."""
        if measurement.linear:
            return measurement.posterior_draw(
                mean, 1 / variance, noise, iterations=self.iterations, tolerance=self.tolerance
            )
        return langevin(measurement, mean, variance, noise, self.langevin_steps)


def shared_noise(process, t, s, data_std, th, th2) -> tuple[float, float]:
    alpha_t, sigma_t = float(process.alpha(t)), float(process.sigma(t))
    qs = float(process.sigma(s) / process.alpha(s))
    r2 = float(error_variance(process, t, data_std))
    if alpha_t*data_std < 1e-6*sigma_t:
        return math.sqrt(data_std**2+qs**2*(1-th2/2)), math.sqrt(th2/2)
    q = sigma_t/alpha_t
    g = r2/q**2; A = 1-th+th*g
    w = math.sqrt((th2 if th==th2 else 1.)/2)*q
    p = -A*w+math.sqrt(max(0,(A*w)**2+(data_std**2+qs**2)-th2/2*qs**2-A*A*(data_std**2+q*q)))
    return p, math.sqrt(th2/2)


def langevin(measurement: Measurement, mean: Tensor, variance: float, noise: Noise, steps: int) -> Tensor:
    """Draws from `exp(-U)`, `U(x) = |W (A(x) - y)|^2 / 2 + |x - mean|^2 / (2 variance)`, A not linear.

    Kinetic Langevin dynamics from the mean, unadjusted, in the BAOAB splitting (Leimkuhler and Matthews 2013), whose law in x
    is exact where U is quadratic. Each item has its own step, 0.7 over the root of U's largest curvature; the friction is
    critical for the prior term.
    """

    def gradient(x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (pull,) = torch.autograd.grad(measurement.negative_log_likelihood(x).sum(), x)
        return pull + (x.detach() - mean) / variance

    step = expand(0.7 / _curvature(gradient, mean, math.sqrt(variance), noise).sqrt(), mean)
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


def _curvature(gradient: object, x: Tensor, scale: float, noise: Noise, iterations: int = 8) -> Tensor:
    """Largest curvature of U around x, `(B,)`: power iteration on differences of the gradient over `scale`."""
    assert callable(gradient)
    v, largest = noise.normal(x), torch.zeros(len(x), device=x.device)
    for _ in range(iterations):
        v = v * expand(scale / dot(v, v).sqrt(), v)
        v = (gradient(x + v / 2) - gradient(x - v / 2)) / scale
        largest = torch.maximum(largest, dot(v, v).sqrt())
    return largest
