"""Orthonormal Daubechies wavelet transform of images, periodic, and L1-wavelet reconstruction."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from suite.operators import LinearOperator

# Daubechies' orthonormal low-pass filter with four vanishing moments (Ten Lectures on Wavelets, 1992, table 6.1).
_DB4 = (
    0.23037781330885523, 0.7148465705525415, 0.6308807679295904, -0.02798376941698385,
    -0.18703481171888114, 0.030841381835986965, 0.032883011666982945, -0.010597401784997278,
)  # fmt: skip
LEVELS = 4


def _filters(like: Tensor) -> Tensor:
    """`(2, 1, 8)`: low-pass, and its quadrature mirror."""
    low = torch.tensor(_DB4, dtype=like.dtype, device=like.device)
    signs = torch.tensor([1.0, -1.0] * 4, dtype=like.dtype, device=like.device)
    return torch.stack([low, low.flip(0) * signs])[:, None]


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    """One step along the last axis of even length: low and high half, each `(..., n/2)`."""
    n = x.shape[-1]
    wrapped = (
        torch.cat([x, x[..., :6]], -1)
        if n >= 6
        else x.repeat_interleave(1, -1).repeat(*(1,) * (x.ndim - 1), 8)[..., : n + 6]
    )
    flat = wrapped.reshape(-1, 1, n + 6)
    out = F.conv1d(flat, _filters(x), stride=2)
    low, high = out.unbind(1)
    return low.reshape(*x.shape[:-1], n // 2), high.reshape(*x.shape[:-1], n // 2)


def _join(low: Tensor, high: Tensor) -> Tensor:
    """The transpose of `_split`, which is its inverse."""
    half = low.shape[-1]
    n = 2 * half
    flat = torch.stack([low.reshape(-1, half), high.reshape(-1, half)], 1)
    long = F.conv_transpose1d(flat, _filters(low), stride=2)  # n + 6
    out = long[..., :n].clone()
    tail = long[..., n:]
    for start in range(0, 6, n):
        part = tail[..., start : start + n]
        out[..., : part.shape[-1]] += part
    return out.reshape(*low.shape[:-1], n)


def wavelet(x: Tensor, levels: int = LEVELS) -> list[Tensor]:
    """`[details of level 1 (3 stacked), ..., of the last level, approximation]` of real `(..., ny, nx)`.

    The sides must be multiples of `2^levels`.
    """
    out = []
    for _ in range(levels):
        rows = _split(x)
        (ll, lh), (hl, hh) = (_split(part.transpose(-1, -2)) for part in rows)
        out.append(torch.stack([lh, hl, hh]))
        x = ll.transpose(-1, -2)
    return [*out, x]


def inverse_wavelet(coefficients: list[Tensor]) -> Tensor:
    """The inverse (and transpose) of `wavelet`."""
    x = coefficients[-1]
    for details in reversed(coefficients[:-1]):
        lh, hl, hh = details.unbind(0)
        x = _join(_join(x.transpose(-1, -2), lh).transpose(-1, -2), _join(hl, hh).transpose(-1, -2))
    return x


def shrink(x: Tensor, threshold: Tensor, shift: tuple[int, int]) -> Tensor:
    """Soft threshold of the details of a complex image `(B, 1, ny, nx)`, seen through a shifted transform.

    The image is padded by reflection to whole multiples of `2^levels`; magnitudes shrink, phases stay.
    """
    ny, nx = x.shape[-2:]
    unit = 2**LEVELS
    pad = (0, -nx % unit, 0, -ny % unit)
    parts = torch.stack([x.real, x.imag])[:, :, 0]
    wide = F.pad(parts, pad, mode="replicate") if any(pad) else parts
    coefficients = wavelet(wide.roll(shift, (-2, -1)))
    limit = threshold.reshape(-1, 1, 1)
    for i, details in enumerate(coefficients[:-1]):
        size = torch.linalg.vector_norm(details, dim=1, keepdim=True)  # details: (3, 2, B, h, w)
        coefficients[i] = details * (1 - limit / size.clamp_min(1e-20)).clamp_min(0)
    back = inverse_wavelet(coefficients).roll((-shift[0], -shift[1]), (-2, -1))[..., :ny, :nx]
    return torch.complex(back[0], back[1])[:, None]


def l1_wavelet(
    operator: LinearOperator, y: Tensor, start: Tensor, penalty: Tensor, curvature: float = 1.0, iterations: int = 80
) -> Tensor:
    """`argmin |A x - y|^2 / 2 + penalty |Psi x|_1` by FISTA (Beck and Teboulle 2009), shifted at random in each iteration.

    The penalty falls from ten times its value during the first half, which shortens the way.

    Args:
        operator: `A`.
        y: data `(B, C, ny, nx)`.
        start: first image `(B, 1, ny, nx)`.
        penalty: one for each item `(B,)`.
        curvature: bound of `|A|^2`; 1 on a grid, because the maps have unit norm.
        iterations: applications of `A^H A`.
    """
    rng = torch.Generator().manual_seed(0)
    normal, rhs = operator.normal, operator.adjoint(y)
    x, z, t = start, start, 1.0
    for k in range(iterations):
        shift = tuple(torch.randint(2**LEVELS, (2,), generator=rng).tolist())
        factor = 10 ** max(0.0, 1 - 2 * k / iterations)
        new = shrink(z + (rhs - normal(z)) / curvature, factor / curvature * penalty, (shift[0], shift[1]))
        t_new = (1 + (1 + 4 * t * t) ** 0.5) / 2
        z = new + (t - 1) / t_new * (new - x)
        x, t = new, t_new
    return x
