"""From an observation to an action chunk: the suite's solvers, started cold or from the previous chunk, under a deadline.

    ddpm, ddim, dpmpp-2m, heun   from noise (Ho et al. 2020; Song et al. 2021; Lu et al. 2022; Karras et al. 2022)
    rti      the shifted previous chunk is taken as it is for x_t at the last few of 100 steps (Duan et al. 2025, RTI-DP),
             with the coefficients of the steps really taken
    warm     the shifted previous chunk is re-noised, and the noise level is chosen by a residual test (below)
    stream   a buffer whose noise rises along the chunk; its first actions become clean while the rest is still noisy
             (Hoeg et al. 2024, Streaming Diffusion Policy)
    anchor   typical chunks are re-noised, the one that the observation supports is carried on (after Liao et al. 2025,
             DiffusionDrive, with a residual test in place of their classifier)

The residual test. The guess g is re-noised to a low ratio sigma/alpha and denoised once. For a chunk that the observation
supports, `|D - g|` is the ordinary error of the denoiser at that ratio, whose 99 % limit was measured on held-out
demonstrations. A larger distance means that the scene has changed: sampling then starts again at the ratio whose limit is
that distance, or from pure noise when none is so large.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from domains.robot.calibration import Calibration, interpolate, rms, time_of_ratio
from domains.robot.constraints import Constraint
from domains.robot.expertcache import ExpertCache
from domains.robot.levels import SteadyMLP
from domains.robot.network import ActionNetwork, ResidualMLP
from domains.robot.watched import OutOfTime, Pace, Watched
from suite.denoiser import Denoiser
from suite.errors import InputError
from suite.grid import time_grid
from suite.noise import Noise
from suite.process import Process
from suite.solver import DDIM, DPMpp2M, Heun, Solver, sample

EVALUATIONS = {
    "ddpm": 100,
    "ddim": 10,
    "dpmpp-2m": 10,
    "heun": 11,
    "rti": 3,
    "warm": 3,
    "stream": 3,
    "anchor": 3,
}
"""Network evaluations per chunk, by sampler; where rti, warm and stream have nothing to continue they take those of ddim."""
SAMPLERS = tuple(EVALUATIONS)
RTI_STEPS = 100  # of the chain whose last steps RTI takes
WARM_RATIO = 0.3  # sigma/alpha at which the guess is tested
CACHED = ("ddpm", "ddim", "dpmpp-2m", "heun")  # one grid of times for every chunk
ANCHOR_RATIO = 1.0  # sigma/alpha to which anchors are re-noised


def check_sampler(name: str) -> None:
    """Refuse an unknown sampler.

    Raises:
        InputError: names those there are.
    """
    if name not in SAMPLERS:
        raise InputError(f"there is no sampler named {name!r}; choose one of {', '.join(SAMPLERS)}")


def rising_times(horizon: int, stride: int, progress: Tensor) -> Tensor:
    """Times `(..., H)` of a streaming buffer: of `n = H / stride` groups, group i stands at `(i + progress) / n`.

    With progress 1 the last group is pure noise, with 0 the first one is clean (Hoeg et al. 2024, section 4).
    """
    group = torch.arange(horizon, dtype=torch.float64, device=progress.device) // stride
    return (group + progress[..., None].double()) * stride / horizon


@dataclass(frozen=True)
class Previous:
    """What is left of earlier calls.

    Attributes:
        chunk: the previous chunk from now on, its last action repeated, `(B, A, H)`.
        buffer: state of the streaming sampler, `(B, A, H)`; None where there is none.
    """

    chunk: Tensor
    buffer: Tensor | None = None


@dataclass(frozen=True)
class Sampled:
    """A chunk in network units.

    Attributes:
        chunk: `(B, A, H)`; None when no evaluation was possible in the time given.
        nfe: network evaluations, the batch counted once.
        complete: False when the deadline cut the sampler short and `chunk` is the last mean.
        restarted: `(B,)`, True where the chunk does not continue the previous one.
        buffer: state of the streaming sampler for the next call.
    """

    chunk: Tensor | None
    nfe: int
    complete: bool
    restarted: Tensor
    buffer: Tensor | None = None


@dataclass
class Sampler:
    """One sampler with its step count.

    Args:
        net: the action network.
        low, high: `(A,)`, range of its action values; no mean leaves it.
        calibration: of the residual test.
        name: one of `SAMPLERS`.
        steps: evaluations per chunk at most, also of one that starts from noise; default see `EVALUATIONS`.
        ratio: sigma/alpha of the warm start's test.
        stride: actions that leave the streaming buffer together; None: the network was not trained for it.
        anchors: typical chunks `(K, A, H)` relative to the origin of `draw`; None: there are none.
        cache: use an `ExpertCache` of the sampler's grid.

    Raises:
        InputError: no such sampler, or the policy lacks what it needs.
    """

    net: ActionNetwork
    low: Tensor
    high: Tensor
    calibration: Calibration
    name: str = "warm"
    steps: int | None = None
    ratio: float = WARM_RATIO
    stride: int | None = None
    anchors: Tensor | None = None
    cache: bool = False
    pace: Pace = field(default_factory=Pace)

    def __post_init__(self) -> None:
        check_sampler(self.name)
        if self.name == "stream" and self.stride is None:
            raise InputError("the sampler stream needs a policy trained with stream.share > 0; use warm")
        if self.name == "anchor" and self.anchors is None:
            raise InputError("the sampler anchor needs a policy trained with anchors > 0; use warm")
        if self.cache and self.name not in CACHED:
            raise InputError(
                f"the sampler {self.name} evaluates other noise levels from call to call, and cache needs fixed ones; use "
                f"one of {', '.join(CACHED)}, or set cache to false"
            )
        self.evaluations = self.steps or EVALUATIONS[self.name]
        self.process: Process = self.net.process
        self.start = float(time_of_ratio(self.process, torch.tensor(self.net.sigma_range[1])))
        self.solver, steps = self._solver()
        continues = self.name in ("rti", "warm", "stream")
        self.fresh = self.steps or (EVALUATIONS["ddim"] if continues else steps)
        self.cold = self._grid(self.fresh if continues else steps, self.start)
        self.inner = self._denoiser()
        self.test_time = time_of_ratio(self.process, torch.full((1, 1, 1), self.ratio))
        fall = torch.linspace(1, 0, self.evaluations + 1, dtype=torch.float64)
        self.test_grid = fall.reshape(-1, 1, 1, 1) * self.test_time
        self.anchor_time = time_of_ratio(self.process, torch.full((1, 1, 1), ANCHOR_RATIO))
        self.ladder = torch.logspace(math.log10(self.ratio), math.log10(self.net.sigma_range[1]), 200).double()
        self.ladder_times = time_of_ratio(self.process, self.ladder)
        self.low, self.high = self.low[:, None], self.high[:, None]
        self.limit = self.calibration.limit(self.ratio)

    @property
    def warm(self) -> bool:
        """True for samplers that continue the previous chunk cheaply, and so replan at every step."""
        return self.name in ("rti", "warm")

    def _denoiser(self) -> Denoiser:
        if self.cache:
            return ExpertCache(self.net, self.cold).denoiser()
        known = isinstance(getattr(self.net, "network", None), ResidualMLP) and self.net.head == "edm"
        return SteadyMLP(self.net) if known else self.net.denoiser()

    def _solver(self) -> tuple[Solver, int]:
        makers: dict[str, Callable[[], Solver]] = {"dpmpp-2m": DPMpp2M, "heun": Heun}
        stochastic = self.name in ("ddpm", "rti")
        solver = makers.get(self.name, lambda: DDIM(1.0 if stochastic else 0.0))()
        return solver, solver.steps_for(self.evaluations)

    def _grid(self, steps: int, start: float) -> Tensor:
        """Equal steps in t where the schedule is nearly straight in angle or t, else those of Karras et al."""
        if self.process.name in ("vp-cosine", "flow"):
            return time_grid(self.process, steps, "uniform", start=start)
        return time_grid(self.process, steps, "karras", start=start, log_snr_range=(-6.0, 4.0))

    @torch.no_grad()
    def draw(
        self,
        condition: Tensor,
        noise: Noise,
        previous: Previous | None = None,
        deadline: float | None = None,
        origin: Tensor | None = None,
        constraint: Constraint | None = None,
    ) -> Sampled:
        """A chunk for each observation.

        Args:
            condition: `(B, K)`.
            previous: None starts cold.
            deadline: `time.perf_counter()` value at which the sampler must have stopped.
            origin: `(B, A)`, where the anchors are attached; default 0.
            constraint: what the chunk shall agree with.
        """
        if constraint is not None and self.name == "warm" and len(condition) == len(noise.generators) > 1:
            return self._each(condition, noise, previous, deadline, constraint)
        inner = self.inner if constraint is None else constraint.guide(self.inner, self.net.sigma_data, noise)
        watched = Watched(inner, self.low, self.high, deadline, self.pace)
        cold = torch.ones(len(condition), dtype=torch.bool)
        try:
            match self.name:
                case "rti" if previous is not None:
                    return self._done(watched, self._rti(watched, previous.chunk, condition, noise), ~cold)
                case "warm" if previous is not None:
                    return self._done(watched, *self._tested(watched, previous.chunk, condition, noise))
                case "stream":
                    return self._streamed(watched, previous, condition, noise)
                case "anchor":
                    return self._done(watched, self._anchored(watched, origin, condition, noise), cold)
            return self._done(watched, self._cold(watched, condition, noise), cold)
        except OutOfTime:
            restarted = cold if watched.restarted is None else watched.restarted
            return Sampled(watched.mean, watched.evaluations, False, restarted)

    def _each(
        self, condition: Tensor, noise: Noise, previous: Previous | None, deadline: float | None, known: Constraint
    ) -> Sampled:
        """One item after another: items that start again part from the others, and their constraints with them."""
        parts = []
        for i, source in enumerate(noise.generators):
            guess = None if previous is None else Previous(previous.chunk[i : i + 1])
            one = slice(i, i + 1)
            parts.append(self.draw(condition[one], Noise([source]), guess, deadline, None, known.of(one)))
        chunks = [part.chunk for part in parts if part.chunk is not None]
        whole = torch.cat(chunks) if len(chunks) == len(parts) else None
        restarted = torch.cat([part.restarted for part in parts])
        return Sampled(whole, sum(part.nfe for part in parts), all(part.complete for part in parts), restarted)

    def from_noise(self, condition: Tensor, eps: Tensor) -> Tensor:
        """The chunk that a cold start from this noise `(B, A, H)` gives."""
        watched = Watched(self.inner, self.low, self.high)
        return self._carry(watched, self.cold, self._noisy(None, eps, self.cold[0]), condition, Noise.of(0))

    def _done(self, watched: Watched, chunk: Tensor, restarted: Tensor, buffer: Tensor | None = None) -> Sampled:
        return Sampled(chunk, watched.evaluations, True, restarted, buffer)

    def _noisy(self, x0: Tensor | None, eps: Tensor, t: Tensor) -> Tensor:
        return self.process.marginal(torch.zeros_like(eps) if x0 is None else x0, t, eps)

    def _carry(self, watched: Watched, grid: Tensor, x: Tensor, condition: Tensor, noise: Noise) -> Tensor:
        return sample(watched, self.solver, grid, x, y=condition, noise=noise)

    def _blank(self, condition: Tensor) -> Tensor:
        return torch.zeros(len(condition), len(self.low), self.net.horizon)

    def _cold(self, watched: Watched, condition: Tensor, noise: Noise) -> Tensor:
        x = self._noisy(None, noise.normal(self._blank(condition)), self.cold[0])
        solver = DDIM() if self.name == "rti" else self.solver
        return sample(watched, solver, self.cold, x, y=condition, noise=noise)

    def _rti(self, watched: Watched, guess: Tensor, condition: Tensor, noise: Noise) -> Tensor:
        watched.restarted = torch.zeros(len(guess), dtype=torch.bool)
        grid = torch.linspace(min(1.0, self.evaluations / RTI_STEPS), 0, self.evaluations + 1, dtype=torch.float64)
        return self._carry(watched, grid, guess, condition, noise)

    def _tested(self, watched: Watched, guess: Tensor, condition: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """The residual test, and sampling from the level it finds."""
        times = self.test_time
        x = self._noisy(guess, noise.normal(guess), times)
        mean = watched(x, times, condition)
        distance = rms(mean - guess)
        watched.restarted = restarted = distance > self.limit
        again = noise.normal(guess)  # drawn whether needed or not: an item's numbers do not depend on the others
        chunk = guess.clone()
        for rows in (torch.nonzero(~restarted)[:, 0], torch.nonzero(restarted)[:, 0]):
            if not len(rows):
                continue
            watched.rows = rows
            if bool(restarted[rows[0]]):
                times = self._restart_times(distance[rows])
                x[rows] = self._noisy(guess[rows], again[rows], times)
                grid = (
                    torch.linspace(1, 0, max(1, self.fresh - 1) + 1, dtype=torch.float64).reshape(-1, 1, 1, 1) * times
                )
            else:
                watched.prepare(mean[rows])
                grid = self.test_grid
            chunk[rows] = self._carry(watched, grid, x[rows], condition[rows], noise)
        return chunk, restarted

    def _restart_times(self, distance: Tensor) -> Tensor:
        """Times `(B, 1, 1)` of the noise levels for which distances `(B,)` are usual; at most the start of the cold samplers."""
        wanted = self.calibration.ratio_for(distance).clamp(min=self.ratio, max=self.net.sigma_range[1])
        return interpolate(wanted.double().log(), self.ladder.log(), self.ladder_times)[:, None, None]

    def _streamed(self, watched: Watched, previous: Previous | None, condition: Tensor, noise: Noise) -> Sampled:
        """One turn of the buffer: every group of actions moves down by one level, the first one to 0 (its chunk is clean)."""
        stride, horizon = self.stride or self.net.horizon, self.net.horizon
        levels = rising_times(horizon, stride, torch.linspace(1, 0, self.evaluations + 1))[:, None, None]
        buffer = previous.buffer if previous is not None else None
        started = torch.full((len(condition),), buffer is None)
        if buffer is None:  # the state is made as if the cold chunk had been denoised in the buffer
            clean = self._cold(watched, condition, noise)
            state = self._noisy(clean, noise.normal(clean), levels[-1])
        else:
            state = self._carry(watched, levels, buffer, condition, noise)
            clean = state if watched.mean is None else torch.cat([state[..., :stride], watched.mean[..., stride:]], -1)
        tail = self._noisy(None, noise.normal(state[..., :stride]), levels[0, ..., -1:])
        return self._done(watched, clean, started, torch.cat([state[..., stride:], tail], dim=-1))

    def _anchored(self, watched: Watched, origin: Tensor | None, condition: Tensor, noise: Noise) -> Tensor:
        """All anchors in one evaluation; one is drawn by how well it fits, `exp(-(N / 2) (d / s)^2)` of N numbers."""
        if self.anchors is None:
            raise ValueError("a sampler without anchors cannot draw one")
        batch, count = len(condition), len(self.anchors)
        shift = torch.zeros(batch, len(self.low)) if origin is None else origin
        guesses = shift[:, None, :, None] + self.anchors
        times = self.anchor_time
        eps = noise.normal(torch.zeros(guesses.shape))
        x = self._noisy(guesses.flatten(0, 1), eps.flatten(0, 1), times)
        mean = watched(x, times, condition.repeat_interleave(count, 0)).unflatten(0, (batch, count))
        distance = (mean - guesses).square().mean((2, 3)).sqrt()
        scale = self.calibration.limit(ANCHOR_RATIO)
        score = -0.5 * (distance / scale) ** 2 * mean[0, 0].numel()
        gumbel = -torch.log(-torch.log(torch.special.ndtr(noise.normal(score)).clamp(1e-7, 1 - 1e-7)))
        chosen = (score + gumbel).argmax(1)
        rows = torch.arange(batch)
        watched.mean = mean[rows, chosen]
        watched.prepare(watched.mean)
        fall = torch.linspace(1, 0, self.evaluations + 1, dtype=torch.float64) * float(times)
        return self._carry(watched, fall, x.unflatten(0, (batch, count))[rows, chosen], condition, noise)
