# mypy: ignore-errors
# (numba types these functions itself)
"""Compiled inner loops of total variation: the two halves of a primal-dual step on one slice, each a single pass."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True, cache=True, error_model="numpy")
def primal(x, p, back, tau, a, relaxation, new, ahead):
    """`new = max(x - tau (back + a grad^T p), 0)`, `ahead = 2 new - x`, then `x += relaxation (new - x)`.

    Arrays `(ny, nx)`, `p` `(2, ny, nx)`; the numbers have the arrays' dtype.
    """
    ny, nx = x.shape
    zero = a - a
    for i in range(ny):
        here, across, down, above = x[i], p[0, i], p[1, i], p[1, i - 1]  # row -1 is the last, whose differences are 0
        for j in range(nx):
            left = across[j - 1] if j else zero
            value = here[j] - tau[i, j] * (back[i, j] + a * (left + above[j] - across[j] - down[j]))
            value = zero if value < zero else value  # a NaN stays and shows
            new[i, j] = value
            ahead[i, j] = value + value - here[j]
            here[j] += relaxation * (value - here[j])


@njit(nogil=True, cache=True, error_model="numpy")
def dual(ahead, p, step, radius, relaxation):
    """`p += relaxation (p' - p)`, where p' is `p + step grad(ahead)` shortened to at most `radius` at each pixel."""
    ny, nx = ahead.shape
    one = step / step
    for i in range(ny):
        here, below = ahead[i], ahead[min(i + 1, ny - 1)]
        across, down = p[0, i], p[1, i]
        for j in range(nx):
            u = across[j] + step * ((here[j + 1] if j + 1 < nx else here[j]) - here[j])
            v = down[j] + step * (below[j] - here[j])
            length = np.sqrt(u * u + v * v)
            shorter = one if length <= radius else radius / length
            across[j] += relaxation * (shorter * u - across[j])
            down[j] += relaxation * (shorter * v - down[j])
