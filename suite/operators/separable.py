"""A linear map along rows times one along columns: blur and decimation of images in one operator with a cheap SVD."""

from __future__ import annotations

import torch
from torch import Tensor

from suite.operators.base import SVD, LinearOperator


class Separable(LinearOperator):
    """`R X C^T` on the last two axes of every item, the Kronecker product of R and C.

    Its SVD is that of the factors: `R = U1 S1 V1^T` and `C = U2 S2 V2^T` give the singular values `s1_i s2_j` (Kawar et al. 2022,
    DDRM, appendix D).

    Args:
        rows: real `(M, H)`.
        columns: real `(N, W)`.
    """

    def __init__(self, rows: Tensor, columns: Tensor) -> None:
        self.rows, self.columns = rows, columns

    def forward(self, x: Tensor) -> Tensor:
        return self.rows.to(x) @ x @ self.columns.to(x).mT

    def adjoint(self, y: Tensor) -> Tensor:
        return self.rows.to(y).mT @ y @ self.columns.to(y)

    def svd(self) -> SVD:
        u1, s1, v1 = torch.linalg.svd(self.rows, full_matrices=True)
        u2, s2, v2 = torch.linalg.svd(self.columns, full_matrices=True)
        (m, h), (n, w) = self.rows.shape, self.columns.shape
        values = s1.new_zeros(h, w)
        values[: len(s1), : len(s2)] = s1[:, None] * s2
        first, second = min(m, h), min(n, w)

        def uh(y: Tensor) -> Tensor:
            c = (u1.to(y).mT @ y @ u2.to(y))[..., :first, :second]
            return torch.nn.functional.pad(c, (0, w - second, 0, h - first))

        return SVD(
            values,
            vh=lambda x: v1.to(x) @ x @ v2.to(x).mT,
            v=lambda c: v1.to(c).mT @ c @ v2.to(c),
            u=lambda c: u1.to(c)[:, :first] @ c[..., :first, :second] @ u2.to(c)[:, :second].mT,
            uh=uh,
        )
