"""Live cines: frames go in one by one and come out dehazed after a bounded number of others.

Two ways to spread a reverse process over time, both from the estimate of the frame before, whose haze hardly differs:

    warm      every frame by itself, from the previous result noised to an intermediate time (SeqDiff, arXiv 2409.05399): few
              evaluations, no latency
    rolling   a window of frames at falling times, the newest noisiest; each frame that comes carries all of them one step on, in
              one evaluation of the network, and the oldest leaves it clean: one evaluation, a latency of as many frames as steps

All frames get the same noise, so that what differs between them is what they show. Nothing looks ahead: the context of
a frame is what came before it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from domains.ultrasound.context import context
from domains.ultrasound.grid import BLOCK
from domains.ultrasound.restoration import Clock, predicted
from domains.ultrasound.separation import Separation, joint_method
from suite.denoiser import Denoiser
from suite.grid import time_grid
from suite.noise import Noise
from suite.prior import Prior
from suite.process import Process
from suite.solver import DDIM, Solver, sample

Video = Literal["shared", "warm", "rolling"]
WARM_STEPS = 4
WARM_START = {"restore": 0.5, "joint": 0.1}
"""Time to which the estimate of the frame before is noised."""


class Engine(Protocol):
    """A method as a stream needs it; tensors are batches of frames in blocks."""

    process: Process
    start: float

    def given(self, seen: Tensor) -> Tensor:
        """What the network is told of a frame `(1, 3, rows, columns)` with its context."""

    def first(self, given: Tensor) -> Tensor:
        """An estimate of the signal of a first frame."""

    def carried(self, signal: Tensor, given: Tensor) -> Tensor:
        """An estimate for the next frame from that of the frame before."""

    def parts(self, given: Tensor, identity: list[str]) -> tuple[Denoiser, Solver, Tensor | None]:
        """Denoiser, solver that takes times per frame, and condition, for these frames."""

    def result(self, signal: Tensor) -> Tensor:
        """`(T, rows, columns)`: haze in grey values, or the share of tissue."""


class RestoreEngine:
    """The residual family; the signal is the haze."""

    start = WARM_START["restore"]

    def __init__(self, prior: Prior, clock: Clock) -> None:
        self.prior, self.clock, self.process = prior, clock, prior.process

    def given(self, seen: Tensor) -> Tensor:
        return F.pixel_unshuffle(seen, BLOCK)

    def first(self, given: Tensor) -> Tensor:
        return predicted(self.prior, given, self.clock)

    def carried(self, signal: Tensor, given: Tensor) -> Tensor:
        return signal

    def parts(self, given: Tensor, identity: list[str]) -> tuple[Denoiser, Solver, Tensor | None]:
        return self.prior.denoiser(clock=lambda: self.clock("network")), DDIM(), given

    def result(self, signal: Tensor) -> Tensor:
        return F.pixel_shuffle(signal, BLOCK)[:, 0]


class JointEngine:
    """The joint posterior with two priors; the signal is the pair of tissue and haze, the first estimate the restoration's."""

    start = WARM_START["joint"]

    def __init__(
        self, problem: Separation, restorer: Prior, method: str, options: dict[str, Any], threshold: float, seed: int
    ) -> None:
        self.problem, self.restorer, self.threshold, self.seed = problem, restorer, threshold, seed
        self.method = joint_method(method, {"solver": "ddim"} | options)
        self.process = problem.process
        self._seen: Tensor | None = None

    def given(self, seen: Tensor) -> Tensor:
        self._seen = seen
        return self.problem.companded(seen[:, 0])

    def first(self, given: Tensor) -> Tensor:
        assert self._seen is not None  # `given` came before
        haze = predicted(self.restorer, F.pixel_unshuffle(self._seen, BLOCK), self.problem.clock)
        grey = self._seen[:, 0]
        return self.problem.pair(grey, grey - (F.pixel_shuffle(haze, BLOCK)[:, 0] - self.threshold).clamp_min(0))

    def carried(self, signal: Tensor, given: Tensor) -> Tensor:
        return self.problem.carried(signal, given)

    def parts(self, given: Tensor, identity: list[str]) -> tuple[Denoiser, Solver, Tensor | None]:
        measurement = self.problem.measurement(given)
        guide = self.method.guide(self.problem.product, measurement, Noise.of(self.seed, identity))
        return guide, self.method.stepper(guide, measurement), None

    def result(self, signal: Tensor) -> Tensor:
        return self.problem.share(signal)


