"""The forward model: coil sensitivities, centred orthonormal FFT, sampling.

    y_c = M F (s_c x) + n,      n white with standard deviation 1 in each part after prewhitening

Where the sampling does not depend on one of the axes (1D masks), the data are transformed along that axis beforehand: the
transform is unitary, so noise and misfit stay what they are and every application needs a one-dimensional FFT only. A
Cartesian 3D scan becomes independent 2D problems the same way.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from suite.errors import InputError
from suite.linalg import conjugate_gradient, expand
from suite.operators import FFT, Identity, LinearOperator

RIM = 8
"""Pixels around the support that a network sees too, as far as the field of view goes."""


class CartesianSense(LinearOperator):
    """`M F S`: images `(B, 1, ny, nx)` to sampled coil data `(B, C, ny, nx)`, zero where not sampled.

    Args:
        maps: sensitivities `(B or 1, C, ny, nx)` complex.
        mask: bool `(B or 1, 1, ny, nx)` (or broadcastable), True where sampled.
        axes: those that are transformed; the others are in image space already.
    """

    domain_dtype = torch.complex64

    def __init__(self, maps: Tensor, mask: Tensor, axes: Sequence[int] = (-2, -1)) -> None:
        if maps.ndim != 4 or mask.ndim != 4:
            raise InputError(
                f"maps {tuple(maps.shape)} and mask {tuple(mask.shape)} must have four axes (B, C, ny, nx)"
            )
        self.maps, self.axes = maps, tuple(axes)
        self.mask = mask.to(maps.real.dtype)
        self.fft = FFT(self.axes)
        self.domain_shape = (1, *maps.shape[2:])

    def forward(self, x: Tensor) -> Tensor:
        return self.mask * self.fft(self.maps * x)

    def adjoint(self, y: Tensor) -> Tensor:
        return (self.maps.conj() * self.fft.adjoint(self.mask * y)).sum(1, keepdim=True)

    @property
    def normal(self) -> LinearOperator:
        return _SenseNormal(self)


class _SenseNormal(LinearOperator):
    """`S^H F^H M F S`. The phases that centre the FFT cancel in k-space, and in image space they join the maps."""

    domain_dtype = torch.complex64

    def __init__(self, sense: CartesianSense) -> None:
        self.axes, self.domain_shape = sense.axes, sense.domain_shape
        self.maps = sense.maps
        for axis in self.axes:
            self.maps = _centring(self.maps, axis) * self.maps
        self.maps = self.maps.contiguous()  # with the layout that an FFT may leave this takes three times as long
        self.conjugate = self.maps.conj().resolve_conj()
        self.mask = sense.mask

    def forward(self, x: Tensor) -> Tensor:
        k = torch.fft.fftn(self.maps * x, dim=self.axes)
        k *= self.mask
        return torch.fft.ifftn(k, dim=self.axes).mul_(self.conjugate).sum(1, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.forward(y)


class Window(LinearOperator):
    """A part of the field of view, zeros around it: `(B, C, h, w)` to `(B, C, ny, nx)`; the adjoint cuts it out.

    Args:
        box: rows and columns.
        shape: `(ny, nx)`.
    """

    domain_dtype = torch.complex64

    def __init__(self, box: tuple[slice, slice], shape: tuple[int, int]) -> None:
        self.box = box
        (y, x), (ny, nx) = box, shape
        self.padding = (x.start, nx - x.stop, y.start, ny - y.stop)

    def forward(self, x: Tensor) -> Tensor:
        return pad(x, self.padding)

    def adjoint(self, y: Tensor) -> Tensor:
        return y[..., self.box[0], self.box[1]]

    @property
    def normal(self) -> LinearOperator:
        return Identity()


def support_box(maps: Tensor) -> tuple[slice, slice]:
    """Rows and columns that hold the support of all maps `(S, C, ny, nx)`, and `RIM` pixels around it as far as there are any."""
    inside = (maps != 0).flatten(0, 1).any(0)
    if not bool(inside.any()):
        return slice(0, inside.shape[0]), slice(0, inside.shape[1])
    first, last = inside.nonzero().amin(0).tolist(), inside.nonzero().amax(0).tolist()
    y, x = (slice(max(0, a - RIM), min(n, b + 1 + RIM)) for a, b, n in zip(first, last, inside.shape, strict=True))
    return y, x


def _centring(like: Tensor, axis: int) -> Tensor:
    """The phases `exp(2 pi i r (n//2) / n)` before a plain FFT that move zero frequency to index n // 2."""
    n = like.shape[axis]
    angle = 2 * torch.pi * (torch.arange(n, device=like.device, dtype=torch.float64) * (n // 2) % n) / n
    return torch.polar(torch.ones_like(angle), angle).to(like.dtype).reshape(-1, *(1,) * (-axis - 1))


def transformed_axes(mask: Tensor) -> tuple[int, ...]:
    """Of the two axes of a mask `(..., ny, nx)`, those the sampling depends on (at least one)."""
    axes = tuple(a for a in (-2, -1) if bool((mask != mask.narrow(a, 0, 1)).any()))
    return axes or (-1,)


def sampled_points(mask: Tensor, coils: int) -> Tensor:
    """How many complex data each item has, `(B,)`."""
    return mask.flatten(1).sum(1) * coils


def rss(images: Tensor) -> Tensor:
    """Root sum of squares over the coils: `(B, C, ny, nx)` complex to `(B, 1, ny, nx)` real."""
    return images.abs().square().sum(1, keepdim=True).sqrt()


def centre_crop(image: Tensor, shape: Sequence[int]) -> Tensor:
    """The centre of the last two axes; an axis smaller than asked for stays as it is. Pixel `n // 2` stays the centre."""
    for axis, size in zip((-2, -1), shape, strict=True):
        n = image.shape[axis]
        if size < n:
            image = image.narrow(axis, n // 2 - size // 2, size)
    return image


def ridge_weight(rhs: Tensor, maps: Tensor, acceleration: float) -> Tensor:
    """`1 / p` of `ridge`, `(S, 1, 1, 1)`, p the mean energy of the image per part, told from `rhs = A^H y`."""
    energy = rhs.abs().square().flatten(1).sum(1) * acceleration
    inside = (maps.abs().sum(1) > 0).flatten(1).sum(1).clamp_min(1)
    return expand(2 * inside / energy.clamp_min(1e-12), rhs)


def ridge(
    operator: LinearOperator, rhs: Tensor, weight: Tensor, iterations: int = 40, tolerance: float = 1e-4
) -> Tensor:
    """`argmin |A x - y|^2 + weight |x|^2` for `rhs = A^H y`: CG-SENSE.

    With `ridge_weight` the posterior mean for white images of that energy.
    """
    normal = operator.normal
    return conjugate_gradient(lambda x: normal(x) + weight * x, rhs, iterations=iterations, tolerance=tolerance)
