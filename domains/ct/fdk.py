"""Filtered back-projection for circular cone beam (Feldkamp, Davis and Kress 1984, FDK).

`mu(x) = sum_v dbeta_v (D / (D + s))^2 [h * (w p cos)](u(x, v), z(x, v))`: fan-beam FBP of the plane (domains/ct/fbp.py) with the
cosine of the ray's full angle, each row filtered by itself. Exact in the plane of the source and for objects that do not
vary along z; off the plane, values fall with the cone angle.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from domains.ct.cone import ConeGeometry
from domains.ct.fbp import Filter, _filter_rows, redundancy_weights, view_weights
from suite.errors import InputError


def fdk(geometry: ConeGeometry, projections: Tensor, filter: Filter = "ramp") -> Tensor:
    """Reconstruct `mu` in 1/mm, `(B, C, nz, ny, nx)`, from line integrals `(B, C, V, R, K)`.

    Args:
        geometry: the scan; a full turn, or an arc of at least 180 degrees and the fan angle.
        projections: line integrals.
        filter: "ramp" (Ram-Lak), "shepp-logan" or "hann", from sharp to smooth.

    Raises:
        InputError: an unknown filter, or projections that do not fit the geometry.
    """
    if projections.ndim != 5 or tuple(projections.shape[2:]) != geometry.projection_shape:
        raise InputError(
            f"the projections have shape {tuple(projections.shape)}, not (B, C, *{geometry.projection_shape})"
        )
    plane = geometry.plane
    length = np.hypot(geometry.reach, geometry.row_positions[:, None])  # source to detector bin, (R, K)
    share = view_weights(plane)[:, None] * redundancy_weights(plane)
    weight = share[:, None] * (plane.source_detector_mm / length)
    weighted = projections * torch.as_tensor(weight, dtype=projections.dtype, device=projections.device)
    filtered = _filter_rows(plane, weighted, filter)
    volume = _back_project(geometry, filtered.flatten(0, 1))
    return volume.reshape(*projections.shape[:2], *geometry.volume_shape)


def _back_project(geometry: ConeGeometry, rows: Tensor) -> Tensor:
    """Sum over views of bilinearly interpolated projections `(S, V, R, K)` at each voxel: `(S, nz, ny, nx)`."""
    plane, nz = geometry.plane, geometry.n_slices
    x, y = (torch.as_tensor(v, device=rows.device) for v in plane.pixel_centers())
    z = torch.as_tensor(geometry.slice_positions, device=rows.device)[:, None, None]
    total = rows.new_zeros(rows.shape[0], *geometry.volume_shape)
    for view, angle in enumerate(plane.angles.tolist()):
        across = x * math.cos(angle) + y[:, None] * math.sin(angle)
        depth = plane.source_origin_mm + y[:, None] * math.cos(angle) - x * math.sin(angle)
        scale = plane.source_detector_mm / depth
        column = (across * scale / plane.detector_pitch_mm + plane.center_column).expand(nz, -1, -1)
        row = z * scale / geometry.row_pitch_mm + geometry.center_row
        grid = torch.stack([_unit(column, plane.n_bins), _unit(row, geometry.n_rows)], -1).to(rows.dtype)
        image = rows[:, view][:, None]
        grid = grid.reshape(1, nz, -1, 2).expand(len(rows), -1, -1, -1)
        values = functional.grid_sample(image, grid, "bilinear", "zeros", align_corners=False)
        weight = ((plane.source_origin_mm / depth) ** 2).to(rows.dtype)
        total += values.reshape(total.shape) * weight
    return total


def _unit(position: Tensor, count: int) -> Tensor:
    """Bin numbers as the coordinates of `grid_sample`: -1 and 1 are the outer edges of the first and the last bin."""
    return (2 * position + 1) / count - 1
