"""Plug-and-play image restoration by diffusion."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from suite.denoiser import Denoiser
from suite.errors import InputError
from suite.measurement import Measurement
from suite.noise import Noise
from suite.posterior.base import Guided, GuidedDenoiser, all_fresh
from suite.posterior.data_step import DataStep
from suite.solver import DDIM, Solver


class DiffPIR(Guided):
    """Half-quadratic splitting with the network as its denoiser (Zhu et al. 2023, DiffPIR, algorithm 1).

        D^  = argmin |W (A x - y)|^2 + (weight / q^2) |x - D|^2,      q = sigma/alpha
        x_s = alpha_s D^ + sigma_s (sqrt(1 - zeta) eps^ + sqrt(zeta) xi),      eps^ = (x_t - alpha_t D^) / sigma_t

    W whitening the noise, so that `weight / q^2` is the paper's `rho_t = lambda sigma_y^2 / q^2`; weight = 1 is what Bayes'
    rule says of a D that is as unsure as x_t is noisy. Data without noise make the first line the projection.

    A point estimate, as eps^ takes the pull of the data for noise: on the problems of `diffsuite verify` its std ratios are
    0.55 to 0.82, see docs/verify.md.

    Args:
        weight: the paper's lambda.
        zeta: share of fresh noise (variance); not used with a solver of one's own choice.
        iterations, tolerance: of the conjugate gradients.
    """

    name = "diffpir"
    estimator = "point"
    steps = 20
    levels = (0.75, 0.035)

    def __init__(
        self, weight: float = 1.0, zeta: float = 1.0, iterations: int = 10, tolerance: float = 1e-4, **guided: Any
    ) -> None:
        super().__init__(**guided)
        if not weight > 0 or not 0 <= zeta <= 1:
            raise InputError(f"DiffPIR needs weight > 0 and zeta in [0, 1], not {weight} and {zeta}")
        self.weight, self.zeta, self.iterations, self.tolerance = weight, zeta, iterations, tolerance

    def stepper(self, guide: Denoiser, measurement: Measurement) -> Solver:
        return DDIM(math.sqrt(self.zeta), all_fresh) if self.solver is None else super().stepper(guide, measurement)

    def guide(self, prior: Denoiser, measurement: Measurement, noise: Noise) -> Denoiser:
        return _DiffPIR(prior, measurement, self)


class _DiffPIR(GuidedDenoiser):
    def __init__(self, prior: Denoiser, measurement: Measurement, method: DiffPIR) -> None:
        super().__init__(prior, measurement, method.data_std)
        self.step, self.weight = DataStep(measurement, method.iterations, method.tolerance), method.weight

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        q = self.process.sigma(t) / self.process.alpha(t).clamp_min(1e-6)
        return self.step(self.prior(x, t, y), q**2 / self.weight)
