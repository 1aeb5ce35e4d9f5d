"""The cone-beam projector on the CPU: matrix-free, parallel over rays (forward) or planes of the volume (adjoint)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from domains.ct.compiled import run_tasks

if TYPE_CHECKING:
    from domains.ct.cone import Columns, ConeProjector

_RAYS_PER_TASK = 1 << 9
Array = NDArray[Any]


def forward(projector: ConeProjector, x: Tensor) -> Tensor:
    """`A x` for one volume `(nz, ny, nx)`: `(V, R, K)`."""
    from domains.ct import cone_kernels

    geometry, values = projector.geometry, x.numpy()
    views, rows, bins = geometry.projection_shape
    sinogram = np.zeros((views * bins, rows), values.dtype)
    for columns in projector.columns:
        volume = padded(columns, values.transpose(1, 2, 0))
        call = partial(cone_kernels.forward, volume, sinogram, *table(columns))
        count = columns.rays.ray.size
        run_tasks(
            [
                partial(call, start, min(start + _RAYS_PER_TASK, count), *middle(projector))
                for start in range(0, count, _RAYS_PER_TASK)
            ]
        )
    out = sinogram.reshape(views, bins, rows) * projector.lengths.astype(values.dtype)
    return torch.from_numpy(np.ascontiguousarray(out.transpose(0, 2, 1)))


def adjoint(projector: ConeProjector, y: Tensor) -> Tensor:
    """`A^T y` for one set of projections `(V, R, K)`: `(nz, ny, nx)`."""
    from domains.ct import cone_kernels

    geometry, values = projector.geometry, y.numpy()
    views, rows, bins = geometry.projection_shape
    sinogram = values.transpose(0, 2, 1) * projector.lengths.astype(values.dtype)
    sinogram = np.ascontiguousarray(sinogram.reshape(views * bins, rows))
    nz, ny, nx = geometry.volume_shape
    total = np.zeros((ny, nx, nz), values.dtype)
    for columns in projector.columns:
        volume = padded(columns, np.zeros_like(total))
        call = partial(cone_kernels.adjoint, volume, sinogram, *table(columns))
        steps = columns.rays.steps
        band = max(1, -(-steps // (4 * torch.get_num_threads())))
        run_tasks([partial(call, low, min(low + band, steps), *middle(projector)) for low in range(0, steps, band)])
        inner = volume[:, 1:-1, 1:-1]
        total += inner if columns.rays.along_y else inner.swapaxes(0, 1)
    return torch.from_numpy(np.ascontiguousarray(total.transpose(2, 0, 1)))


def padded(columns: Columns, rows: Array) -> Array:
    """`(y, x, z)` with the steps first and one voxel of zeros around the other two."""
    turned = rows if columns.rays.along_y else rows.swapaxes(0, 1)
    return np.pad(turned, ((0, 0), (1, 1), (1, 1)))


def table(columns: Columns) -> tuple[Array, ...]:
    rays = columns.rays
    return rays.ray, rays.a, rays.b, rays.weight, rays.first, rays.last, columns.m0, columns.m1


def middle(projector: ConeProjector) -> tuple[float, float]:
    """Height of the source in padded slices, and the row that lies there."""
    return (projector.geometry.n_slices - 1) / 2 + 1, float(projector.geometry.center_row)
