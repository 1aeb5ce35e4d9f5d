"""Circular cone beam: the geometry, and the operator with its exact transpose.

The source and the columns of a flat detector turn as in fan beam (domains/ct/geometry.py), in the plane z = 0; row r of the
detector lies at `v = (r - center_row) row_pitch` along z, and slice k of the volume at `z = (k - (nz-1)/2) slice_mm`. So all rays
of one detector column run above one line of the plane, and Joseph's table of that fan (domains/ct/rays.py) serves them:
at each of its steps the ray is at the height `v s / L` (s: distance from the source in the plane, L: that of the detector)
and takes the bilinear interpolation across and along z.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from domains.ct.geometry import Geometry, fan
from domains.ct.rays import Rays, trace
from suite.errors import InputError
from suite.operators import LinearOperator

Backend = Literal["auto", "compiled", "torch"]


@dataclass(frozen=True)
class ConeGeometry:
    """A circular cone-beam scan with a flat detector.

    Attributes:
        plane: the fan of the plane z = 0, its image grid being that of a slice.
        n_rows: detector rows.
        row_pitch_mm: distance of two rows at the detector.
        center_row: row (0-based, may be fractional) that lies in the plane of the source.
        n_slices: slices of the volume.
        slice_mm: distance of two slices.

    Raises:
        InputError: not a flat fan, or an impossible number.
    """

    plane: Geometry
    n_rows: int
    row_pitch_mm: float
    center_row: float
    n_slices: int
    slice_mm: float

    def __post_init__(self) -> None:
        if self.plane.kind != "fan" or self.plane.detector != "flat":
            raise InputError("a cone-beam scan needs a flat detector and a source at a finite distance")
        for name in ("n_rows", "n_slices"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; at least one is needed")
        for name in ("row_pitch_mm", "slice_mm"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; a positive number of mm is needed")
        if not math.isfinite(self.center_row):
            raise InputError(f"center_row is {self.center_row}; a row number is needed")

    @property
    def kind(self) -> str:
        return "cone"

    @property
    def n_views(self) -> int:
        return self.plane.n_views

    @property
    def pixel_size_mm(self) -> float:
        return self.plane.pixel_size_mm

    @property
    def volume_shape(self) -> tuple[int, int, int]:
        """`(nz, ny, nx)`."""
        return self.n_slices, *self.plane.image_shape

    @property
    def projection_shape(self) -> tuple[int, int, int]:
        """`(V, R, K)`: views, rows, columns."""
        return self.plane.n_views, self.n_rows, self.plane.n_bins

    @property
    def row_positions(self) -> NDArray[np.float64]:
        """`v` of each row in mm, `(R,)`."""
        return (np.arange(self.n_rows, dtype=np.float64) - self.center_row) * self.row_pitch_mm

    @property
    def slice_positions(self) -> NDArray[np.float64]:
        """`z` of each slice in mm, `(nz,)`."""
        return (np.arange(self.n_slices, dtype=np.float64) - (self.n_slices - 1) / 2) * self.slice_mm

    @property
    def reach(self) -> NDArray[np.float64]:
        """Distance in the plane from the source to each column of the detector, mm, `(K,)`."""
        return np.asarray(np.hypot(self.plane.source_detector_mm, self.plane.bin_positions))


def cone(
    angles_deg: Sequence[float] | NDArray[np.float64],
    volume_shape: tuple[int, int, int],
    pixel_size_mm: float = 1.0,
    slice_mm: float | None = None,
    *,
    source_origin_mm: float,
    origin_detector_mm: float,
    n_rows: int | None = None,
    row_pitch_mm: float | None = None,
    center_row: float | None = None,
    **columns: Any,
) -> ConeGeometry:
    """Circular cone beam; by default a centred detector that sees the whole volume, at the voxels' pitch on the axis.

    Args:
        volume_shape: `(nz, ny, nx)`.
        slice_mm: distance of the slices (default: the pixel size).
        columns: `n_bins`, `detector_pitch_mm`, `center_column`, as for `fan`.
    """
    nz, ny, nx = volume_shape
    slice_mm = pixel_size_mm if slice_mm is None else slice_mm
    columns |= {"source_origin_mm": source_origin_mm, "origin_detector_mm": origin_detector_mm}
    plane = fan(angles_deg, (ny, nx), pixel_size_mm, **columns)
    natural = slice_mm * plane.source_detector_mm / source_origin_mm
    row_pitch_mm = natural if row_pitch_mm is None else row_pitch_mm
    if n_rows is None:  # what lies nearest to the source is thrown farthest
        height = nz * natural * source_origin_mm / (source_origin_mm - plane.image_radius_mm)
        n_rows = max(1, math.ceil(height / row_pitch_mm - 1e-9))
    center = (n_rows - 1) / 2 if center_row is None else center_row
    return ConeGeometry(plane, n_rows, row_pitch_mm, center, nz, slice_mm)


@dataclass(frozen=True)
class Columns:
    """The detector columns that follow one axis, with the heights of their rays: `z = middle + (r - center) (m0 + m1 n)`.

    `z` counts slices in the volume padded by one at either end, like the positions across in `Rays`.
    """

    rays: Rays
    m0: NDArray[np.float64]
    m1: NDArray[np.float64]


class ConeProjector(LinearOperator):
    """Line integrals `y = A x` of volumes `x` in 1/mm: `(B, C, nz, ny, nx)` to `(B, C, V, R, K)`, dimensionless.

    The adjoint is the exact transpose. Differentiable to any order.

    Args:
        geometry: the scan.
        backend: "compiled" (CPU), "torch" (any device), or "auto": compiled for tensors on the CPU.

    Raises:
        InputError: a tensor does not fit the geometry, or is not float32 or float64.
    """

    def __init__(self, geometry: ConeGeometry, *, backend: Backend = "auto") -> None:
        self.geometry, self.backend = geometry, backend
        self.domain_shape = (1, *geometry.volume_shape)
        self.range_shape = (1, *geometry.projection_shape)

    @cached_property
    def columns(self) -> tuple[Columns, Columns]:
        along_y, along_x = trace(self.geometry.plane)
        return _with_heights(self.geometry, along_y), _with_heights(self.geometry, along_x)

    @cached_property
    def lengths(self) -> NDArray[np.float64]:
        """Length of a ray over that of its shadow in the plane, `(K, R)`."""
        return np.asarray(np.hypot(1, self.geometry.row_positions / self.geometry.reach[:, None]))

    def forward(self, x: Tensor) -> Tensor:
        return self._apply(x, False)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._apply(y, True)

    def _apply(self, v: Tensor, transpose: bool) -> Tensor:
        given = "projections" if transpose else "volume"
        wanted = self.geometry.projection_shape if transpose else self.geometry.volume_shape
        if v.ndim != 5 or tuple(v.shape[2:]) != wanted:
            raise InputError(f"the {given} have shape {tuple(v.shape)}; the geometry needs (B, C, *{wanted})")
        if v.dtype not in (torch.float32, torch.float64):
            raise InputError(f"the {given} are {v.dtype}; the projector takes float32 or float64")
        result: Tensor = _Apply.apply(v, self, transpose)
        return result

    def compute(self, v: Tensor, transpose: bool) -> Tensor:
        """One of the two directions, outside autograd."""
        compiled = v.device.type == "cpu" if self.backend == "auto" else self.backend == "compiled"
        if compiled:
            from domains.ct.cone_compiled import adjoint, forward
        else:
            from domains.ct.cone_torch import adjoint, forward
        out = torch.stack([(adjoint if transpose else forward)(self, item) for item in v.detach().flatten(0, 1)])
        return out.reshape(*v.shape[:2], *out.shape[1:])


class _Apply(torch.autograd.Function):
    """`A v`, or `A^T v` when `transpose`; its derivative is the other one."""

    @staticmethod
    def forward(v: Tensor, projector: ConeProjector, transpose: bool) -> Tensor:
        return projector.compute(v, transpose)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.projector, ctx.transpose = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Apply.apply(gradient, ctx.projector, not ctx.transpose), None, None


def _with_heights(geometry: ConeGeometry, rays: Rays) -> Columns:
    """`m(n)`: slices that a ray rises per detector row, `row_pitch s(n) / (L slice_mm)`, linear in the step n."""
    plane = geometry.plane
    view, column = np.divmod(rays.ray.astype(np.int64), plane.n_bins)
    cos, sin = np.cos(plane.angles)[view], np.sin(plane.angles)[view]
    u, reach = plane.bin_positions[column], geometry.reach[column]
    source_x, source_y = plane.source_origin_mm * sin, -plane.source_origin_mm * cos
    x, y = plane.pixel_centers()
    if rays.along_y:
        start, step = y[0] - source_y, -plane.pixel_size_mm
        direction = (plane.source_detector_mm * cos + u * sin) / reach
    else:
        start, step = x[0] - source_x, plane.pixel_size_mm
        direction = (-plane.source_detector_mm * sin + u * cos) / reach
    scale = geometry.row_pitch_mm / (reach * geometry.slice_mm)
    return Columns(rays, scale * start / direction, scale * step / direction)
