"""Operators given by an explicit matrix, acting on the flattened item."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from suite.errors import InputError
from suite.operators.base import SVD, LinearOperator


def _common(a: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(a.dtype, x.dtype)
    return a.to(dtype), x.to(dtype)


class Matrix(LinearOperator):
    """An explicit matrix `(M, N)` times the flattened item.

    Args:
        matrix: real or complex `(M, N)`.
        domain_shape: shape of one item, with N elements (default `(N,)`).
        range_shape: shape of one item of the range, with M elements (default `(M,)`).
        real: the domain is real although the matrix is complex; the adjoint then returns `Re A^H y`.
    """

    domain_shape: tuple[int, ...]

    def __init__(
        self,
        matrix: Tensor,
        domain_shape: tuple[int, ...] | None = None,
        range_shape: tuple[int, ...] | None = None,
        *,
        real: bool = False,
    ) -> None:
        self.domain_shape = (matrix.shape[1],) if domain_shape is None else tuple(domain_shape)
        self.range_shape = (matrix.shape[0],) if range_shape is None else tuple(range_shape)
        if (math.prod(self.range_shape), math.prod(self.domain_shape)) != tuple(matrix.shape):
            raise InputError(
                f"a matrix {tuple(matrix.shape)} does not map items of shape {self.domain_shape} to {self.range_shape}"
            )
        self.matrix = matrix
        self.embeds = real and matrix.is_complex()
        self.domain_dtype = torch.complex64 if matrix.is_complex() and not real else torch.float32

    def forward(self, x: Tensor) -> Tensor:
        a, x = _common(self.matrix, x.flatten(1))
        return (x @ a.mT).unflatten(1, self.range_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        a, y = _common(self.matrix, y.flatten(1))
        x = y @ a.conj()
        return (x.real if self.embeds else x).reshape(-1, *self.domain_shape)

    def svd(self) -> SVD:
        a = torch.cat([self.matrix.real, self.matrix.imag]) if self.embeds else self.matrix
        m, n = a.shape
        # V must be square: the null space of a wide matrix is part of the answer.
        u, s, vh = torch.linalg.svd(a, full_matrices=m < n)
        if self.embeds:
            u = torch.complex(u[: m // 2], u[m // 2 :])
        k = s.numel()
        pad = torch.nn.functional.pad

        def left(y: Tensor) -> Tensor:
            basis, y = _common(u, y.flatten(1))
            c = y @ basis.conj()
            return pad(c.real if self.embeds else c, (0, n - k))

        def right(x: Tensor) -> Tensor:
            basis, x = _common(vh, x.flatten(1))
            return x @ basis.mT

        def right_adjoint(c: Tensor) -> Tensor:
            basis, c = _common(vh, c)
            return (c @ basis.conj()).reshape(-1, *self.domain_shape)

        def left_adjoint(c: Tensor) -> Tensor:
            basis, c = _common(u, c[:, :k])
            return (c @ basis.mT).unflatten(1, self.range_shape)

        return SVD(pad(s, (0, n - k)), right, right_adjoint, left_adjoint, left)


class InverseCholesky(LinearOperator):
    """`L^-1` for a covariance `C = L L^H` of the flattened item: whitens noise of a known covariance.

    Complex noise is `L (e_1 + i e_2)` with `e_1, e_2` of unit variance, so that `C = s^2 I` means a standard deviation
    s in the real part and s in the imaginary part.

    Args:
        covariance: `(M, M)`, Hermitian positive definite; `InputError` otherwise.
    """

    def __init__(self, covariance: Tensor) -> None:
        precise = torch.complex128 if covariance.is_complex() else torch.float64
        factor, info = torch.linalg.cholesky_ex(covariance.to(precise))
        if int(info) != 0 or not torch.isfinite(factor).all():
            raise InputError("the noise covariance is not positive definite: all its eigenvalues must be positive")
        self.factor = factor.to(covariance.dtype)
        self.domain_dtype = torch.complex64 if covariance.is_complex() else torch.float32

    def _solve(self, factor: Tensor, x: Tensor, *, upper: bool) -> Tensor:
        factor, columns = _common(factor, x.flatten(1).mT)
        solution: Tensor = torch.linalg.solve_triangular(factor, columns, upper=upper)
        return solution.mT.reshape(x.shape)

    def forward(self, x: Tensor) -> Tensor:
        return self._solve(self.factor, x, upper=False)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._solve(self.factor.mH, y, upper=True)
