"""Denoising diffusion null-space model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from suite.denoiser import Denoiser
from suite.errors import InputError
from suite.linalg import lanczos_function
from suite.measurement import Measurement
from suite.noise import Noise
from suite.posterior.base import Guided, GuidedDenoiser
from suite.solver import DDIM, Solver
from suite.stepping import History, Knot, Model


class DDNM(Guided):
    """The range of `A^T` from the data, its null space from the prior (Wang et al. 2023, eq. 12): `D^ = D - A^+ (A D - y)`.

    The pseudo-inverse is taken by conjugate gradients, whose few iterations are its only regularisation: meant for data
    with little noise. A point estimate.
    """

    name = "ddnm"
    estimator = "point"
    steps = 100

    def __init__(self, eta: float = 0.85, iterations: int = 10, **guided: Any) -> None:
        super().__init__(**guided)
        self.eta, self.iterations = eta, iterations

    def stepper(self, prior: Denoiser, measurement: Measurement) -> Solver:
        return DDIM(self.eta, lambda t, s: s.sigma)

    def guide(self, prior: Denoiser, measurement: Measurement, noise: Noise) -> Denoiser:
        return _DDNM(prior, measurement, self)


class _DDNM(GuidedDenoiser):
    def __init__(self, prior: Denoiser, measurement: Measurement, method: DDNM) -> None:
        super().__init__(prior, measurement, method.data_std)
        operator, y = measurement.whitened()
        self.exact = Measurement(operator, y, 0.0)
        self.iterations = method.iterations

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.exact.proximal(self.prior(x, t, y), 1.0, iterations=self.iterations, tolerance=1e-6)


class DDNMPlus(Guided):
    """DDNM with a correction no stronger than the noise allows (Wang et al. 2023, eq. 17-19), matrix-free.

    With `s` the singular values of the whitened operator `W A`, v its right singular vectors and q = sigma_s/alpha_s:

        D^  = D - f(N) A^T W^T W (A D - y),    f = lambda / s^2,    lambda = min(1, s q sqrt(1 - eta^2))  (1 where q >= 1/s)
        x_s = alpha_s D^ + g(N) (sqrt(1 - eta^2) eps + eta xi),     g^2 = max(0, sigma_s^2 - (alpha_s lambda / s)^2)

    The spectral functions of `N = A^T W^T W A` are applied by Lanczos' method. A point estimate (its spread is far too small).

    Args:
        eta: share of fresh noise.
        iterations: of Lanczos' method.
    """

    name = "ddnm_plus"
    estimator = "point"
    steps = 100

    def __init__(self, eta: float = 0.85, iterations: int = 20, **guided: Any) -> None:
        super().__init__(**guided)
        if not 0 <= eta <= 1:
            raise InputError(f"DDNM+'s eta lies between 0 and 1; it is {eta}")
        self.eta, self.iterations = eta, iterations

    def stepper(self, prior: Denoiser, measurement: Measurement) -> Solver:
        return _DDNMPlusStep(measurement, self.eta, self.iterations)

    def guide(self, prior: Denoiser, measurement: Measurement, noise: Noise) -> Denoiser:
        return prior


class _DDNMPlusStep(Solver):
    name = "ddnm+"

    def __init__(self, measurement: Measurement, eta: float, iterations: int) -> None:
        self.measurement, self.eta, self.iterations = measurement, eta, iterations

    def step(
        self, model: Model, z: Tensor, mean: Tensor, eps: Tensor, t: Knot, s: Knot, history: History
    ) -> tuple[Tensor, History]:
        # the clean end needs a noise level: that of the step's start
        at = t if s.clean else s
        alpha, sigma = (float(v) for v in (at.alpha, at.sigma))
        q, noise = sigma / alpha if alpha > 0 else float("inf"), self.measurement.noise_level

        def gain(s2: Tensor) -> Tensor:
            """lambda."""
            root = s2.clamp_min(0).sqrt()
            weak = root * q * (1 - self.eta**2) ** 0.5 / max(noise, 1e-20)
            return torch.where(root * q >= noise, torch.ones_like(root), weak)

        def correction(s2: Tensor) -> Tensor:
            floor = 1e-6 * s2.amax(-1, keepdim=True)
            return torch.where(s2 > floor, gain(s2) / s2.clamp_min(1e-30), 0.0)

        def spread(s2: Tensor) -> Tensor:
            taken = alpha * gain(s2) * noise / s2.clamp_min(1e-30).sqrt()
            return (sigma**2 - torch.where(s2 > 1e-12, taken, 0.0) ** 2).clamp_min(0).sqrt()

        normal = self.measurement.whitened_normal
        pull = lanczos_function(normal, self.measurement.gradient(mean), correction, iterations=self.iterations)
        estimate = mean - pull
        if s.clean:
            return estimate, history
        mixed = (1 - self.eta**2) ** 0.5 * eps + self.eta * model.draw(z)
        return alpha * estimate + lanczos_function(normal, mixed, spread, iterations=self.iterations), history
