"""Second-order Tweedie sampling with a surrogate loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from suite.denoiser import Denoiser
from suite.linalg import operator_norm
from suite.measurement import Measurement
from suite.noise import Noise
from suite.posterior.base import Guided, GuidedDenoiser


class STSL(Guided):
    """DPS with the second-order term of Tweedie's expansion, in one Hutchinson probe (Rout et al. 2024, eq. 5 and theorem 3.1).

    The likelihood of `x0 ~ N(D, (sigma^2/alpha) dD/dx_t)` costs, beside DPS's misfit, the trace of that covariance. With a probe
    e ~ N(0, 1) and a small step d the paper's surrogate is

        l(x_t) = w |W (y - A D)|^2 / 2 + weight <e, D(x_t + d e) - D(x_t)> / (d n),    w = 1 / (1 + r_t^2 |W A|^2),

    n the number of entries; taken from the paper are the surrogate and the single probe, left out is everything that belongs
    to latent models. The two denoiser calls go through the network as one batch. A point estimate.
    """

    name = "stsl"
    estimator = "point"
    steps = 50
    differentiates = True

    def __init__(self, weight: float = 0.1, probe: float = 0.05, **guided: Any) -> None:
        super().__init__(**guided)
        self.weight, self.probe = weight, probe

    def guide(self, prior: Denoiser, measurement: Measurement, noise: Noise) -> Denoiser:
        return _STSL(prior, measurement, self, noise)


class _STSL(GuidedDenoiser):
    def __init__(self, prior: Denoiser, measurement: Measurement, method: STSL, noise: Noise) -> None:
        super().__init__(prior, measurement, method.data_std)
        self.method, self.noise = method, noise
        self.norm2: float | None = None

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        if self.norm2 is None:
            self.norm2 = operator_norm(self.measurement.whitened()[0], x[:1]) ** 2
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        weight = (1 / (self.measurement.noise_level**2 + self.variance(t) * self.norm2).clamp_min(1e-20)).to(x.dtype)
        e, d = self.noise.normal(x), (self.method.probe * sigma).to(x.dtype)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            both = torch.cat([x, x + d * e])
            times = t if t.shape[0] == 1 else torch.cat([t, t])
            anchor = None if y is None else y.expand_as(x).repeat(2, *(1,) * (y.ndim - 1))
            mean, moved = self.prior(both, times, anchor).chunk(2)
            entries = x[0].numel()
            trace = (e * (moved - mean) / d.clamp_min(1e-12)).sum() / entries
            pull = weight * self.measurement.gradient(mean.detach())
            loss = (pull.detach() * mean).sum() + self.method.weight * trace
            (slope,) = torch.autograd.grad(loss, x)
        scale = torch.where(alpha > 0, sigma**2 / alpha.clamp_min(1e-12), self.variance(t))
        return mean.detach() - scale.to(x.dtype) * slope
