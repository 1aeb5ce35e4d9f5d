"""Chunks as they differ from a linear prediction: the network answers for `x0 - origin`, and all around it stays absolute.

A robot's commands continue those before them; a linear map of the observation says most of what comes next, and a small
network then has only the rest to learn.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from suite.denoiser import Denoiser
from suite.errors import InputError

_RIDGE = 1e-3  # of the mean square of an observation


class Origin(nn.Module):
    """The prediction `W c + b` of a chunk from the observations c, in network units.

    Args:
        weight, bias: `(A, H, K)` and `(A, H)`.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    @classmethod
    def fit(cls, condition: Tensor, chunk: Tensor) -> Origin:
        """Ridge regression of chunks `(N, A, H)` on observations `(N, K)`."""
        x, y = condition.double(), chunk.double().flatten(1)
        mean_x, mean_y = x.mean(0), y.mean(0)
        x = x - mean_x
        gram = x.T @ x / len(x)
        gram = gram + _RIDGE * gram.diagonal().mean().clamp_min(1e-12) * torch.eye(len(gram), dtype=x.dtype)
        weight = torch.linalg.solve(gram, x.T @ (y - mean_y) / len(x)).T
        bias = mean_y - weight @ mean_x
        shape = chunk.shape[1:]
        return cls(weight.reshape(*shape, -1).float(), bias.reshape(shape).float())

    def scaled(self, size: Tensor) -> Origin:
        """The same prediction in units `(A,)` times as large."""
        return Origin(self.weight / size[:, None, None], self.bias / size[:, None])

    def forward(self, condition: Tensor) -> Tensor:
        """`(B, A, H)` for a condition `(B, K)`, or one that goes on with features of pictures."""
        seen = condition[:, : self.weight.shape[-1]].to(self.weight.dtype)
        return torch.addmm(self.bias.flatten(), seen, self.weight.flatten(0, 1).T).unflatten(1, self.bias.shape)


class Relative(Denoiser):
    """`E[x0 | z] = origin + E[x0 - origin | z - alpha origin]`.

    Args:
        inner: denoiser of chunks relative to the origin; both take the observation as `y`.
    """

    def __init__(self, inner: Denoiser, origin: Origin) -> None:
        super().__init__(inner.process)
        self.inner, self.origin, self.differentiable = inner, origin, inner.differentiable

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """See `Denoiser`.

        Raises:
            InputError: no observation.
        """
        if y is None:
            raise InputError("an action network needs the observation as its condition, and none was given")
        at = self.origin(y)
        return at + self.inner(x - self.process.alpha(t).to(x.dtype) * at, t, y)
