"""The pull towards the data that several methods share: a proximal step whose weight changes with the noise level."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from suite.linalg import TensorMap
from suite.operators import circulant_preconditioner, circulant_symbol
from suite.measurement import Measurement

Preconditioner = Literal["none", "circulant"]


class DataStep:
    """`(v, variance) -> argmin |W (A x - y)|^2 + |x - v|^2 / variance`, by conjugate gradients that start at v.

    Noise-free measurements give the projection `v + A^+ (y - A v)`.

    Args:
        measurement: its noise law makes the weights W.
        iterations: at most so many applications of `A^H A`.
        tolerance: relative residual at which an item is finished.
        preconditioner: "circulant" for operators that are nearly shift invariant (blur, tomography).
    """

    def __init__(
        self, measurement: Measurement, iterations: int, tolerance: float, preconditioner: Preconditioner = "none"
    ) -> None:
        self.measurement, self.iterations, self.tolerance = measurement, iterations, tolerance
        self.preconditioner = preconditioner
        self.symbol: Tensor | None = None
        self.last: Tensor | None = None  # the previous answer, a better start than v while the iterations are few

    def __call__(self, v: Tensor, variance: Tensor) -> Tensor:
        precision = (1 / variance.clamp_min(1e-12)).to(v.dtype)
        self.last = self.measurement.proximal(
            v,
            precision,
            iterations=self.iterations,
            tolerance=self.tolerance,
            preconditioner=self._inverse(v, precision) if self.preconditioner == "circulant" else None,
            start=self.last,
        )
        return self.last

    def _inverse(self, v: Tensor, precision: Tensor) -> TensorMap:
        normal = self.measurement.whitened_normal
        if self.symbol is None:
            self.symbol = circulant_symbol(normal, v[:1])
        shift = precision.flatten(1).mean(1) if self.measurement.noise_level else torch.zeros(1)
        return circulant_preconditioner(normal, v[:1], shift.to(v.device), symbol=self.symbol)
