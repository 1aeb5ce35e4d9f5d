"""Denoising diffusion restoration models."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from suite.denoiser import Denoiser
from suite.errors import InputError
from suite.measurement import Measurement
from suite.posterior.base import OwnStep
from suite.solver import Solver
from suite.stepping import History, Knot, Model


class DDRM(OwnStep):
    """Restoration in the spectral space of the operator (Kawar et al. 2022, eq. 7-8); operators with an SVD only.

    In units of x0 (`q = sigma/alpha`) and the basis V of the whitened operator `U diag(s) V^H`, where the datum
    `y~ = U^H W y / s` has noise of std `n = 1/s`, x_s has

        s = 0:       mean D + sqrt(1 - eta^2) q_s eps,               std eta q_s
        q_s < n:     mean D + sqrt(1 - eta^2) q_s (y~ - D) / n,      std eta q_s
        q_s >= n:    mean (1 - eta_b) D + eta_b y~,                  std sqrt(q_s^2 - eta_b^2 n^2)

    A point estimate, as D itself, where q_s < n, ends as the posterior mean of the datum alone: on the problems of
    `diffsuite verify` its std ratios are 0.49 to 0.79, see docs/verify.md.

    Args:
        eta, eta_b: the paper's; 0.85 and 1.
    """

    name = "ddrm"
    estimator = "point"
    steps = 20

    def __init__(self, eta: float = 0.85, eta_b: float = 1.0, **guided: Any) -> None:
        super().__init__(**guided)
        if not (0 <= eta <= 1 and 0 <= eta_b <= 1):
            raise InputError(f"DDRM's eta and eta_b lie between 0 and 1; they are {eta} and {eta_b}")
        self.eta, self.eta_b = eta, eta_b

    def stepper(self, guide: Denoiser, measurement: Measurement) -> Solver:
        return _DDRMStep(measurement, self.eta, self.eta_b)


class _DDRMStep(Solver):
    name = "ddrm"

    def __init__(self, measurement: Measurement, eta: float, eta_b: float) -> None:
        operator, y = measurement.whitened()
        try:
            self.svd = operator.svd()
        except InputError as error:
            raise InputError(
                f"ddrm needs a singular value decomposition; use ddnm_plus or dds, which do not ({error})"
            ) from None
        self.eta, self.eta_b, self.kept = eta, eta_b, math.sqrt(1 - eta**2)
        s = self.svd.singular_values
        self.seen = s > 1e-6 * s.max()
        safe = torch.where(self.seen, s, 1.0)
        self.noise, self.data = measurement.noise_level / safe, self.svd.uh(y) / safe

    def step(
        self, model: Model, z: Tensor, mean: Tensor, eps: Tensor, t: Knot, s: Knot, history: History
    ) -> tuple[Tensor, History]:
        q, n, data = float(s.sigma / s.alpha), self.noise, self.data
        estimate = self.svd.vh(mean)
        fresh = self.svd.vh(torch.zeros_like(z) if s.clean else model.draw(z))
        unseen = estimate + q * (self.kept * self.svd.vh(eps) + self.eta * fresh)
        noisier = estimate + q * (self.kept * (data - estimate) / torch.where(n > 0, n, 1.0) + self.eta * fresh)
        clearer = (1 - self.eta_b) * estimate + self.eta_b * data
        clearer = clearer + (q**2 - (self.eta_b * n) ** 2).clamp_min(0).sqrt() * fresh
        out = torch.where(self.seen, torch.where(n > q, noisier, clearer), unseen)
        return s.alpha * self.svd.v(out), history
