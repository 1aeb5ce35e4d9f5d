"""Diffusion posterior sampling."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from suite.denoiser import Denoiser
from suite.errors import InputError
from suite.linalg import dot, expand
from suite.measurement import Measurement
from suite.noise import Noise
from suite.posterior.base import Guided, GuidedDenoiser
from suite.solver import DDIM, Solver
from suite.stepping import History, Knot, Model


class DPS(Guided):
    """The likelihood of the denoised estimate, differentiated through the network (Chung et al. 2023). Any operator.

        annealed   D_y = D + w (sigma^2 / alpha) (dD/dx_t)^T A^H W^H W (y - A D),    w = strength / (1 + r_t^2 a^2)
        norm       x_s = ancestral step of D - strength d|y - A D| / dx_t            (the paper's algorithm 1)

    with W whitening the noise and `a^2 = |A^H W^H g|^2 / |g|^2` the squared gain of the operator along the misfit
    `g = W (y - A D)`, so that w is scale-free and needs no search: the weight is pigdm's with one conjugate-gradient step in
    place of the inverse. In the second form |y - A D| is weighted by the noise law where that is not the same everywhere.

    A point estimate: the annealed form is exact for white Gaussian data under operators with `A A^H` proportional to 1
    (masks, Fourier masks) only. SPREAD

    Args:
        strength: multiplies the gradient; with the norm form it is the paper's zeta, tuned by problem (0.3 to 1).
        form: see above; the norm form has its own step and takes no solver.
    """

    name = "dps"
    estimator = "point"
    steps = 100
    differentiates = True
    default_solver = "dpmpp-2m"

    def __init__(self, strength: float = 1.0, form: Literal["annealed", "norm"] = "annealed", **guided: Any) -> None:
        super().__init__(**guided)
        if form not in ("annealed", "norm"):
            raise InputError(f"dps has the forms 'annealed' and 'norm', not {form!r}")
        if form == "norm" and self.solver is not None:
            raise InputError("the norm form of dps is a step of its own and takes no solver; use form='annealed' with one")
        self.strength, self.form = strength, form

    def guide(self, prior: Denoiser, measurement: Measurement, noise: Noise) -> Denoiser:
        return _DPS(prior, measurement, self)

    def stepper(self, guide: Denoiser, measurement: Measurement) -> Solver:
        return _NormStep(guide, self.strength) if isinstance(guide, _DPS) and self.form == "norm" else super().stepper(guide, measurement)


class _DPS(GuidedDenoiser):
    slope: Tensor

    def __init__(self, prior: Denoiser, measurement: Measurement, method: DPS) -> None:
        super().__init__(prior, measurement, method.data_std)
        self.method = method

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        mean, covariance = self.tweedie(x, t, y)
        gap, pull = self.misfit(mean)
        size, slope = dot(gap, gap), dot(pull, pull)
        if self.method.form == "norm":
            ...
        gain = expand(slope / size.clamp_min(torch.finfo(size.dtype).tiny), x)
        weight = self.measurement.noise_level**2 + self.variance(t).to(x.dtype) * gain
        return mean + covariance(self.method.strength / weight.clamp_min(torch.finfo(x.dtype).tiny) * pull)
