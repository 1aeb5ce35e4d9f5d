"""Pseudo-inverse guided diffusion."""

from __future__ import annotations

from torch import Tensor

from suite.denoiser import Denoiser
from suite.measurement import Measurement
from suite.noise import Noise
from suite.posterior.base import Guided, GuidedDenoiser
from suite.solver import Solver


class PiGDM(Guided):
    name = "pigdm"
    estimator = "sample"
    steps = 50
    differentiates = True
    solver = "dpmpp-2m"

    def __init__(
        self,
        solver: str | Solver | None = None,
        grid: str | None = None,
        start: float = 1.0,
        data_std: float | None = None,
        iterations: int = 50,
        tolerance: float = 1e-4,
    ) -> None:
        super().__init__(solver, grid, start, data_std)
        self.iterations, self.tolerance = iterations, tolerance

    def guide(self, prior: Denoiser, measurement: Measurement, noise: Noise) -> Denoiser:
        return _PiGDM(prior, measurement, self)


class _PiGDM(GuidedDenoiser):
    def __init__(self, prior: Denoiser, measurement: Measurement, method: PiGDM) -> None:
        super().__init__(prior, measurement, method.data_std)
        self.method = method

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        mean, covariance = self.tweedie(x, t, y)
        precision = (1 / self.variance(t)).to(x.dtype)
        near = self.measurement.proximal(
            mean, precision, iterations=self.method.iterations, tolerance=self.method.tolerance
        )
        return mean + covariance(precision * (near - mean))
