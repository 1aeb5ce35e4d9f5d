"""Decomposed diffusion sampling."""

from __future__ import annotations

from torch import Tensor

from suite.denoiser import Denoiser
from suite.measurement import Measurement
from suite.noise import Noise
from suite.posterior.base import Guided, GuidedDenoiser
from suite.posterior.data_step import DataStep, Preconditioner
from suite.solver import DDIM, Solver


class DDS(Guided):
    name = "dds"
    estimator = "point"
    steps = 20

    def __init__(
        self,
        solver: str | Solver | None = None,
        grid: str | None = None,
        start: float = 1.0,
        data_std: float | None = None,
        gamma: float | None = None,
        iterations: int = 5,
        tolerance: float = 1e-4,
        preconditioner: Preconditioner = "none",
        strength: float = 1.0, keep=True,
        init=None, renoise: bool = True, finest: float = 0.002,
    ) -> None:
        super().__init__(solver, grid, start, data_std, init, renoise, finest)
        self.gamma, self.iterations, self.tolerance, self.preconditioner = gamma, iterations, tolerance, preconditioner
        self.strength, self.keep = strength, keep

    def guide(self, prior: Denoiser, measurement: Measurement, noise: Noise) -> Denoiser:
        step = DataStep(measurement, self.iterations, self.tolerance, self.preconditioner)
        return _DDS(prior, measurement, self, step)


class _DDS(GuidedDenoiser):
    def __init__(self, prior: Denoiser, measurement: Measurement, method: DDS, step: DataStep) -> None:
        super().__init__(prior, measurement, method.data_std)
        self.step, self.method = step, method

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        mean = self.prior(x, t, y)
        return self.step(mean, self.method.strength * self.variance(t))

    def predict(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if not self.method.keep: return super().predict(x,t,y)
        mean, eps = self.prior.predict(x, t, y)
        return self.step(mean, self.method.strength * self.variance(t)), eps
