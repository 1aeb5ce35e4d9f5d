"""What a posterior method is: something that turns a prior's denoiser and a measurement into estimates of the signal."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from suite.denoiser import Denoiser
from suite.errors import InputError
from suite.grid import time_grid
from suite.measurement import Measurement
from suite.noise import Noise
from suite.posterior.splitting import falling_levels, split
from suite.process import Process
from suite.solver import SOLVERS, Callback, Knot, Solver, sample


class PosteriorMethod(ABC):
    """A way to estimate `x0` from `y = A x0 + n` with a diffusion prior.

    Attributes:
        name: as on the command line.
        estimator: "sample" when its draws follow the posterior (graded in suite/verify.py), else "point".
        exact_for: the kinds of prior for which they do, of "white" and "correlated" (Gaussians) and "mixture"; none for "point".
        steps: network evaluations it advertises, and uses when none are asked for.
        differentiates: True when it back-propagates through the network.
    """

    name: ClassVar[str]
    estimator: ClassVar[Literal["sample", "point"]]
    exact_for: ClassVar[tuple[str, ...]] = ()
    steps: ClassVar[int]
    differentiates: ClassVar[bool] = False

    @abstractmethod
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
        """Estimates of the signal, one per batch item.

        Args:
            prior: denoiser of any process the method serves.
            measurement: in the prior's units; a batch of one serves every item.
            like: template `(B, C, *spatial)`: batch, shape, dtype and device of the result.
            noise: random numbers, per item.
            steps: network evaluations, an upper bound (default: `self.steps`).
            y: anchor of an anchored process.
            callback: called after each step with its number (from 1), the new state and the estimate of `x0` it used.

        Raises:
            InputError: a process or operator it cannot serve; the message names what would work.
        """

    def check(self, prior: Denoiser) -> None:
        """Refuse a prior this method cannot differentiate through."""
        if self.differentiates and not prior.differentiable:
            raise InputError(
                f"the method {self.name} differentiates through the network and this one is cached or quantised; "
                "use dds, diffpir, ddnm, daps or red_diff"
            )


class Guided(PosteriorMethod):
    """A method that is a denoiser wrapping a denoiser, sampled by any solver.

    Args:
        solver: name in `suite.solver.SOLVERS`, or a solver (default: the method's own).
        grid: kind of time grid (`suite.grid.time_grid`).
        start: time to start from (default: where the noise level is the first of `levels`).
        data_std: standard deviation s of the prior's data (default: the prior's own `data_std`, or 1).
        init: estimate of the signal to start from, at the noise level of `start` (default: the process's own start).
        renoise: False leaves all noise out of the state: half-quadratic splitting (`suite.posterior.splitting`), a point
            estimate of less error, from `init` (else from 0), with its own grid and no solver.
        finest: noise level sigma/alpha of the last evaluation, in the grids `logsnr` and `karras` (default: the second
            of `levels`); without noise in the state also one for each item `(B,)`.
        momentum: extrapolation of the splitting, 0 to 1.

    Attributes:
        levels: first and last noise level q = sigma/alpha, over s.
    """

    default_solver: ClassVar[str] = "ddim"
    grid: str = "logsnr"
    levels: ClassVar[tuple[float, float]] = (150.0, 0.002)

    def __init__(
        self,
        solver: str | Solver | None = None,
        grid: str | None = None,
        start: float | None = None,
        data_std: float | None = None,
        init: Tensor | None = None,
        renoise: bool = True,
        finest: float | Tensor | None = None,
        momentum: float = 0.0,
    ) -> None:
        if isinstance(solver, str) and solver not in SOLVERS:
            raise InputError(f"there is no solver named {solver!r}; choose one of {', '.join(SOLVERS)}")
        if data_std is not None and not data_std > 0:
            raise InputError(f"the standard deviation of the prior's data must be positive, not {data_std}")
        if renoise and isinstance(finest, Tensor) and finest.numel() > 1:
            raise InputError(
                "a finest level for each item is for renoise=False; with noise in the state give one number"
            )
        self.solver, self.grid = solver, grid or type(self).grid
        if not 0 <= momentum < 1 or (momentum and renoise):
            raise InputError(f"momentum is {momentum}; it lies in [0, 1) and is for renoise=False")
        self.start, self.data_std, self.init, self.renoise, self.finest = start, data_std, init, renoise, finest
        self.momentum = momentum

    @abstractmethod
    def guide(self, prior: Denoiser, measurement: Measurement, noise: Noise) -> Denoiser:
        """The posterior denoiser `E[x0 | x_t, measurement]`, or the method's stand-in for it."""

    def stepper(self, guide: Denoiser, measurement: Measurement) -> Solver:
        """The solver of a run: the one asked for, or the method's own."""
        solver = self.solver or self.default_solver
        return SOLVERS[solver]() if isinstance(solver, str) else solver

    def times(self, prior: Denoiser, intervals: int) -> Tensor:
        """The time grid of a run."""
        first, last = (level * prior_std(prior, self.data_std) for level in self.levels)
        span = (-math.log(first), -math.log(last if self.finest is None else float(self.finest)))
        start = self.start
        if start is None:
            start = float(prior.process.time_of_log_snr(torch.tensor(span[0])))
        return time_grid(prior.process, intervals, self.grid, start=start, log_snr_range=span)

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
        self.check(prior)
        guide = self.guide(prior, measurement, noise)
        steps = self.steps if steps is None else steps
        if not self.renoise:
            return self.split(guide, prior, like, steps, y, callback)
        solver = self.stepper(guide, measurement)
        times = self.times(prior, solver.steps_for(steps)).to(like.device)
        eps = noise.normal(like)
        if self.init is None:
            x = prior.process.start(eps, y, float(times[0]))
        else:
            x = prior.process.marginal(self.init.expand_as(like), times[:1].reshape((1,) * like.ndim), eps, y)
        if self.estimator == "point" or len(times) == 2:
            return sample(guide, solver, times, x, y=y, noise=noise, callback=callback)
        x = sample(guide, solver, times[:-1], x, y=y, noise=noise, callback=callback)
        x = self.last_draw(prior, measurement, x, times[-2].reshape((1,) * like.ndim), noise, y)
        if callback is not None:
            callback(len(times) - 1, x, x)
        return x

    def split(
        self, guide: Denoiser, prior: Denoiser, like: Tensor, steps: int, y: Tensor | None, callback: Callback | None
    ) -> Tensor:
        """A run with no noise in the state."""
        first, last = (level * prior_std(prior, self.data_std) for level in self.levels)
        if self.start is not None:
            first = float(torch.exp(-prior.process.log_snr(torch.tensor(self.start, dtype=torch.float64))))
        levels = falling_levels(first, last if self.finest is None else self.finest, steps, like)
        init = torch.zeros_like(like) if self.init is None else self.init.expand_as(like)
        return split(guide, levels, init, momentum=self.momentum, y=y, callback=callback)

    def last_draw(
        self, prior: Denoiser, measurement: Measurement, x: Tensor, t: Tensor, noise: Noise, y: Tensor | None
    ) -> Tensor:
        """`x0 ~ N(D, r_t^2) N(y | A x0)`, the end of a sampler: the mean would lack the spread left at the last level.

        Some processes stop at a level above the noise of the data, and there this spread counts. That it is white is true
        of levels below the prior's own finest scale.
        """
        with torch.no_grad():
            mean = prior(x, t, y)
        precision = 1 / error_variance(prior.process, t, prior_std(prior, self.data_std)).clamp_min(1e-12)
        return measurement.tangent(mean).posterior_draw(
            mean, precision.to(x.dtype), noise, iterations=100, tolerance=1e-4
        )


class OwnStep(Guided):
    """A method that prescribes its own step and so takes no solver."""

    def __init__(self, **guided: Any) -> None:
        super().__init__(**guided)
        if self.solver is not None or not self.renoise:
            raise InputError(
                f"the method {self.name} is a step of its own and takes no solver; use pigdm, mmps or dds with one"
            )

    def guide(self, prior: Denoiser, measurement: Measurement, noise: Noise) -> Denoiser:
        return prior


def all_fresh(t: Knot, s: Knot) -> Tensor:
    """`v = sigma_s` for `DDIM`: with eta, the noise that DDS, DDNM and DiffPIR inject."""
    return s.sigma


class GuidedDenoiser(Denoiser):
    """A prior's denoiser that knows a measurement; the methods fill in how."""

    def __init__(self, prior: Denoiser, measurement: Measurement, data_std: float | None = None) -> None:
        super().__init__(prior.process)
        self.prior, self.measurement = prior, measurement
        self.data_std = prior_std(prior, data_std)

    def variance(self, t: Tensor) -> Tensor:
        """`r_t^2 = s^2 q^2 / (s^2 + q^2)`, q = sigma/alpha: the variance of x0 given x_t for white data of std s."""
        return error_variance(self.process, t, self.data_std)

    def tweedie(self, x: Tensor, t: Tensor, y: Tensor | None) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """`D = E[x0 | x_t]` and `v -> (sigma^2 / alpha) (dD/dx_t)^T v`, from one evaluation of the network.

        The second is `Cov[x0 | x_t] v` by Tweedie's formula (Efron 2011), whose matrix is symmetric, and also turns a gradient in
        D into the shift of the mean it asks for: `E[x0 | x_t, y] = D + (sigma^2 / alpha) d log p(y | x_t) / dx_t`. Where alpha = 0,
        x_t says nothing about x0 and `r_t^2 v` stands in for both.
        """
        mean, transpose = differentiate(self.prior, x, t, y)
        scale, unseen = self.tweedie_scale(x, t)
        return mean, lambda v: scale * transpose(v) + unseen * v

    def tweedie_scale(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """`(sigma^2 / alpha, 0)`, or `(0, r_t^2)` where alpha = 0."""
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        seen = alpha > 0
        scale = torch.where(seen, sigma**2 / torch.where(seen, alpha, 1.0), 0.0)
        return scale.to(x.dtype), torch.where(seen, 0.0, self.variance(t)).to(x.dtype)

    def misfit(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        """`g = W (y - A D)` and `A^H W^H g`; for an operator that is not linear, with its derivative at D in place of A."""
        if self.measurement.linear:
            gap = -self.measurement.residual(mean)
            return gap, self.measurement.linear_operator.adjoint(self.measurement.whitening.adjoint(gap))
        with torch.enable_grad():
            leaf = mean.detach().requires_grad_()
            residual = self.measurement.residual(leaf)
            (pull,) = torch.autograd.grad(residual, leaf, -residual.detach())
        return -residual.detach(), pull


def differentiate(prior: Denoiser, x: Tensor, t: Tensor, y: Tensor | None) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """`D(x_t)` and `v -> (dD/dx_t)^T v`, from one evaluation of the network."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        mean = prior(x, t, y)

    def transpose(v: Tensor) -> Tensor:
        (out,) = torch.autograd.grad(mean, x, v, retain_graph=True, allow_unused=True, materialize_grads=True)
        return out

    return mean.detach(), transpose


def prior_std(prior: Denoiser, data_std: float | None = None) -> float:
    """`data_std`, or else what the prior knows of its data, or 1."""
    return float(getattr(prior, "data_std", 1.0)) if data_std is None else data_std


def error_variance(process: Process, t: Tensor, data_std: float) -> Tensor:
    """`r_t^2 = s^2 sigma^2 / (alpha^2 s^2 + sigma^2)`, finite at alpha = 0 (where it is s^2)."""
    signal, sigma2 = (process.alpha(t) * data_std) ** 2, process.sigma(t) ** 2
    total = signal + sigma2
    return data_std**2 * torch.where(total > 0, sigma2 / torch.where(total > 0, total, 1.0), 1.0)
