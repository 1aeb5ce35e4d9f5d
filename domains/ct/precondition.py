"""A preconditioner for the normal equations of CT, `(A^T W A + c) x = b`.

Views that turn evenly blur as `A^T A = V p^3 / (pi d q)` at the spatial frequency `q` (cycles per pixel; pixel `p`, bin
`d` on the axis), so the inverse is a ramp. Where few views leave gaps in the frequency plane, a single view's
`n p^3 / d` (`n` pixels along a ray) is the better bound. Uneven weights enter as a scaling of the pixels (Fessler and
Booth, IEEE Trans. Image Process. 8, 1999), which fades where the shift `c` dominates.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from domains.ct.geometry import Geometry
from domains.ct.projector import Projector
from suite.linalg import TensorMap


class RampPreconditioner:
    """`c -> approximate inverse of s^2 A^T W A + c I`, symmetric and positive definite, for `conjugate_gradient`.

    Args:
        projector: `A`.
        weights: the diagonal of `W`, `(B, 1, V, K)` or `(1, 1, V, K)`, zero or more.
        scale: `s`, where the unknown has another unit than 1/mm.
    """

    def __init__(self, projector: Projector, weights: Tensor, scale: float = 1.0) -> None:
        self.shape = projector.geometry.image_shape
        self.blur = scale**2 * frequency_response(projector.geometry).to(weights.device, weights.dtype)
        hits = projector.adjoint(torch.ones_like(weights[:1]))
        local = projector.adjoint(weights) / hits.clamp_min(1e-6 * float(hits.max()))
        self.local = torch.maximum(local, 1e-3 * local.amax((-2, -1), keepdim=True))
        self.local = self.local.clamp_min(torch.finfo(weights.dtype).tiny)
        self.usual = self.local.flatten(2).median(2).values[..., None, None]

    def __call__(self, shift: float | Tensor) -> TensorMap:
        """The inverse for the shift `c`, zero or more: a number, or a tensor that broadcasts to `(B, 1, 1, 1)`."""
        typical = self.blur.mean()
        pixels = ((self.local * typical + shift) / (self.usual * typical + shift)).sqrt()
        gain = 1 / (self.usual * self.blur + shift)

        def apply(r: Tensor) -> Tensor:
            inner: Tensor = torch.fft.irfft2(torch.fft.rfft2(r / pixels) * gain, s=self.shape)
            return inner / pixels

        return apply


def frequency_response(geometry: Geometry) -> Tensor:
    """Fourier symbol of `A^T A`, float64 `(ny, nx // 2 + 1)`, in the layout of `rfft2`."""
    ny, nx = geometry.image_shape
    magnification = geometry.source_detector_mm / geometry.source_origin_mm if geometry.kind == "fan" else 1.0
    one_view = geometry.pixel_size_mm**3 * magnification / geometry.detector_pitch_mm
    rows, columns = torch.fft.fftfreq(ny, dtype=torch.float64), torch.fft.rfftfreq(nx, dtype=torch.float64)
    q = torch.hypot(rows[:, None], columns).clamp_min(0.5 / max(ny, nx))
    return one_view * (geometry.n_views / (math.pi * q)).clamp_min(max(ny, nx))
