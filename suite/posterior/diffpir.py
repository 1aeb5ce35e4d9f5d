"""Plug-and-play image restoration by diffusion."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from suite.denoiser import Denoiser
from suite.errors import InputError
from suite.measurement import Measurement
from suite.noise import Noise
from suite.posterior.base import Guided, GuidedDenoiser
from suite.posterior.data_step import DataStep
from suite.solver import DDIM, Solver


class DiffPIR(Guided):
    """Half-quadratic splitting with the network's denoiser (Zhu et al. 2023, algorithm 1).

        D^ = argmin |W (A x - y)|^2 + lambda (alpha/sigma)^2 |x - D|^2
        x_s = alpha_s D^ + sigma_s (sqrt(1 - zeta) eps^ + sqrt(zeta) xi),     eps^ = (x_t - alpha_t D^) / sigma_t

    lambda = 1 is what Bayes' rule says for a prior of unknown covariance; a noise-free measurement makes the first line a
    projection. A point estimate: eps^ takes the correction of the data for noise.
    """

    name = "diffpir"
    estimator = "point"
    steps = 20

    def __init__(
        self, weight: float = 1.0, zeta: float = 1.0, iterations: int = 5, tolerance: float = 1e-4, **guided: Any
    ) -> None:
        super().__init__(**guided)
        if not weight > 0 or not 0 <= zeta <= 1:
            raise InputError(f"DiffPIR needs weight > 0 and zeta in [0, 1], not {weight} and {zeta}")
        self.weight, self.zeta, self.iterations, self.tolerance = weight, zeta, iterations, tolerance

    def stepper(self, prior: Denoiser, measurement: Measurement) -> Solver:
        return DDIM(math.sqrt(self.zeta), lambda t, s: s.sigma)

    def guide(self, prior: Denoiser, measurement: Measurement, noise: Noise) -> Denoiser:
        return _DiffPIR(prior, measurement, self)


class _DiffPIR(GuidedDenoiser):
    def __init__(self, prior: Denoiser, measurement: Measurement, method: DiffPIR) -> None:
        super().__init__(prior, measurement, method.data_std)
        self.step = DataStep(measurement, method.iterations, method.tolerance)
        self.weight = method.weight

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        ratio = self.process.sigma(t) / self.process.alpha(t).clamp_min(1e-6)
        return self.step(self.prior(x, t, y), ratio**2 / self.weight)
