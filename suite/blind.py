"""Degradations with unknown parameters: noise level, gain and blur, estimated together with the picture.

A measurement with parameters p is a `Measurement` at its present p, so every posterior method takes it as it is; `Blind` runs a
method and improves p as it goes (the idea of GDP: Fei et al. 2023, here with a likelihood in place of a gradient step). At
every noise level

    p <- argmax log N(y; A_p D, A_p C A_p^H + Sigma_p),     D = E[x0 | x_t],   C = Cov[x0 | x_t],

which is one step of expectation maximisation with the state x_t as the latent variable, drawn given y and the former p. C is
taken for stationary and isotropic; its spectrum comes from one product with the network's Jacobian (Tweedie's formula).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from suite.denoiser import Denoiser
from suite.errors import InputError
from suite.linalg import TensorMap, expand
from suite.measurement import Measurement
from suite.noise import Noise
from suite.operators import FourierDiagonal
from suite.posterior.base import Guided, GuidedDenoiser, prior_std
from suite.posterior.mmps import MMPS

PARAMETERS = ("noise", "gain", "blur")


class BlurredMeasurement(Measurement):
    """`y = gain K x + n`, K a periodic Gaussian blur: parameters that are unknown carry a first guess.

    Args:
        y: real data `(B, C, *spatial)`.
        noise: standard deviation of n, a number or `(B,)`, > 0.
        gain: > 0, likewise.
        blur: standard deviation of the blur in pixels, >= 0 (> 0 where unknown), likewise.
        unknown: those of `PARAMETERS` that are to be estimated.

    Attributes:
        parameters: their present values, `(B,)` each, by name.

    Raises:
        InputError: complex data, another parameter, or one out of its range.
    """

    def __init__(
        self,
        y: Tensor,
        *,
        noise: float | Tensor,
        gain: float | Tensor = 1.0,
        blur: float | Tensor = 0.0,
        unknown: tuple[str, ...] = PARAMETERS,
    ) -> None:
        if y.is_complex() or not unknown or not set(unknown) <= set(PARAMETERS):
            raise InputError(f"a blind measurement has real data and some of the unknowns {', '.join(PARAMETERS)}")
        given = {"noise": noise, "gain": gain, "blur": blur}
        self.parameters = {k: torch.as_tensor(v, dtype=y.dtype).expand(len(y)) for k, v in given.items()}
        for name, value in self.parameters.items():
            if not bool((value > 0).all()) and not (
                name == "blur" and name not in unknown and bool((value >= 0).all())
            ):
                raise InputError(f"the {name} of a blind measurement must be above 0 (its first guess, where unknown)")
        self.unknown = unknown
        self.frequency = torch.zeros((), dtype=y.dtype)  # its square, in cycles per pixel
        for axis, n in enumerate(y.shape[2:]):
            f = torch.fft.fftfreq(n, dtype=y.dtype, device=y.device)
            self.frequency = self.frequency + (f**2).reshape(-1, *(1,) * (y.ndim - 3 - axis))
        operator = FourierDiagonal(self._symbol(self.parameters), ndim=y.ndim - 2)
        super().__init__(operator, y, self.parameters["noise"], preconditioner=self._inverse)

    def _symbol(self, p: Mapping[str, Tensor]) -> Tensor:
        """Fourier eigenvalues of `gain K`, `(B, 1, *spatial)`."""
        gain, blur = (p[k].reshape(-1, *(1,) * (self.frequency.ndim + 1)) for k in ("gain", "blur"))
        return gain * torch.exp(-2 * (math.pi * blur) ** 2 * self.frequency)

    def _inverse(self, precision: Tensor) -> TensorMap:
        symbol = self._symbol(self.parameters)
        weight = expand(1 / self.parameters["noise"] ** 2, symbol)
        return FourierDiagonal(1 / (weight * symbol**2 + precision), ndim=self.frequency.ndim)

    def at(self, parameters: Mapping[str, Tensor], y: Tensor | None = None) -> BlurredMeasurement:
        """The same data (or `y`) with other parameters."""
        return BlurredMeasurement(self.y if y is None else y, **parameters, unknown=self.unknown)

    def negative_log_evidence(self, parameters: Mapping[str, Tensor], mean: Tensor, variance: Tensor) -> Tensor:
        """`-log N(y; A_p mean, variance A_p A_p^H + noise^2)`, `(B,)`, without its constant.

        Args:
            parameters: `(B,)` each.
            mean: `(B, C, *spatial)`.
            variance: power spectrum of x0 about it, `(B, 1, *spatial)`.
        """
        axes = tuple(range(-self.frequency.ndim, 0))
        symbol = self._symbol(parameters)
        data, seen = (torch.fft.fftn(v, dim=axes, norm="ortho") for v in (self.y, mean))
        total = variance * symbol**2 + expand(parameters["noise"] ** 2, symbol)
        return (((data - symbol * seen).abs() ** 2 / total + total.log()) / 2).flatten(1).sum(1)

    def spectrum(self, probe: Tensor, image: Tensor) -> Tensor:
        """Power spectrum `(B, 1, *spatial)` of a covariance C from a white `probe` v and its `image` C v, averaged over shells."""
        axes = tuple(range(-self.frequency.ndim, 0))
        v, Cv = (torch.fft.fftn(u, dim=axes, norm="ortho") for u in (probe, image))
        shell = (self.frequency.sqrt() * max(probe.shape[2:])).round().long().flatten()
        sums = torch.zeros(2, len(v), int(shell.max()) + 1, dtype=probe.dtype, device=probe.device)
        for part, value in zip(sums, ((v.conj() * Cv).real, v.abs() ** 2), strict=True):
            part.index_add_(1, shell, value.sum(1).flatten(1))
        mean = (sums[0] / sums[1].clamp_min(1e-12)).clamp_min(0)
        return mean[:, shell].reshape(len(v), 1, *self.frequency.shape)

    def fitted(self, mean: Tensor, variance: Tensor, iterations: int) -> BlurredMeasurement:
        """With the unknown parameters of most evidence: Adam in their logarithms, item by item."""
        with torch.inference_mode(False), torch.enable_grad():
            logs = {k: self.parameters[k].clone().log().requires_grad_() for k in self.unknown}
            optimizer = torch.optim.Adam(logs.values(), lr=0.1)
            for i in range(iterations):
                for group in optimizer.param_groups:
                    group["lr"] = 0.1 * (1 - i / iterations)
                trial = {**self.parameters, **{k: v.exp() for k, v in logs.items()}}
                optimizer.zero_grad()
                self.negative_log_evidence(trial, mean, variance).sum().backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return self.at({**self.parameters, **{k: v.detach().exp() for k, v in logs.items()}})


class Blind(Guided):
    """A posterior method that estimates its measurement's parameters as it samples.

    A point estimate, for the parameters are one: its draws do not have their spread.

    Args:
        method: what samples, at the parameters of the moment (default: `MMPS`). Its error is theirs: with a method that takes all
            data for white (`pigdm`) they go astray where the data are not.
        iterations: of the fit at every step.

    Attributes:
        found: after a run, the measurement with the parameters it ended with.
    """

    name = "blind"
    estimator = "point"
    steps = 100
    differentiates = True
    default_solver = "dpmpp-sde"

    def __init__(self, method: Guided | None = None, iterations: int = 20, **guided: Any) -> None:
        super().__init__(**guided)
        self.method, self.iterations = method or MMPS(data_std=self.data_std), iterations
        self._guide: _Blind | None = None

    def guide(self, prior: Denoiser, measurement: Measurement, noise: Noise) -> Denoiser:
        if not isinstance(measurement, BlurredMeasurement):
            raise InputError("the method blind estimates a measurement's parameters; give it a BlurredMeasurement")
        self._guide = _Blind(prior, measurement, self, noise)
        return self._guide

    @property
    def found(self) -> BlurredMeasurement:
        if self._guide is None:
            raise InputError("the method blind has found nothing yet; call run first")
        return self._guide.measurement


class _Blind(GuidedDenoiser):
    def __init__(self, prior: Denoiser, measurement: BlurredMeasurement, blind: Blind, noise: Noise) -> None:
        super().__init__(prior, measurement, blind.data_std)
        self.measurement: BlurredMeasurement = measurement
        self.blind, self.noise, self.probed = blind, noise, _Probed(prior, noise)

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        if len(self.measurement.y) < len(x):  # one measurement, several draws: each has parameters of its own
            every = {k: v.expand(len(x)) for k, v in self.measurement.parameters.items()}
            self.measurement = self.measurement.at(every, self.measurement.y.expand_as(x))
        answer = self.blind.method.guide(self.probed, self.measurement, self.noise)(x, t, y)
        scale, unseen = self.tweedie_scale(x, t)
        image = scale * self.probed.pull + unseen * self.probed.probe
        spectrum = self.measurement.spectrum(self.probed.probe, image)
        self.measurement = self.measurement.fitted(self.probed.mean, spectrum, self.blind.iterations)
        return answer


class _Probed(Denoiser):
    """A denoiser that keeps its last answer and the product of its Jacobian with a white probe: one evaluation for all."""

    mean: Tensor
    probe: Tensor
    pull: Tensor

    def __init__(self, inner: Denoiser, noise: Noise) -> None:
        super().__init__(inner.process)
        self.inner, self.noise, self.data_std = inner, noise, prior_std(inner)

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        self.probe = self.noise.normal(x)
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            mean = self.inner(x, t, y)
            (self.pull,) = torch.autograd.grad(mean, x, self.probe, retain_graph=True)
        self.mean = mean.detach()
        return mean
