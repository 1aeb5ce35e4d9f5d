"""Moment matching posterior sampling."""

from __future__ import annotations

from torch import Tensor

from suite.denoiser import Denoiser
from suite.linalg import conjugate_gradient
from suite.measurement import Measurement
from suite.noise import Noise
from suite.posterior.base import Guided, GuidedDenoiser
from suite.solver import Solver


WARM = True
class MMPS(Guided):
    name = "mmps"
    estimator = "sample"
    exact_for = ("white", "correlated")
    steps = 50
    differentiates = True
    solver = "dpmpp-2m"

    def __init__(
        self,
        solver: str | Solver | None = None,
        grid: str | None = None,
        start: float = 1.0,
        data_std: float | None = None,
        iterations: int = 20,
        tolerance: float = 1e-3,
    ) -> None:
        super().__init__(solver, grid, start, data_std)
        self.iterations, self.tolerance = iterations, tolerance

    def guide(self, prior: Denoiser, measurement: Measurement, noise: Noise) -> Denoiser:
        return _MMPS(prior, measurement, self)


class _MMPS(GuidedDenoiser):
    def __init__(self, prior: Denoiser, measurement: Measurement, method: MMPS) -> None:
        super().__init__(prior, measurement, method.data_std)
        self.method = method
        self.operator, _ = measurement.whitened()
        self.last: Tensor | None = None

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        mean, covariance = self.tweedie(x, t, y)
        A, noise = self.operator, self.measurement.noise_level

        def evidence(u: Tensor) -> Tensor:
            return A(covariance(A.H(u))) + noise**2 * u

        gap = -self.measurement.residual(mean)
        start = self.last if self.last is not None and self.last.shape == gap.shape else None
        u = conjugate_gradient(
            evidence, gap, start, iterations=self.method.iterations, tolerance=self.method.tolerance
        )
        self.last = u if WARM else None
        return mean + covariance(A.H(u))
