# mypy: ignore-errors
# (numba types these functions itself)
"""Compiled inner loops of the cone-beam projector: one detector column at a time, all its rows together.

At each step of a column's line the two lines of voxels along z that it passes between are mixed into one, from which every
row takes its linear interpolation. Both directions compute their weights by the same operations.
"""

from __future__ import annotations

import numpy as np
from numba import int64, njit

_FRACTION = 1.0 / (1 << 32)


@njit(nogil=True, cache=True)
def rows_inside(middle, centre, m, depth, rows):
    """The rows `low <= r < high` whose height `middle + (r - centre) m` lies strictly within (0, depth + 1); m > 0."""
    low = int64(np.floor(centre - middle / m)) + 1
    high = int64(np.ceil(centre + (depth + 1 - middle) / m))
    while low < rows and middle + (low - centre) * m <= 0:
        low += 1
    while high > 0 and middle + (high - 1 - centre) * m >= depth + 1:
        high -= 1
    return max(low, 0), min(high, rows)


@njit(nogil=True, cache=True)
def forward(volume, sinogram, ray, a, b, weight, first, last, m0, m1, start, stop, middle, centre):
    """Add to `sinogram[ray, row]` the sums along the rays `start <= r < stop` of `volume` `(step, across + 2, z + 2)`."""
    rows, depth = sinogram.shape[1], volume.shape[2] - 2
    line = np.empty(depth + 2, volume.dtype)
    total = np.empty(rows, np.float64)
    for r in range(start, stop):
        total[:] = 0.0
        for n in range(first[r], last[r]):
            position = a[r] + b[r] * n
            at = position >> 32
            f = volume.dtype.type((position & 0xFFFFFFFF) * _FRACTION)
            left, right = volume[n, at], volume[n, at + 1]
            for z in range(depth + 2):
                line[z] = left[z] + f * (right[z] - left[z])
            m = m0[r] + m1[r] * n
            low, high = rows_inside(middle, centre, m, depth, rows)
            for q in range(low, high):
                height = middle + (q - centre) * m
                z = int64(height)
                g = height - z
                total[q] += (1.0 - g) * line[z] + g * line[z + 1]
        out = sinogram[ray[r]]
        for q in range(rows):
            out[q] += weight[r] * total[q]


@njit(nogil=True, cache=True)
def adjoint(volume, sinogram, ray, a, b, weight, first, last, m0, m1, start, stop, middle, centre):
    """Add to the steps `start <= n < stop` of the volume what `forward`'s transpose sends there from all rays."""
    rows, depth = sinogram.shape[1], volume.shape[2] - 2
    line = np.empty(depth + 2, np.float64)
    for r in range(ray.size):
        values = sinogram[ray[r]]
        for n in range(max(first[r], start), min(last[r], stop)):
            position = a[r] + b[r] * n
            at = position >> 32
            f = volume.dtype.type((position & 0xFFFFFFFF) * _FRACTION)
            m = m0[r] + m1[r] * n
            low, high = rows_inside(middle, centre, m, depth, rows)
            line[:] = 0.0
            for q in range(low, high):
                height = middle + (q - centre) * m
                z = int64(height)
                g = height - z
                line[z] += (1.0 - g) * values[q]
                line[z + 1] += g * values[q]
            left, right = volume[n, at], volume[n, at + 1]
            for z in range(depth + 2):
                value = volume.dtype.type(weight[r] * line[z])
                left[z] += (volume.dtype.type(1) - f) * value
                right[z] += f * value
