"""Operators that are diagonal in Fourier space, and the transform itself."""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import EllipsisType

import torch
from torch import Tensor

from suite.errors import InputError
from suite.linalg import expand
from suite.operators.base import SVD, Identity, LinearOperator


class FFT(LinearOperator):
    """Centred orthonormal discrete Fourier transform over `axes`; unitary on complex tensors, for even and odd sizes.

    Both the origin and zero frequency sit at index `n // 2`.

    Args:
        axes: tensor dimensions, counted from the end.
        real: the domain is real; the adjoint returns the real part, and the operator is an isometry but not unitary.
    """

    def __init__(self, axes: Sequence[int] = (-2, -1), *, real: bool = False) -> None:
        self.axes = tuple(axes)
        self.real = real
        self.unitary = not real
        self.domain_dtype = torch.float32 if real else torch.complex64

    def forward(self, x: Tensor) -> Tensor:
        if x.is_complex() == self.real:
            wanted = "real" if self.real else "complex"
            raise TypeError(f"FFT(real={self.real}) acts on {wanted} tensors, not on {x.dtype}")
        before, after = self._phases(x)
        return after * torch.fft.fftn(before * x, dim=self.axes, norm="ortho")

    def adjoint(self, y: Tensor) -> Tensor:
        before, after = self._phases(y)
        x = before.conj() * torch.fft.ifftn(after.conj() * y, dim=self.axes, norm="ortho")
        return x.real if self.real else x

    def _phases(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return _centring(tuple((a, x.shape[a]) for a in self.axes), x.real.dtype, x.device)

    @property
    def normal(self) -> LinearOperator:
        return Identity()


@lru_cache(maxsize=16)
def _centring(sizes: tuple[tuple[int, int], ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Factors before and after the plain transform that centre it, for (axis, size) pairs; cheaper than two shifts.

    With c = n // 2: `(k - c)(j - c) = k j - c j - c k + c^2` in the exponent of the centred transform.
    """
    before = torch.ones((), dtype=torch.complex128)
    after = torch.ones((), dtype=torch.complex128)
    for axis, n in sizes:
        turn = torch.exp(2j * math.pi * (torch.arange(n, dtype=torch.float64) * (n // 2) % n) / n)
        before = before * turn.reshape(-1, *(1,) * (-axis - 1))
        after = after * cmath.exp(-2j * math.pi * ((n // 2) ** 2 % n) / n)
    after = after * before
    if all(n % 2 == 0 for _, n in sizes):  # plus and minus ones
        return before.real.round().to(dtype).to(device), after.real.round().to(dtype).to(device)
    wide = torch.promote_types(dtype, torch.complex64)
    return before.to(wide).to(device), after.to(wide).to(device)


class FourierDiagonal(LinearOperator):
    """`F^H diag(symbol) F` over the last axes: periodic convolution, stationary covariance, spectral filter.

    Args:
        symbol: eigenvalues in `torch.fft.fftfreq` order (zero frequency first), `(..., *spatial)`, broadcastable
            against the items.
        ndim: number of Fourier axes, the last ones (default: all of the symbol's).
        real: the domain is real. Only the symbol's Hermitian part `(s(k) + conj s(-k)) / 2` can act there.
    """

    def __init__(self, symbol: Tensor, *, ndim: int | None = None, real: bool = True) -> None:
        self.axes = tuple(range(-(symbol.ndim if ndim is None else ndim), 0))
        self.real = real
        if real:
            mirrored = symbol.flip(self.axes).roll((1,) * len(self.axes), self.axes)
            symbol = (symbol + mirrored.conj()) / 2
        self.symbol = symbol
        self.domain_dtype = torch.float32 if real else torch.complex64

    def _apply(self, symbol: Tensor, x: Tensor) -> Tensor:
        out: Tensor
        if x.is_complex() or not self.real:
            out = torch.fft.ifftn(symbol * torch.fft.fftn(x, dim=self.axes), dim=self.axes)
        else:
            half = symbol[..., : symbol.shape[-1] // 2 + 1]
            size = [x.shape[a] for a in self.axes]
            out = torch.fft.irfftn(half * torch.fft.rfftn(x, dim=self.axes), s=size, dim=self.axes)
        return out

    def forward(self, x: Tensor) -> Tensor:
        return self._apply(self.symbol, x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._apply(self.symbol.conj(), y)

    @property
    def normal(self) -> LinearOperator:
        return FourierDiagonal(self.symbol.abs() ** 2, ndim=len(self.axes), real=self.real)

    def svd(self) -> SVD:
        phase = torch.sgn(self.symbol)

        def spectrum(x: Tensor) -> Tensor:
            c: Tensor = torch.fft.fftn(x, dim=self.axes, norm="ortho")
            return c

        def signal(c: Tensor) -> Tensor:
            x: Tensor = torch.fft.ifftn(c, dim=self.axes, norm="ortho")
            return x.real if self.real else x

        return SVD(
            self.symbol.abs(), spectrum, signal, lambda c: signal(phase * c), lambda y: phase.conj() * spectrum(y)
        )


class Convolve(LinearOperator):
    """Convolution of the last axes with a kernel whose origin is at index `size // 2`; the output has the input's size.

    Computed in Fourier space, so the cost does not depend on the kernel's size. Equals `scipy.ndimage.convolve` with
    `mode="wrap"` (periodic) or `mode="constant"` (zero).

    Args:
        kernel: real or complex; its dimensions are the last axes of the items.
        shape: size of those axes.
        boundary: `"periodic"` (diagonal in Fourier space, has an SVD) or `"zero"` (the signal is zero outside).
        real: the domain is real (default: the kernel is).
    """

    def __init__(
        self, kernel: Tensor, shape: Sequence[int], *, boundary: str = "periodic", real: bool | None = None
    ) -> None:
        if kernel.ndim != len(shape):
            raise InputError(f"a kernel with {kernel.ndim} dimensions cannot act on {len(shape)} axes {tuple(shape)}")
        if boundary not in ("periodic", "zero"):
            raise InputError(f"unknown boundary {boundary!r}: use 'periodic' or 'zero'")
        self.shape = tuple(shape)
        self.periodic = boundary == "periodic"
        # Zero boundary: on a grid this large the wrapped part falls outside the region that is kept.
        grid = self.shape if self.periodic else tuple(n + k - 1 for n, k in zip(shape, kernel.shape, strict=True))
        real = not kernel.is_complex() if real is None else real
        self.padded = FourierDiagonal(_transfer(kernel, grid), real=real)
        self.grid, self.domain_dtype = grid, self.padded.domain_dtype

    def _framed(self, x: Tensor, symbol_adjoint: bool) -> Tensor:
        widths = [w for n, g in zip(reversed(self.shape), reversed(self.grid), strict=True) for w in (0, g - n)]
        x = torch.nn.functional.pad(x, widths)
        x = self.padded.adjoint(x) if symbol_adjoint else self.padded.forward(x)
        inside: tuple[slice | EllipsisType, ...] = (..., *(slice(n) for n in self.shape))
        return x[inside]

    def forward(self, x: Tensor) -> Tensor:
        return self.padded.forward(x) if self.periodic else self._framed(x, symbol_adjoint=False)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.padded.adjoint(y) if self.periodic else self._framed(y, symbol_adjoint=True)

    @property
    def normal(self) -> LinearOperator:
        return self.padded.normal if self.periodic else super().normal

    def svd(self) -> SVD:
        return self.padded.svd() if self.periodic else super().svd()


def _transfer(kernel: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Eigenvalues of the periodic convolution on `grid`; taps of a kernel larger than the grid wrap around."""
    axes = tuple(range(kernel.ndim))
    placed = torch.zeros(grid, dtype=kernel.dtype, device=kernel.device)
    index = torch.meshgrid(
        *(torch.arange(k, device=kernel.device).sub(k // 2) % n for k, n in zip(kernel.shape, grid, strict=True)),
        indexing="ij",
    )
    placed.index_put_(index, kernel, accumulate=True)
    symbol: Tensor = torch.fft.fftn(placed, dim=axes)
    return symbol


def gaussian_kernel(sigma: float, ndim: int = 2, *, truncate: float = 4.0) -> Tensor:
    """Gaussian blur kernel of unit sum, standard deviation `sigma` in pixels, cut at `truncate` standard deviations."""
    if sigma <= 0:
        raise InputError(f"the standard deviation of a blur must be positive, not {sigma}")
    radius = max(1, math.ceil(truncate * sigma))
    x = torch.arange(-radius, radius + 1, dtype=torch.float64)
    profile = torch.exp(-0.5 * (x / sigma) ** 2)
    kernel = torch.ones((), dtype=torch.float64)
    for _ in range(ndim):
        kernel = kernel[..., None] * profile
    return (kernel / kernel.sum()).to(torch.float32)


def circulant_symbol(normal: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """Fourier eigenvalues `(1, C, *spatial)` of the circulant operator nearest to `N`, taken as shift-invariant.

    From the response to a delta in the centre, channel by channel, each lag weighted by the share of the field that has
    it (the optimal circulant of a Toeplitz matrix, T. Chan 1988). Real, because `N` is Hermitian.

    Args:
        normal: applies a Hermitian `N` to a batch of one.
        like: a tensor of the domain's shape with batch, `(1, C, *spatial)`; only shape, dtype and device are used.
    """
    shape = like.shape[2:]
    axes = tuple(range(-len(shape), 0))
    overlap = torch.ones(shape, dtype=like.real.dtype, device=like.device)
    for axis, n in zip(axes, shape, strict=True):
        lags = torch.fft.fftfreq(n, dtype=overlap.dtype, device=like.device).abs()
        overlap = overlap * (1 - lags).reshape(-1, *(1,) * (-axis - 1))
    symbols = []
    for channel in range(like.shape[1]):
        delta = torch.zeros_like(like[:1])
        delta[(0, channel, *(n // 2 for n in shape))] = 1.0
        response = normal(delta)[:, channel].roll(tuple(-(n // 2) for n in shape), axes)
        symbols.append(torch.fft.fftn(overlap * response, dim=axes).real)
    return torch.stack(symbols, 1)


def circulant_preconditioner(
    normal: Callable[[Tensor], Tensor], like: Tensor, shift: float | Tensor, *, symbol: Tensor | None = None
) -> FourierDiagonal:
    """Preconditioner of `N + shift` for an approximately shift-invariant `N` (blur, tomography): Fourier-diagonal.

    Divides by `max(symbol, m / 100) + shift`, m being the largest eigenvalue. The floor keeps it positive definite, and
    modest where few views or a boundary make `N` differ from a convolution; a lower one costs iterations there. Where
    `N` is far from shift-invariant (fewer views than a third of the pixels across) it gains little.

    Args:
        normal: applies a Hermitian positive semi-definite `N` to a batch of one.
        like: a tensor of the domain's shape with batch, `(1, C, *spatial)`.
        shift: the multiple of the identity beside `N`, >= 0; a number or one per batch item `(B,)`.
        symbol: `circulant_symbol(normal, like)` when it is at hand; it serves every shift.
    """
    symbol = circulant_symbol(normal, like) if symbol is None else symbol
    axes = tuple(range(2, symbol.ndim))
    symbol = symbol.clamp_min(0.01 * symbol.amax(axes, keepdim=True))
    per_item = expand(torch.as_tensor(shift, dtype=symbol.dtype, device=symbol.device), symbol)
    return FourierDiagonal(1 / (symbol + per_item), ndim=len(axes), real=not like.is_complex())
