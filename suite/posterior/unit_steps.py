"""Normalised gradient steps towards the data."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from suite.denoiser import Denoiser
from suite.errors import InputError
from suite.linalg import dot, expand
from suite.measurement import Measurement
from suite.noise import Noise
from suite.posterior.base import Guided, GuidedDenoiser, all_fresh
from suite.solver import DDIM, Solver


class UnitSteps(Guided):
    """Steps of prescribed length down the misfit of any operator (after Moliner, Lehtinen and Valimaki 2023, CQT-Diff).

        D <- D - min(strength r_t sqrt(n) / K, |g|^2 / |d|) d / |d|,     g = W (A(D) - y),  d = J^H W^H g,     K times

    with J the derivative of A at D, n the number of D's entries and `r_t^2 = s^2 q^2 / (s^2 + q^2)`: what is unsure about D when
    x_t is all that is known, so that D moves by about as much as it may be wrong, whatever the size of signal and misfit. The
    other length is Polyak's (1969), at which the misfit vanishes to first order. No gradient of the network.

    The prior may itself be a guide towards the same data by another method.

    A point estimate: on the problems of `diffsuite verify`, where it has no row, its means are 0.1 to 2.1 posterior standard
    deviations off and its std ratios 0.28 to 1.25; for linear operators with a known noise law use dds.

    Args:
        strength: of the steps.
        repeats: K.
        guided: of `Guided`.
    """

    name = "unit_steps"
    estimator = "point"
    steps = 30

    def __init__(self, strength: float = 1.0, repeats: int = 4, **guided: Any) -> None:
        super().__init__(**guided)
        if not strength > 0 or repeats < 1:
            raise InputError(f"unit steps need a positive strength and at least one, not {strength} and {repeats}")
        self.strength, self.repeats = strength, repeats

    def stepper(self, guide: Denoiser, measurement: Measurement) -> Solver:
        return DDIM(1.0, all_fresh) if self.solver is None else super().stepper(guide, measurement)

    def guide(self, prior: Denoiser, measurement: Measurement, noise: Noise) -> Denoiser:
        return _UnitSteps(prior, measurement, self)


class _UnitSteps(GuidedDenoiser):
    def __init__(self, prior: Denoiser, measurement: Measurement, method: UnitSteps) -> None:
        super().__init__(prior, measurement, method.data_std)
        self.strength, self.repeats = method.strength, method.repeats

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.predict(x, t, y)[0]

    def predict(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mean, eps = self.prior.predict(x, t, y)
        unsure = self.variance(t).sqrt().to(x.dtype).flatten() * math.sqrt(x[0].numel())
        for _ in range(self.repeats):
            mean = self.step(mean, self.strength / self.repeats * unsure)
        return mean, eps

    def step(self, mean: Tensor, length: Tensor) -> Tensor:
        """One step down the misfit, of at most this length `(B,)` or `(1,)`."""
        gap, pull = self.misfit(mean)
        slope = dot(pull, pull).sqrt().clamp_min(1e-30)
        return mean + expand(torch.minimum(length, dot(gap, gap) / slope) / slope, mean) * pull
