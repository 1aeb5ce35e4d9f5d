"""Denoising diffusion restoration models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from suite.denoiser import Denoiser
from suite.measurement import Measurement
from suite.noise import Noise
from suite.posterior.base import Guided
from suite.solver import Solver
from suite.stepping import History, Knot, Model


class DDRM(Guided):
    """Restoration in the spectral space of the operator (Kawar et al. 2022, eq. 7-8); operators with an SVD only.

    Whitened, in units of x0 (`q = sigma/alpha`) and in the basis V, with `n = 1/s` the noise of the coefficient `y~ = U^H y / s`:

        s = 0:        D + sqrt(1 - eta^2) q_s (x~ - D)/q_t,        std eta q_s
        q_s < n:      D + sqrt(1 - eta^2) q_s (y~ - D)/n,          std eta q_s
        q_s >= n:     (1 - eta_b) D + eta_b y~,                    std sqrt(q_s^2 - eta_b^2 n^2)

    A point estimate: coefficients noisier than q_s are pulled to the denoiser again and again, which narrows them.

    Args:
        eta, eta_b: the paper's; 0.85 and 1.
    """

    name = "ddrm"
    estimator = "point"
    steps = 50

    def __init__(self, eta: float = 0.85, eta_b: float = 1.0, **guided: Any) -> None:
        super().__init__(**guided)
        self.eta, self.eta_b = eta, eta_b

    def stepper(self, prior: Denoiser, measurement: Measurement) -> Solver:
        return _DDRMStep(measurement, self.eta, self.eta_b)

    def guide(self, prior: Denoiser, measurement: Measurement, noise: Noise) -> Denoiser:
        return prior


class _DDRMStep(Solver):
    name = "ddrm"

    def __init__(self, measurement: Measurement, eta: float, eta_b: float) -> None:
        operator, y = measurement.whitened()
        self.svd = operator.svd()
        self.eta, self.eta_b = eta, eta_b
        s = self.svd.singular_values
        self.seen = s > 1e-6 * s.max()
        safe = torch.where(self.seen, s, torch.ones_like(s))
        self.noise = torch.where(self.seen, measurement.noise_level / safe, 0.0)
        self.data = self.svd.uh(y) / safe

    def step(
        self, model: Model, z: Tensor, mean: Tensor, eps: Tensor, t: Knot, s: Knot, history: History
    ) -> tuple[Tensor, History]:
        at = t if s.clean else s  # the clean end needs a noise level: that of the step's start
        q = float(at.sigma / at.alpha) if float(at.alpha) > 0 else 1e6
        keep = (1 - self.eta**2) ** 0.5
        estimate, data, n = self.svd.vh(mean), self.data, self.noise
        fresh = torch.zeros_like(estimate) if s.clean else self.svd.vh(model.draw(z))
        unseen = estimate + (0.0 if s.clean else 1.0) * q * (keep * self.svd.vh(eps) + self.eta * fresh)
        pulled = estimate + keep * q * (data - estimate) / torch.where(n > 0, n, 1.0) + self.eta * q * fresh
        spread = (q**2 - (self.eta_b * n) ** 2).clamp_min(0).sqrt()
        exact = (1 - self.eta_b) * estimate + self.eta_b * data + (0.0 if s.clean else spread) * fresh
        out = torch.where(self.seen, torch.where(n > q, pulled, exact), unseen)
        back = self.svd.v(out)
        return (back if s.clean else float(s.alpha) * back), history
