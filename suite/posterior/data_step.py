"""The pull towards the data that several methods share: a proximal step whose weight changes with the noise level."""

from __future__ import annotations

from torch import Tensor

from suite.measurement import Measurement


class DataStep:
    """`(v, variance) -> argmin |W (A x - y)|^2 + |x - v|^2 / variance`, by conjugate gradients.

    Noise-free measurements give the projection `v + A^+ (y - A v)`.

    Args:
        measurement: its noise law makes the weights W; its preconditioner, if it has one, serves here.
        iterations: at most so many applications of `A^H A`.
        tolerance: relative residual at which an item is finished.
        warm: start from the previous answer, a better guess than v while the iterations are few.
    """

    def __init__(self, measurement: Measurement, iterations: int, tolerance: float, *, warm: bool = True) -> None:
        self.measurement, self.iterations, self.tolerance, self.warm = measurement, iterations, tolerance, warm
        self.last: Tensor | None = None

    def __call__(self, v: Tensor, variance: Tensor) -> Tensor:
        start = self.last if self.warm and self.last is not None and self.last.shape == v.shape else None
        precision = (1 / variance.clamp_min(1e-12)).to(v.dtype)
        self.last = self.measurement.proximal(
            v, precision, iterations=self.iterations, tolerance=self.tolerance, start=start
        )
        return self.last
