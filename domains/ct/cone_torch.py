"""The cone-beam projector in torch, for tensors on any device, with the weights of the compiled one.

Columns of the detector are taken in pieces, every step of every row of a piece at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from domains.ct.cone import Columns, ConeProjector

_ELEMENTS_PER_PIECE = 1 << 25


def forward(projector: ConeProjector, x: Tensor) -> Tensor:
    """`A x` for one volume `(nz, ny, nx)`: `(V, R, K)`."""
    views, rows, bins = projector.geometry.projection_shape
    sinogram = x.new_zeros(views * bins, rows)
    for columns in projector.columns:
        lines = functional.pad(_turned(columns, x), (1, 1, 1, 1)).flatten(0, 1)
        for ray, at, f, z, g, weight in _pieces(projector, columns, x):
            line = torch.lerp(lines[at], lines[at + 1], f)
            low, high = torch.gather(line, 2, z), torch.gather(line, 2, z + 1)
            sinogram[ray] += (weight * torch.lerp(low, high, g)).sum(1)
    lengths = torch.as_tensor(projector.lengths, dtype=x.dtype, device=x.device)
    return (sinogram.reshape(views, bins, rows) * lengths).transpose(1, 2).contiguous()


def adjoint(projector: ConeProjector, y: Tensor) -> Tensor:
    """`A^T y` for one set of projections `(V, R, K)`: `(nz, ny, nx)`."""
    nz, ny, nx = projector.geometry.volume_shape
    lengths = torch.as_tensor(projector.lengths, dtype=y.dtype, device=y.device)
    sinogram = (y.transpose(1, 2) * lengths).flatten(0, 1)
    total = y.new_zeros(nz, ny, nx)
    for columns in projector.columns:
        steps, width = columns.rays.steps, columns.rays.width
        lines = y.new_zeros(steps * (width + 2), nz + 2)
        for ray, at, f, z, g, weight in _pieces(projector, columns, y):
            values = weight * sinogram[ray][:, None]
            line = y.new_zeros(*z.shape[:2], nz + 2)
            line.scatter_add_(2, z, (1 - g) * values).scatter_add_(2, z + 1, g * values)
            lines.index_add_(0, at.flatten(), ((1 - f) * line).flatten(0, 1))
            lines.index_add_(0, at.flatten() + 1, (f * line).flatten(0, 1))
        inner = lines.reshape(steps, width + 2, nz + 2)[:, 1:-1, 1:-1]
        total += inner.permute(2, 0, 1) if columns.rays.along_y else inner.permute(2, 1, 0)
    return total


def _turned(columns: Columns, x: Tensor) -> Tensor:
    """`(nz, ny, nx)` as `(step, across, z)`."""
    return x.permute(1, 2, 0) if columns.rays.along_y else x.permute(2, 1, 0)


def _pieces(projector: ConeProjector, columns: Columns, like: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """For some columns: their numbers; line number and fraction `(P, N)`; slice, fraction and weight `(P, N, R)`."""
    rays, geometry, device = columns.rays, projector.geometry, like.device
    depth, n = geometry.n_slices, torch.arange(rays.steps, device=device)
    row = torch.arange(geometry.n_rows, device=device, dtype=torch.float64) - geometry.center_row
    size = max(1, _ELEMENTS_PER_PIECE // (rays.steps * max(geometry.n_rows, depth)))
    names = ("ray", "a", "b", "first", "last", "weight")
    everything = [getattr(rays, name) for name in names] + [columns.m0, columns.m1]
    for start in range(0, rays.ray.size, size):
        chosen = [torch.from_numpy(v[start : start + size]).to(device) for v in everything]
        ray, a, b, first, last, weight, m0, m1 = (v[:, None] for v in chosen)
        met = (n >= first) & (n < last)
        position = torch.where(met, a + b * n, 0)
        height = (depth - 1) / 2 + 1 + row * (m0 + m1 * n)[..., None]
        inside = met[..., None] & (height > 0) & (height < depth + 1)
        height = torch.where(inside, height, 0.0)
        z = height.to(torch.int64)
        yield (
            ray[:, 0].to(torch.int64),
            (position >> 32) + n * (rays.width + 2),
            ((position & 0xFFFFFFFF).double() * 2.0**-32).to(like.dtype)[..., None],
            z,
            (height - z).to(like.dtype),
            inside * weight[..., None].to(like.dtype),
        )
