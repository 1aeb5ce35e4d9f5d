"""One slice as several: rays that the symmetries of a square image carry into each other are walked once.

The mirror images of a slice, across its columns, its rows and its diagonal, are eight pictures of the same size. A ray
through one of them is another ray through the slice: at evenly spread angles nearly every ray has seven such partners. So
the lanes of the compiled kernels, which carry the slices of a stack, carry the mirror images of a single slice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from domains.ct.rays import FRACTION, Rays

LANES = 8  # numbers that go together: a SIMD register of 256 bits
_SAME = 8  # bits below which two positions are one: 2^-24 of a pixel, the resolution of the weights
_WORTH = 2.5  # rays walked at once, on average, from which the mirror images are faster than the slice alone


@dataclass(frozen=True)
class Folded:
    """Rays of which one stands for up to eight.

    Attributes:
        rays: the ones that stand, `G` of them, `rays.ray` counting from 0.
        members: the numbers `v * K + k` of the rays they stand for, by lane, `(G, 8)`; one past the last where there is none.
    """

    rays: Rays
    members: NDArray[np.int64]


def fold(tables: tuple[Rays, Rays], total: int) -> Folded | None:
    """The rays of both tables by lane, lane `4 d + 2 r + c` for the image mirrored at diagonal, rows and columns.

    Args:
        tables: from `rays.trace`.
        total: number of rays of the sinogram, those that miss the image too.

    Returns:
        None where it does not pay: the image is not square, or too few rays have partners.
    """
    if tables[0].steps != tables[0].width:
        return None
    size = tables[0].steps
    diagonal = np.repeat([0, 1], [rays.ray.size for rays in tables])
    ray, a, b, weight = (
        np.concatenate([getattr(rays, name) for rays in tables]) for name in ("ray", "a", "b", "weight")
    )

    # Mirrored at the rows a ray starts where it ended; mirrored at the columns it counts from the other side.
    columns = (b < 0).astype(np.int64)
    rising = np.where(columns == 1, (size + 1) * FRACTION - a, a)
    turned = (size + 1) * FRACTION - (rising + np.abs(b) * (size - 1))  # by half a turn: mirrored at both
    half = (turned < rising).astype(np.int64)
    start = np.where(half == 1, turned, rising)
    lane = 4 * diagonal + 2 * half + (columns ^ half)

    line = np.stack([(start + (1 << _SAME - 1)) >> _SAME, (np.abs(b) + (1 << _SAME - 1)) >> _SAME])
    _, again, _ = _groups(np.stack([*line, lane]))  # a ray measured twice needs a place of its own
    group, _, chosen = _groups(np.stack([*line, again]))
    if ray.size < _WORTH * chosen.size:
        return None
    members = np.full((chosen.size, LANES), total, np.int64)
    members[group, lane] = ray
    return Folded(_standing(size, start[chosen], np.abs(b)[chosen], weight[chosen]), members)


def _groups(keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Of columns of keys: the group of equal ones each is in, its rank there, and the first column of each group."""
    order = np.lexsort(keys)
    fresh = np.r_[True, (np.diff(keys[:, order]) != 0).any(0)]
    group, rank = np.empty((2, order.size), np.int64)
    first = np.flatnonzero(fresh)
    group[order] = np.cumsum(fresh) - 1
    rank[order] = np.arange(order.size) - np.repeat(first, np.diff(np.r_[first, order.size]))
    return group, rank, order[first]


def _standing(size: int, a: NDArray[np.int64], b: NDArray[np.int64], weight: NDArray[np.float64]) -> Rays:
    """The rays that stand, as a table; where they meet the image is counted anew."""
    # The steps at which 0 < a + b n < (size + 1) 2^32, in integers; a level ray meets all.
    level = b == 0
    safe = np.where(level, 1, b)
    first = np.where(level, 0, np.clip(-(a // safe), 0, size))
    first = np.where(~level & (a + b * first <= 0), first + 1, first)
    last = np.where(level, size, np.clip(((size + 1) * FRACTION - 1 - a) // safe + 1, 0, size))
    return Rays(
        along_y=True,
        ray=np.arange(a.size, dtype=np.int32),
        a=a,
        b=b,
        weight=weight,
        first=first.astype(np.int32),
        last=np.maximum(last, first).astype(np.int32),
        steps=size,
        width=size,
    )
