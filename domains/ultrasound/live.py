"""Live cines: frames go in one by one and come out dehazed after a bounded number of others.

Two ways to spread a reverse process over time. Both begin with a first estimate of each frame (predict, then regenerate),
for `restore` mixed with the haze of the frame before, which hardly differs (SeqDiff, arXiv 2409.05399), noised to an
intermediate time:

    warm      every frame by itself: few evaluations, no latency
    rolling   a window of frames at falling times, the newest noisiest; each frame that comes carries all of them one step on, in
              one evaluation of the network, and the oldest leaves it clean: one evaluation, a latency of as many frames as steps

All frames get the same noise, so that what differs between them is what they show. Nothing looks ahead: the context of
a frame is what came before it. Carried on without a first estimate of its own, a result drifts to what the priors like best,
as every frame adds its evaluations to those of all before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from domains.ultrasound.context import context
from domains.ultrasound.restoration import Clock, blocks, pictures, predicted
from domains.ultrasound.separation import Separation, joint_method
from suite.denoiser import Denoiser
from suite.grid import time_grid
from suite.noise import Noise
from suite.prior import Prior
from suite.process import Process
from suite.solver import DDIM, Solver, sample

Video = Literal["shared", "warm", "rolling"]
WARM_STEPS = 5
WARM_START = {"restore": 0.5, "joint": 0.1}
"""Time to which the estimate that a frame begins with is noised."""

CARRIED = {"restore": 0.2, "joint": 0.0}
"""Share of the frame before in that estimate. On two priors it made what flickers: their pair holds the tissue, which moves."""


class Engine(Protocol):
    """A method as a stream needs it; tensors are batches of frames in blocks."""

    process: Process
    start: float
    memory: float
    networks: Sequence[Prior]

    def given(self, seen: Tensor) -> Tensor:
        """What the network is told of a frame `(1, 3, rows, columns)` with its context."""

    def first(self, seen: Tensor) -> Tensor:
        """A first estimate of the signal of such a frame: one evaluation of each of `networks`."""

    def parts(self, given: Tensor, identity: list[str]) -> tuple[Denoiser, Solver, Tensor | None]:
        """Denoiser, solver that takes times per frame, and condition, for these frames."""

    def result(self, signal: Tensor) -> Tensor:
        """`(T, rows, columns)`: haze in grey values, or the share of tissue."""


class RestoreEngine:
    """The residual family; the signal is the haze."""

    start, memory = WARM_START["restore"], CARRIED["restore"]

    def __init__(self, networks: Sequence[Prior], clock: Clock) -> None:
        self.networks, self.clock, self.process = networks, clock, networks[0].process

    def given(self, seen: Tensor) -> Tensor:
        return blocks(seen)

    def first(self, seen: Tensor) -> Tensor:
        return blocks(predicted(self.networks, seen, self.clock)[:, None])

    def parts(self, given: Tensor, identity: list[str]) -> tuple[Denoiser, Solver, Tensor | None]:
        return self.networks[0].denoiser(clock=lambda: self.clock("network")), DDIM(), given

    def result(self, signal: Tensor) -> Tensor:
        return pictures(signal)


class JointEngine:
    """The joint posterior with two priors; the signal is the pair of tissue and haze, the first estimate the restoration's."""

    start, memory = WARM_START["joint"], CARRIED["joint"]

    def __init__(
        self,
        problem: Separation,
        networks: Sequence[Prior],
        taken: Callable[[Tensor], Tensor],
        method: str,
        options: dict[str, Any],
        seed: int,
    ) -> None:
        self.problem, self.networks, self.taken, self.seed = problem, networks, taken, seed
        self.method = joint_method(method, {"solver": "ddim"} | options)
        self.process = problem.process

    def given(self, seen: Tensor) -> Tensor:
        return self.problem.companded(seen[:, 0])

    def first(self, seen: Tensor) -> Tensor:
        haze = predicted(self.networks, seen, self.problem.clock)
        return self.problem.pair(seen[:, 0], seen[:, 0] - self.taken(haze))

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
        steps: evaluations for a frame, the first estimate counted as one; None: `WARM_STEPS`. In a rolling window all but that one
            are spread over as many frames.
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
        left = (steps or WARM_STEPS) - 1
        self.times = (
            time_grid(engine.process, left, start=engine.start) if left else torch.zeros(1, dtype=torch.float64)
        )
        self.latency = 0 if video == "warm" else max(0, left - 1)
        self.evaluations = 0
        self._past: deque[Tensor] = deque(maxlen=window)
        self._slots: list[_Slot] = []
        self._estimate: Tensor | None = None
        self._eps: Tensor | None = None

    def push(self, frame: Tensor) -> Tensor | None:
        """Take a frame `(rows, columns)` of grey values 0..1; the result of the one that leaves, `(rows, columns)`, or None."""
        self._past.append(frame)
        past = torch.stack(list(self._past))
        seen = context(past, 2 * len(past) + 1)[-1:]
        given = self.engine.given(seen)
        self._slots.append(_Slot(given, self._noised(seen)))
        left = len(self.times) - 1
        for _ in range(left if self.video == "warm" else min(left, 1)):
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

    def _noised(self, seen: Tensor) -> Tensor:
        """The first state of a frame: its own first estimate, and a little of the one before, at the first time."""
        signal = self.engine.first(seen)
        self.evaluations += len(self.engine.networks)
        if self._estimate is not None:
            signal = torch.lerp(signal, self._estimate, self.engine.memory)
        if self._eps is None:
            self._eps = Noise.of(self.seed, [self.identity]).normal(signal)
        return self.engine.process.marginal(signal, self.times[:1].to(signal.device).reshape(1, 1, 1, 1), self._eps)

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
