"""What a posterior method is: something that turns a prior's denoiser and a measurement into estimates of the signal."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal

from torch import Tensor

from suite.denoiser import Denoiser
from suite.errors import InputError
from suite.grid import time_grid
from suite.measurement import Measurement
from suite.noise import Noise
from suite.solver import SOLVERS, Solver, sample

Callback = Callable[[int, Tensor, Tensor], None]


class PosteriorMethod(ABC):
    """A way to estimate `x0` from `y = A x0 + n` with a diffusion prior.

    Attributes:
        name: as on the command line.
        estimator: "sample" when its draws follow the posterior (graded in suite/verify.py), else "point".
        steps: network evaluations it advertises, and uses when none are asked for.
        differentiates: True when it back-propagates through the network.
    """

    name: ClassVar[str]
    estimator: ClassVar[Literal["sample", "point"]]
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
            callback: called after each step with its number, the state and the current estimate of `x0`.

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
        solver: name in `suite.solver.SOLVERS`, or a solver.
        grid: kind of time grid (`suite.grid.time_grid`).
        start: time to start from.
    """

    solver: str | Solver = "ddim"
    grid: str = "logsnr"

    def __init__(self, solver: str | Solver | None = None, grid: str | None = None, start: float = 1.0) -> None:
        self.solver = solver or type(self).solver
        self.grid = grid or type(self).grid
        self.start = start

    @abstractmethod
    def guide(self, prior: Denoiser, measurement: Measurement) -> Denoiser:
        """The posterior denoiser `E[x0 | x_t, measurement]`, or the method's stand-in for it."""

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
        solver = SOLVERS[self.solver]() if isinstance(self.solver, str) else self.solver
        intervals = solver.steps_for(steps or self.steps)
        grid = time_grid(prior.process, intervals, self.grid, start=self.start)
        x = prior.process.start(noise.normal(like), y, self.start)
        return sample(self.guide(prior, measurement), solver, grid, x, y=y, noise=noise, callback=callback)
