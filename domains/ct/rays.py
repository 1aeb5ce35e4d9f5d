"""Joseph's method as a table: where each ray enters the image, its slope and its weight.

A ray steps through the image along the axis it follows most: one step per row or per column, with linear interpolation
between the two pixels it passes between (Joseph, IEEE Trans. Med. Imaging 1, 1982). The sum times the ray's length per
step is the line integral.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from domains.ct.geometry import Geometry

FRACTION = 1 << 32
_MARGIN = 1e-6  # steps closer than this to the zero weight at the image's edge are left out


@dataclass(frozen=True)
class Rays:
    """All rays of a scan that follow one axis, `R` of them; step `n` crosses the other axis at `(a + b n) / 2^32`.

    Positions count in the image padded by one pixel at either end, so that pixel `m` lies at `m + 1`.

    Attributes:
        along_y: the rays step through rows (else through columns).
        ray: number `v * K + k` of the ray in the sinogram, `(R,)` int32.
        a, b: position at step 0 and its change per step, `(R,)` int64 with 32 fractional bits.
        weight: length in mm per step, `(R,)` float64.
        first, last: the ray meets the image in the steps `first <= n < last`, `(R,)` int32.
        steps: image length along the rays.
        width: image length across the rays, without the padding.
    """

    along_y: bool
    ray: NDArray[np.int32]
    a: NDArray[np.int64]
    b: NDArray[np.int64]
    weight: NDArray[np.float64]
    first: NDArray[np.int32]
    last: NDArray[np.int32]
    steps: int
    width: int


def trace(geometry: Geometry) -> tuple[Rays, Rays]:
    """The rays that follow the rows' axis y, and those that follow x."""
    phi, t = (values.ravel() for values in geometry.lines())
    cos, sin, t = np.cos(phi), np.sin(phi), t / geometry.pixel_size_mm
    ny, nx = geometry.image_shape
    steep = np.abs(cos) >= np.abs(sin)

    # x = (t - y sin) / cos with y = (ny-1)/2 - n
    c, s, u = cos[steep], sin[steep], t[steep]
    along_y = _table(True, steep, (u - s * (ny - 1) / 2) / c + (nx - 1) / 2, s / c, 1 / np.abs(c), ny, nx)
    # row = (ny-1)/2 - y with y = (t - x cos) / sin, x = n - (nx-1)/2
    c, s, u = cos[~steep], sin[~steep], t[~steep]
    along_x = _table(False, ~steep, (ny - 1) / 2 - (u + c * (nx - 1) / 2) / s, c / s, 1 / np.abs(s), nx, ny)
    pixel = geometry.pixel_size_mm
    for rays in (along_y, along_x):
        rays.weight[:] *= pixel
    return along_y, along_x


def _table(
    along_y: bool,
    chosen: NDArray[np.bool_],
    start: NDArray[np.float64],
    slope: NDArray[np.float64],
    length: NDArray[np.float64],
    steps: int,
    width: int,
) -> Rays:
    start = start + 1.0
    level = np.abs(slope) < 1e-12
    safe = np.where(level, 1.0, slope)
    near, far = (_MARGIN - start) / safe, (width + 1 - _MARGIN - start) / safe
    near, far = np.minimum(near, far), np.maximum(near, far)
    inside = (start > _MARGIN) & (start < width + 1 - _MARGIN)
    near = np.where(level, np.where(inside, 0, steps), near)
    far = np.where(level, np.where(inside, steps - 1, -1), far)
    first = np.clip(np.ceil(near), 0, steps).astype(np.int32)
    last = np.maximum(np.clip(np.floor(far) + 1, 0, steps).astype(np.int32), first)
    hit = last > first
    return Rays(
        along_y=along_y,
        ray=np.flatnonzero(chosen)[hit].astype(np.int32),
        a=np.rint(start[hit] * FRACTION).astype(np.int64),
        b=np.rint(slope[hit] * FRACTION).astype(np.int64),
        weight=length[hit],
        first=first[hit],
        last=last[hit],
        steps=steps,
        width=width,
    )
