"""What the tests of the posterior methods share: problems in float64 and their dense counterparts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from suite.denoiser import Denoiser
from suite.gaussian import real_vector
from suite.measurement import Measurement
from suite.noise import Noise
from suite.stepping import Knot, knots
from suite.testbed import Problem


def wide(x: Tensor) -> Tensor:
    """`x` in double precision, so that only a wrong formula makes a difference."""
    return x.to(torch.complex128 if x.is_complex() else torch.float64)


@dataclass
class Case:
    """A closed-form problem in double precision.

    Attributes:
        noise: standard deviation of the noise over the operator's norm; 0 for exact data.
        uneven: entries of the data have different noise.
    """

    kind: str = "mixture"
    operator: str = "ct"
    process: str = "vp"
    noise: float = 0.2
    truths: int = 2
    uneven: bool = False
    problem: Problem = field(init=False)

    def __post_init__(self) -> None:
        self.problem = Problem(self.kind, self.operator, self.process, self.noise, self.truths)
        self.prior: Denoiser = self.problem.law.denoiser(self.problem.dynamics)
        self.matrix = self.problem.matrix
        self.y = None if self.problem.anchors is None else wide(self.problem.anchors)
        self.data = wide(self.problem.data)
        spread = torch.ones_like(self.data[:1].abs())
        if self.uneven:
            spread = torch.linspace(0.5, 2, spread.numel(), dtype=torch.float64).reshape(spread.shape)
        self.std = self.problem.sigma * spread
        self.measurement = Measurement(self.problem.linear, self.data, self.std if self.uneven else self.problem.sigma)

    @property
    def like(self) -> Tensor:
        return torch.empty(self.truths, *self.problem.law.shape, dtype=torch.float64)

    @property
    def variances(self) -> Tensor:
        """Noise variance of every real datum, `(m,)`."""
        std = self.std.expand_as(self.data[:1])
        return real_vector(torch.complex(std, std) if self.data.is_complex() else std) ** 2

    @property
    def vectors(self) -> Tensor:
        """The data as real vectors `(truths, m)`."""
        return torch.stack([real_vector(y) for y in self.data])

    def time(self, t: float) -> Tensor:
        return torch.full((1, 1, 1, 1), t, dtype=torch.float64)

    def state(self, t: float) -> Tensor:
        """States x_t of other signals than the measured ones: a guide has to pull."""
        noise = Noise.of(0, ["state"])
        x0 = wide(self.problem.law.sample(self.truths, noise, self.problem.anchors))
        return self.problem.dynamics.marginal(x0, self.time(t), noise.normal(x0), self.y)

    def posterior_mean(self, x: Tensor, t: float) -> Tensor:
        """`E[x0 | x_t, y, anchor]`: x_t and the data as one dense measurement of x0."""
        process, time = self.problem.dynamics, self.time(t)
        alpha, sigma = float(process.alpha(time)), float(process.sigma(time))
        z, n = process.shift(x, time, self.y), self.problem.law.size
        matrix = torch.cat([alpha * torch.eye(n, dtype=torch.float64), self.matrix])
        covariance = torch.cat([torch.full((n,), sigma**2, dtype=torch.float64), self.variances]).diag()
        laws = [
            self.problem.law.condition(matrix, torch.cat([z[i].flatten(), y]), covariance, self.problem.anchor(i))
            for i, y in enumerate(self.vectors)
        ]
        return torch.cat([law.mean_of() for law in laws]).double()


def step_knots(case: Case, t: float, s: float) -> tuple[Knot, Knot]:
    """The process at the two ends of one step."""
    first, last = knots(case.problem.dynamics, torch.tensor([t, s], dtype=torch.float64), case.like)
    return first, last


def numeric_gradient(f: Callable[[Tensor], Tensor], x: Tensor, h: float = 1e-5) -> Tensor:
    """Central differences of `f: (B, *shape) -> (B,)` at one item `(1, *shape)`."""
    bumps = h * torch.eye(x.numel(), dtype=x.dtype).reshape(-1, *x.shape[1:])
    return ((f(x + bumps) - f(x - bumps)) / (2 * h)).reshape(x.shape)


def r2(case: Case, t: float) -> float:
    """`q^2 / (1 + q^2)`: the variance of white data of unit variance given x_t."""
    alpha, sigma = (float(f(case.time(t))) for f in (case.problem.dynamics.alpha, case.problem.dynamics.sigma))
    return sigma**2 / (alpha**2 + sigma**2)


def assert_law(draws: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Draws `(S, n)` have this mean `(n,)` and covariance, within the chance of so many draws."""
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), (draws - mean).T, upper=False).T
    chance = len(draws) ** -0.5
    assert white.mean(0).abs().max() < 5 * chance
    assert (white.T.cov() - torch.eye(len(mean), dtype=torch.float64)).abs().max() < 7 * chance