@dataclass
class _Slot:
    """A frame on its way: what is known of it, its state, how many steps it has done."""

    given: Tensor
    state: Tensor
    stage: int = 0


class Stream:
    """Frames on the grid in, results out, in order.

    Args:
        engine: the method.
        video: `warm` or `rolling`.
        steps: of a frame's reverse process; in a rolling window also the frames it holds.
        window: frames of the context, this one and those before it.
        seed, identity: decide the noise, the same for all frames.

    Attributes:
        latency: frames that come in before a frame comes out.
        evaluations: of the network, so far.
    """

    def __init__(
        self, engine: Engine, video: Video, *, steps: int | None, window: int, seed: int, identity: str
    ) -> None:
        self.engine, self.video, self.seed, self.identity = engine, video, seed, identity
        self.times = time_grid(engine.process, steps or WARM_STEPS, start=engine.start)
        self.latency = 0 if video == "warm" else len(self.times) - 2
        self.evaluations = 0
        self._past: deque[Tensor] = deque(maxlen=window)
        self._slots: list[_Slot] = []
        self._estimate: Tensor | None = None
        self._eps: Tensor | None = None

    def push(self, frame: Tensor) -> Tensor | None:
        """Take a frame `(rows, columns)` of grey values 0..1; the result of the one that leaves, `(rows, columns)`, or None."""
        self._past.append(frame)
        past = torch.stack(list(self._past))
        given = self.engine.given(context(past, 2 * len(past) + 1)[-1:])
        self._slots.append(_Slot(given, self._noised(given)))
        for _ in range(len(self.times) - 1 if self.video == "warm" else 1):
            self._advance()
        return self._leave()

    def flush(self) -> list[Tensor]:
        """The results of the frames still on their way."""
        out = []
        while self._slots:
            self._advance()
            left = self._leave()
            if left is not None:
                out.append(left)
        return out

    def _noised(self, given: Tensor) -> Tensor:
        """The first state of a frame: the estimate of the one before, or its own, at the first time."""
        if self._estimate is None:
            signal = self.engine.first(given)
            self.evaluations += 1
        else:
            signal = self.engine.carried(self._estimate, given)
        if self._eps is None:
            self._eps = Noise.of(self.seed, [self.identity]).normal(signal)
        return self.engine.process.marginal(signal, self.times[:1].reshape(1, 1, 1, 1), self._eps)

    def _advance(self) -> None:
        """Every frame of the window one step on, in one evaluation."""
        stages = torch.tensor([slot.stage for slot in self._slots])
        grid = torch.stack([self.times[stages], self.times[stages + 1]]).reshape(2, -1, 1, 1, 1)
        given = torch.cat([slot.given for slot in self._slots])
        names = [f"{self.identity} stage {slot.stage}" for slot in self._slots]
        denoiser, solver, condition = self.engine.parts(given, names)
        means: list[Tensor] = []
        states = torch.cat([slot.state for slot in self._slots])
        states = sample(denoiser, solver, grid, states, y=condition, callback=lambda n, x, mean: means.append(mean))
        self.evaluations += 1
        self._estimate = means[0][-1:]
        for slot, state in zip(self._slots, states.split(1), strict=True):
            slot.state, slot.stage = state, slot.stage + 1

    def _leave(self) -> Tensor | None:
        if not self._slots or self._slots[0].stage < len(self.times) - 1:
            return None
        return self.engine.result(self._slots.pop(0).state)[0]
