"""The derivative of a function at a point, as a linear operator."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from suite.operators.base import LinearOperator


class Tangent(LinearOperator):
    """`J = df/dx` at a point: forward by forward-mode, adjoint by reverse-mode differentiation.

    Args:
        function: of a batch `(B, *domain)`, real, differentiable, every item by itself.
        point: `(B, *domain)`, or `(1, *domain)` for a batch of any size.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], point: Tensor) -> None:
        self.function, self.point = function, point.detach()
        self.domain_shape = tuple(point.shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.func.jvp(self.function, (self.point.expand_as(x).contiguous(),), (x,))[1]
        return out

    def adjoint(self, y: Tensor) -> Tensor:
        point = self.point.expand(len(y), *self.point.shape[1:]).contiguous()
        (out,) = torch.func.vjp(self.function, point)[1](y)
        return out
