"""Total-variation reconstruction of a whole volume, for operators that see it at once (cone beam).

    min_x  1/2 sum w (A x - y)^2 + lambda sum |(d_x x, d_y x, r d_z x)|,   x >= 0

with the differences between slices weighed by r = pixel size / slice distance, so that it is the length of the gradient in space.
Solved as in domains/ct/tv.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from domains.ct.cone import ConeProjector
from domains.ct.tv import penalty_for
from suite.volume import differences, differences_adjoint

_RELAXATION, _STEP = 1.8, 45.0  # as domains/ct/tv.py
_SHARE = 0.7  # of the penalty of slices: the gradient has one part more (fitted to a torso at 3 mm and 8 views)


def tv_volume(
    projector: ConeProjector,
    projections: Tensor,
    weights: Tensor,
    *,
    iterations: int = 100,
    start: Tensor | None = None,
) -> Tensor:
    """Reconstruct `mu` in 1/mm, `(1, 1, nz, ny, nx)`, from line integrals `(1, 1, V, R, K)`.

    Args:
        projector: the scan's operator.
        projections: line integrals.
        weights: inverse variances of their noise.
        iterations: applications of `A` and `A^T`.
        start: first volume (default: zero).
    """
    root = weights.sqrt()
    lengths = projector(torch.ones_like(projector.adjoint(projections)))
    columns = projector.adjoint(root)
    ratio = projector.geometry.pixel_size_mm / projector.geometry.slice_mm
    a = float(columns.mean()) / 4
    bound = a * (4 + 2 * ratio)  # column sums of |a grad|
    scale = _STEP / float((root * lengths).amax().clamp_min(1e-6))
    tau = scale / (columns + bound)
    sigma = 1 / (scale * (root * lengths).clamp_min(1e-6))
    sigma_gradient = 1 / (scale * a * (2 + 2 * ratio) / 2)
    radius = _SHARE * float(penalty_for(voxel_information(projector, weights))) / a

    x = torch.zeros_like(columns) if start is None else start.clamp_min(0)
    q, p, new = torch.zeros_like(root), [torch.zeros_like(d) for d in _gradient(x, ratio)], x
    for _ in range(iterations):
        new = (x - tau * (projector.adjoint(root * q) + a * _gradient_adjoint(p, ratio))).clamp_min_(0)
        ahead = torch.lerp(x, new, 2.0)
        q_new = (q + sigma * root * (projector(ahead) - projections)) / (1 + sigma)
        p_new = [one.add(d, alpha=sigma_gradient * a) for one, d in zip(p, _gradient(ahead, ratio), strict=True)]
        shrink = (radius / _length(p_new, x).clamp_min_(1e-30)).clamp_max_(1)
        for axis, part in enumerate(p_new, 2):
            part.mul_(shrink.narrow(axis, 0, part.shape[axis]))
        x, q = torch.lerp(x, new, _RELAXATION), torch.lerp(q, q_new, _RELAXATION)
        p = [torch.lerp(old, part, _RELAXATION) for old, part in zip(p, p_new, strict=True)]
    return new


def voxel_information(projector: ConeProjector, weights: Tensor) -> Tensor:
    """`domains.ct.tv.pixel_information` of a usual voxel that the scan sees, in mm."""
    density = projector.adjoint(weights)
    return (projector.geometry.pixel_size_mm * density[density > 0].median()).sqrt()


def _gradient(x: Tensor, ratio: float) -> list[Tensor]:
    return [ratio * differences(x, 2), differences(x, 3), differences(x, 4)]


def _gradient_adjoint(p: list[Tensor], ratio: float) -> Tensor:
    return ratio * differences_adjoint(p[0], 2) + differences_adjoint(p[1], 3) + differences_adjoint(p[2], 4)


def _length(p: list[Tensor], like: Tensor) -> Tensor:
    """Length of the gradient at each voxel, from its forward differences."""
    total = torch.zeros_like(like)
    for axis, part in enumerate(p, 2):
        total.narrow(axis, 0, part.shape[axis]).add_(part * part)
    return total.sqrt_()
