"""A denoiser under the clock: it counts, stays within the range of the data, and stops before the deadline."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from suite.denoiser import Denoiser


class OutOfTime(Exception):
    """The next evaluation would end after the deadline."""


@dataclass
class Pace:
    """How long one evaluation takes: the longest of late, slowly forgotten."""

    seconds: float = 0.0

    def learn(self, elapsed: float) -> None:
        self.seconds = max(elapsed, 0.95 * self.seconds)

    def forget(self) -> None:
        """An evaluation was not dared: else one slow one would be the last of all."""
        self.seconds *= 0.9


class Watched(Denoiser):
    """Wraps a denoiser; its last answer is there when time is up.

    Args:
        low, high: range of the network's action values, `(A, 1)`.
        deadline: `time.perf_counter()` value; None: no limit.
        pace: of the evaluations, shared between calls.

    Attributes:
        evaluations: so far.
        mean: the last answer.
        restarted: for the sampler to say where `mean` does not continue the previous chunk; None: not said.
    """

    def __init__(
        self, inner: Denoiser, low: Tensor, high: Tensor, deadline: float | None = None, pace: Pace | None = None
    ) -> None:
        super().__init__(inner.process)
        self.inner, self.low, self.high, self.deadline, self.pace = inner, low, high, deadline, pace or Pace()
        self.evaluations = 0
        self.mean: Tensor | None = None
        self.restarted: Tensor | None = None
        self._prepared: Tensor | None = None

    def prepare(self, mean: Tensor) -> None:
        """The answer to the next call, known already."""
        self._prepared = mean

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """See `Denoiser`.

        Raises:
            OutOfTime: there is no time for this evaluation.
        """
        if self._prepared is not None:
            mean, self._prepared = self._prepared, None
            return mean
        began = time.perf_counter()
        if self.deadline is not None and began + self.pace.seconds > self.deadline:
            self.pace.forget()
            raise OutOfTime
        mean = torch.minimum(torch.maximum(self.inner(x, t, y), self.low), self.high)
        self.pace.learn(time.perf_counter() - began)
        self.evaluations += 1
        self.mean = mean
        return mean
