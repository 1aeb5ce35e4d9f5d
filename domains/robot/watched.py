"""A denoiser under the clock: it counts, stays within the range of the data, and stops before the deadline."""

from __future__ import annotations

import time
from collections import deque

import torch
from torch import Tensor

from suite.denoiser import Denoiser


class OutOfTime(Exception):
    """The next evaluation would end after the deadline."""


class Pace:
    """How long something takes.

    A process that was not running for a while measures a long time, which says nothing about the network and much about
    the machine. So there are two answers.

    Attributes:
        seconds: at most, as a rule: the second longest of the last 32 times; 0 before there was one.
        longest: of the last 256 times.
    """

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=256)
        self.seconds = self.longest = 0.0

    def learn(self, elapsed: float) -> None:
        self._last.append(elapsed)
        self._answer()

    def forget(self) -> None:
        """It was not dared: the longest time is dropped, else slow ones would be the last of all."""
        if self._last:
            self._last.remove(max(self._last))
        self._answer()

    def reset(self) -> None:
        self._last.clear()
        self._answer()

    def _answer(self) -> None:
        last = list(self._last)
        self.seconds = sorted(last[-32:])[-2:][0] if last else 0.0
        self.longest = max(last, default=0.0)


class Watched(Denoiser):
    """Wraps a denoiser; its last answer is there when time is up.

    Args:
        low, high: range of the network's action values, `(A, 1)`.
        deadline: `time.perf_counter()` value; None: no limit.
        pace: of the evaluations, shared between calls.

    Attributes:
        evaluations: so far.
        mean: the last answer, of every item.
        rows: the items that the next calls are about; None: all.
        restarted: for the sampler to say where `mean` does not continue the previous chunk; None: not said.
    """

    def __init__(
        self, inner: Denoiser, low: Tensor, high: Tensor, deadline: float | None = None, pace: Pace | None = None
    ) -> None:
        super().__init__(inner.process)
        self.inner, self.low, self.high, self.deadline, self.pace = inner, low, high, deadline, pace or Pace()
        self._half = None if deadline is None else (time.perf_counter() + deadline) / 2
        self.evaluations = 0
        self.mean: Tensor | None = None
        self.restarted: Tensor | None = None
        self.rows: Tensor | None = None
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
        if self._late(began):
            raise OutOfTime
        mean = torch.minimum(torch.maximum(self.inner(x, t, y), self.low), self.high)
        self.pace.learn(time.perf_counter() - began)
        self.evaluations += 1
        self.mean = mean if self.rows is None or self.mean is None else self.mean.index_copy(0, self.rows, mean)
        return mean

    def _late(self, now: float) -> bool:
        """Whether the next evaluation might end too late.

        The first one is dared as a rule. Later ones only refine an answer that is there: in the second half of the time they
        must fit even if they take as long as any of late.
        """
        if self.deadline is None or self._half is None:
            return False
        if now + self.pace.seconds > self.deadline:
            if not self.evaluations:
                self.pace.forget()
            return True
        return bool(self.evaluations and now > self._half and now + self.pace.longest > self.deadline)
