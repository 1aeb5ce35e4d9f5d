"""Several pictures of one object, such as the contrasts of a scan: they differ in brightness and share their edges."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from suite.denoiser import Denoiser
from suite.errors import InputError
from suite.measurement import Measurement
from suite.noise import Noise
from suite.posterior.base import GuidedDenoiser
from suite.posterior.data_step import DataStep
from suite.posterior.dds import DDS


class SharedEdges(DDS):
    """DDS of several contrasts together, with the vectorial total variation of all of them.

        x^  = argmin |W (A x - y)|^2 + |x - D|^2 / v + 2 lambda sum_r ( sum_c |grad x_c(r)|^2 )^(1/2),    v = strength r_t^2

    is approached by one ADMM iteration in each reverse step, as in `suite.volume.CoupledStep`. Where one contrast shows an edge, an
    edge of another costs little more, and where none does, what only one shows is noise or aliasing (joint total variation:
    Sapiro and Ringach 1996; for MR contrasts Huang, Chen and Axel 2014). `lambda = coupling / (b strength)` with the scale
    b of the joint gradients' lengths taken from D, as in `suite.volume.MBIR`.

    A point estimate.

    Args:
        contrasts: how many; the batch holds all items of the first, then all of the second, and so on.
        coupling: factor on the penalty; 0 leaves the contrasts apart.
        dds: see `DDS`.
    """

    name = "contrasts"

    def __init__(self, contrasts: int = 1, coupling: float = 1.0, **dds: Any) -> None:
        super().__init__(**dds)
        if not coupling >= 0 or contrasts < 1:
            raise InputError(
                f"a coupling of zero or more and at least one contrast are needed, not {coupling} and {contrasts}"
            )
        self.contrasts, self.coupling = contrasts, coupling

    def guide(self, prior: Denoiser, measurement: Measurement, noise: Noise) -> Denoiser:
        return _SharedEdges(prior, measurement, self)


class _SharedEdges(GuidedDenoiser):
    def __init__(self, prior: Denoiser, measurement: Measurement, method: SharedEdges) -> None:
        super().__init__(prior, measurement, method.data_std)
        self.data = DataStep(measurement, method.iterations, method.tolerance)
        self.method = method
        self.dual: Tensor | None = None

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.predict(x, t, y)[0]

    def predict(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mean, eps = self.prior.predict(x, t, y)
        method, r2 = self.method, self.variance(t)
        if len(mean) % method.contrasts:
            raise InputError(f"{len(mean)} pictures are not {method.contrasts} contrasts of as many slices each")
        variance = method.weight(r2)
        if not method.coupling:
            return self.data(mean, variance), eps
        joint = lengths(gradients(mean), method.contrasts)
        scale = float(joint.square().sum()) / max(2 * float(joint.sum()), 1e-12)
        penalty = method.coupling * float((r2 / variance).mean()) / max(scale, 1e-12)
        r = variance.to(mean.dtype)
        if self.dual is None:
            self.dual = joint_variation_dual(mean, r, penalty, torch.zeros_like(gradients(mean)), method.contrasts)
        dual = shortened(self.dual, penalty, method.contrasts)
        shift = r * gradients_adjoint(dual)
        found = self.data(mean - shift, variance)
        self.dual = joint_variation_dual(found + shift, r, penalty, dual, method.contrasts)
        return found, eps


def joint_variation_dual(
    v: Tensor, variance: Tensor, penalty: float, start: Tensor, contrasts: int, iterations: int = 10
) -> Tensor:
    """q of `min_w |w - v|^2 / variance + 2 penalty sum_r |grad w(r)|`, solved by `w = v - variance grad^T q`.

    Projected gradients with momentum (Beck and Teboulle 2009); `|grad|^2 < 8`.
    """
    q, ahead, t = start, start, 1.0
    step = 1 / (8 * variance.amax())
    for _ in range(iterations):
        slope = gradients(v - variance * gradients_adjoint(ahead))
        new = shortened(ahead + step * slope, penalty, contrasts)
        t, before = (1 + (1 + 4 * t * t) ** 0.5) / 2, t
        ahead = torch.lerp(q, new, 1 + (before - 1) / t)
        q = new
    return q


def gradients(x: Tensor) -> Tensor:
    """Forward differences along the last two axes, zero at the far edges: `(2, *x.shape)`."""
    g = x.new_zeros((2, *x.shape))
    g[0, ..., :-1] = x.diff(dim=-1)
    g[1, ..., :-1, :] = x.diff(dim=-2)
    return g


def gradients_adjoint(g: Tensor) -> Tensor:
    """The transpose of `gradients`, also where the differences across the far edges are not zero."""
    right, down = g[0].clone(), g[1].clone()
    right[..., -1], down[..., -1, :] = 0, 0
    out = -(right + down)
    out[..., 1:] += right[..., :-1]
    out[..., 1:, :] += down[..., :-1, :]
    return out


def lengths(g: Tensor, contrasts: int) -> Tensor:
    """Root of the sum of squares over directions, contrasts and channels, `(items of a contrast, *spatial)`."""
    return g.unflatten(1, (contrasts, -1)).square().sum((0, 1, 3)).sqrt()


def shortened(q: Tensor, limit: float, contrasts: int) -> Tensor:
    """q with its joint lengths cut at `limit`."""
    factor = (limit / lengths(q, contrasts).clamp_min(1e-20)).clamp_max(1)
    return (q.unflatten(1, (contrasts, -1)) * factor[:, None]).flatten(1, 2)
