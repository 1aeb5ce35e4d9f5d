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
from suite.posterior.base import Guided, GuidedDenoiser, differentiate
from suite.solver import DDIM, Solver
from suite.stepping import History, Knot, Model


class DPS(Guided):
    """The likelihood of the denoised estimate, differentiated through the network (Chung et al. 2023). Any operator.

        annealed   D_y = D + w (sigma^2 / alpha) (dD/dx_t)^T A^H W^H W (y - A D),    w = strength / (1 + r_t^2 a^2)
        norm       x_s = ancestral step of D - strength d|y - A D| / dx_t            (the paper's algorithm 1)

    with W whitening the noise and `a^2 = |A^H W^H g|^2 / |g|^2` the squared gain of the operator along the misfit
    `g = W (y - A D)`, so that w is scale-free and needs no search: it is pigdm's inverse after one step of conjugate
    gradients. In the norm form |y - A D| is weighted by the noise law where that is not the same everywhere.

    A point estimate: the annealed form is exact for white Gaussian data under operators with `A A^H` proportional to 1
    (masks, Fourier masks) only; on all the problems of `diffsuite verify` its std ratios are 0.95 to 2.66 and its means
    up to 2.5 posterior standard deviations off, see docs/verify.md.

    Args:
        strength: multiplies the gradient; with the norm form it is the paper's zeta, tuned by problem (0.3 to 1).
        form: see above; the norm form is a step of its own and takes no solver.
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
            raise InputError(
                "the norm form of dps is a step of its own and takes no solver; use form='annealed' with one"
            )
        self.strength, self.form = strength, form

    def guide(self, prior: Denoiser, measurement: Measurement, noise: Noise) -> Denoiser:
        kind = _Annealed if self.form == "annealed" else _Norm
        return kind(prior, measurement, self.data_std, self.strength)

    def stepper(self, guide: Denoiser, measurement: Measurement) -> Solver:
        return _NormStep(guide) if isinstance(guide, _Norm) else super().stepper(guide, measurement)


class _Annealed(GuidedDenoiser):
    def __init__(self, prior: Denoiser, measurement: Measurement, data_std: float | None, strength: float) -> None:
        super().__init__(prior, measurement, data_std)
        self.strength = strength

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        mean, covariance = self.tweedie(x, t, y)
        gap, pull = self.misfit(mean)
        tiny = torch.finfo(x.dtype).tiny
        gain = expand(dot(pull, pull) / dot(gap, gap).clamp_min(tiny), x)
        weight = self.measurement.noise_level**2 + self.variance(t).to(x.dtype) * gain
        return mean + covariance(self.strength / weight.clamp_min(tiny) * pull)


class _Norm(_Annealed):
    """The prior's denoiser, which leaves the gradient of the norm behind for the step."""

    slope: Tensor

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        mean, transpose = differentiate(self.prior, x, t, y)
        gap, pull = self.misfit(mean)
        raw = self.measurement.operator(mean) - self.measurement.y
        if self.measurement.counted is not None:
            raw = torch.where(self.measurement.counted, raw, 0)
        tiny = torch.finfo(x.dtype).tiny
        scale = dot(raw, raw).sqrt() / dot(gap, gap).clamp_min(tiny)  # 1 / |g|, brought back to the units of y
        self.slope = -self.strength * transpose(expand(scale, x) * pull)
        return mean


class _NormStep(Solver):
    name = "dps"

    def __init__(self, guide: _Norm) -> None:
        self.guide, self.ancestral = guide, DDIM(1.0)

    def step(
        self, model: Model, z: Tensor, mean: Tensor, eps: Tensor, t: Knot, s: Knot, history: History
    ) -> tuple[Tensor, History]:
        new, history = self.ancestral.step(model, z, mean, eps, t, s, history)
        return new - self.guide.slope, history
