"""What makes conjugate gradients fast in CT: the combined diagonal and Fourier preconditioner."""

from __future__ import annotations

import torch
from torch import Tensor

from domains.ct.projector import Projector
from suite.linalg import TensorMap


class FourierPreconditioner:
    """`p -> approximate inverse of A^T W A + p` for tomography with uneven weights (Fessler and Booth 1999, eq. 21-23).

    `A^T W A` is close to `K (A^T A) K` with `K = diag(kappa)`, `kappa^2 = A^T w / A^T 1`, the weight that a pixel's
    rays have on average; and `A^T A` is close to a convolution with symbol `c / |f|`. So the inverse is applied as
    `K^-1 F^-1 [1 / (c/|f| + p mean(kappa^-2))] F K^-1`.

    Args:
        projector: `A`.
        weights: `W`, `(S or 1, 1, V, K)`, inverse variances.
        scale: factor between the unknown's unit and the projector's (1/mm): the operator is `scale * A`.
    """

    def __init__(self, projector: Projector, weights: Tensor, scale: float) -> None:
        ny, nx = projector.geometry.image_shape
        hits = projector.adjoint(torch.ones_like(weights[:1]))
        kappa2 = projector.adjoint(weights) / hits.clamp_min(1e-6 * float(hits.max()))
        mean = kappa2.flatten(1).mean(1).reshape(-1, 1, 1, 1)
        self.kappa = torch.maximum(kappa2, 1e-3 * mean).clamp_min(torch.finfo(weights.dtype).tiny).sqrt()
        self.inverse = self.kappa.pow(-2).flatten(1).mean(1).reshape(-1, 1, 1, 1)
        self.ramp = scale**2 * _ramp(projector, ny, nx, weights)

    def __call__(self, precision: Tensor) -> TensorMap:
        shift = precision if precision.ndim else precision.reshape(1, 1, 1, 1)
        symbol = 1 / (self.ramp + shift * self.inverse)

        def apply(v: Tensor) -> Tensor:
            inner = torch.fft.rfft2(v / self.kappa)
            return torch.fft.irfft2(symbol[..., : inner.shape[-1]] * inner, s=v.shape[-2:]) / self.kappa

        return apply


def _ramp(projector: Projector, ny: int, nx: int, like: Tensor) -> Tensor:
    """`c / |f|` on the FFT grid, c fitted to the response of `A^T A` to a centred delta in the middle band."""
    delta = torch.zeros(1, 1, ny, nx, dtype=like.dtype, device=like.device)
    delta[..., ny // 2, nx // 2] = 1
    response = projector.adjoint(projector(delta))
    symbol = torch.fft.fft2(torch.fft.ifftshift(response, dim=(-2, -1))).real
    fy, fx = (torch.fft.fftfreq(n, dtype=like.dtype, device=like.device) for n in (ny, nx))
    f = torch.hypot(fy[:, None], fx[None])
    band = (f > 0.02) & (f < 0.3)
    c = (symbol[0, 0] * f)[band].mean() if bool(band.any()) else symbol.max() * 0.5 / max(ny, nx)
    return (c / f.clamp_min(0.5 / max(ny, nx)))[None, None]
