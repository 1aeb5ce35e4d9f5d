"""Denoising diffusion null-space model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from suite.denoiser import Denoiser
from suite.errors import InputError
from suite.linalg import lanczos_function
from suite.measurement import Measurement
from suite.noise import Noise
from suite.posterior.base import Guided, GuidedDenoiser, OwnStep, all_fresh
from suite.solver import DDIM, Solver
from suite.stepping import History, Knot, Model


class DDNM(Guided):
    """The range of `A^H` from the data, its null space from the prior (Wang et al. 2023, eq. 12): `D^ = D - A^+ (A D - y)`.

    The noise is not modelled: the data are met exactly, as far as so many conjugate-gradient iterations go (masks and
    Fourier masks need one), which is the only regularisation; `ddnm_plus` knows the noise. A point estimate: on the problems
    of `diffsuite verify`, all noisy, its std ratios are 0.00 to 0.47, see docs/verify.md.

    Args:
        eta: share of fresh noise, of std `eta sigma_s` as in the authors' code; with a solver of its own choice it is not used.
        iterations: of the conjugate gradients.
    """

    name = "ddnm"
    estimator = "point"
    steps = 100

    def __init__(self, eta: float = 0.85, iterations: int = 10, **guided: Any) -> None:
        super().__init__(**guided)
        self.eta, self.iterations = eta, iterations

    def stepper(self, guide: Denoiser, measurement: Measurement) -> Solver:
        return DDIM(self.eta, all_fresh) if self.solver is None else super().stepper(guide, measurement)

    def guide(self, prior: Denoiser, measurement: Measurement, noise: Noise) -> Denoiser:
        return _DDNM(prior, measurement, self)


class _DDNM(GuidedDenoiser):
    def __init__(self, prior: Denoiser, measurement: Measurement, method: DDNM) -> None:
        super().__init__(prior, measurement, method.data_std)
        operator, y = measurement.whitened()
        self.exact, self.iterations = Measurement(operator, y, 0.0), method.iterations

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.exact.proximal(self.prior(x, t, y), 1.0, iterations=self.iterations, tolerance=1e-6)


class DDNMPlus(OwnStep):
    """DDNM with a correction and a noise no stronger than the noise of the data allows (Wang et al. 2023, eq. 17-19).

    With `s` the singular values of the whitened operator `W A` and q = sigma_s/alpha_s, on its right singular vectors:

        D^  = D - (lambda / s^2) A^H W^H W (A D - y),      lambda = 1 where s q >= 1, else s q sqrt(1 - eta^2)
        x_s = alpha_s D^ + g (sqrt(1 - eta^2) eps + eta xi),      g^2 = max(0, sigma_s^2 - (alpha_s lambda / s)^2)

    and g = sigma_s where s = 0. These functions of `A^H W^H W A` are exact where the operator has an SVD, else by Lanczos'
    method: it works without a matrix. A point estimate: on the problems of `diffsuite verify` its std ratios are 0.25 to
    0.70, see docs/verify.md.

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

    def stepper(self, guide: Denoiser, measurement: Measurement) -> Solver:
        return _PlusStep(measurement, self.eta, self.iterations)


Spectral = Callable[[Tensor], Tensor]


class _PlusStep(Solver):
    name = "ddnm_plus"

    def __init__(self, measurement: Measurement, eta: float, iterations: int) -> None:
        self.measurement, self.eta, self.kept = measurement, eta, math.sqrt(1 - eta**2)
        self.apply = spectral_calculus(measurement, iterations)

    def step(
        self, model: Model, z: Tensor, mean: Tensor, eps: Tensor, t: Knot, s: Knot, history: History
    ) -> tuple[Tensor, History]:
        alpha, sigma, noise = float(s.alpha), float(s.sigma), self.measurement.noise_level

        def split(s2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """Which directions the operator sees, their s, and lambda."""
            seen = s2 > 1e-6 * s2.amax(-1, keepdim=True)
            root = torch.where(seen, s2, 1.0).sqrt()
            reach = root * sigma / alpha
            return seen, root, torch.where(reach >= noise, 1.0, self.kept * reach / max(noise, 1e-30))

        def gain(s2: Tensor) -> Tensor:
            seen, root, share = split(s2)
            return torch.where(seen, share / root**2, 0.0)

        def spread(s2: Tensor) -> Tensor:
            seen, root, share = split(s2)
            taken = torch.where(seen, alpha * share * noise / root, 0.0)
            return (sigma**2 - taken**2).clamp_min(0).sqrt()

        estimate = mean - self.apply(gain, self.measurement.gradient(mean))
        if s.clean:
            return estimate, history
        mixed = self.kept * eps + self.eta * model.draw(z)
        return alpha * estimate + self.apply(spread, mixed), history


def spectral_calculus(measurement: Measurement, iterations: int) -> Callable[[Spectral, Tensor], Tensor]:
    """`(f, v) -> f(A^H W^H W A) v`, by the SVD of `W A` where it is known in closed form, else by Lanczos' method."""
    operator, _ = measurement.whitened()
    try:
        svd = operator.svd()
    except InputError:
        normal = measurement.whitened_normal
        return lambda f, v: lanczos_function(normal, v, f, iterations=iterations)
    values = svd.singular_values.double() ** 2

    def exact(f: Spectral, v: Tensor) -> Tensor:
        weights = f(values.reshape(1, -1)).reshape(values.shape)
        return svd.v(weights.to(v.dtype) * svd.vh(v))

    return exact
