"""What every solver is made of: the knots of a time grid, the denoiser as seen on z, and the first-order step.

Solvers work on `z = x_t - beta(t) y`, so a process anchored at `y` is solved like any other. All of them share one step
from t to s, DDIM in data-prediction form,

    z_s = alpha_s D + sigma_s eps,        D = E[x0 | x_t],   eps = (z_t - alpha_t D) / sigma_t,

which is finite also where alpha_t = 0, and gives D at the clean state (alpha, beta, sigma) = (1, 0, 0). A solver of
higher order adds its correction to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from suite.denoiser import Denoiser
from suite.errors import InputError
from suite.noise import Noise
from suite.process import Process


@dataclass(frozen=True)
class Knot:
    """The process at one time of a grid, float64.

    Attributes:
        time: as a denoiser wants it, broadcastable against the state.
        now: the same time, and alpha, beta, sigma at it: scalars on the CPU where one time serves all (they multiply
            tensors of any device and type without promoting them), else shaped as `time`.
        clean: every element is at the clean state.
    """

    time: Tensor
    now: Tensor
    alpha: Tensor
    beta: Tensor
    sigma: Tensor
    clean: bool

    @property
    def rho(self) -> Tensor:
        """`sigma / alpha`."""
        return self.sigma / self.alpha

    @property
    def log_snr(self) -> Tensor:
        """`lambda = log(alpha / sigma)`."""
        return torch.log(self.alpha / self.sigma)


History = list[tuple[Knot, Tensor]]  # earlier knots and what the denoiser said there, newest first


def knots(process: Process, grid: Tensor, x: Tensor) -> list[Knot]:
    """The process at the times of `grid`, for states like `x`; see `suite.solver.sample`.

    Raises:
        InputError: times out of [0, 1], increasing, or (one time for all) repeated.
    """
    times = grid.detach().to("cpu", torch.float64)
    if times.ndim == 0 or len(times) < 2:
        raise InputError(f"a time grid needs at least two times, not the shape {tuple(grid.shape)}")
    if not bool(((times >= 0) & (times <= 1)).all()) or bool((times.diff(dim=0) > 0).any()):
        raise InputError(
            "the times of a grid lie in [0, 1] and decrease; to carry a state back to noise use Process.renoise"
        )
    if times.ndim == 1 and bool((times.diff() == 0).any()):
        raise InputError("the times of a grid must differ from one to the next")
    clean = times == 0
    alpha = torch.where(clean, 1.0, process.alpha(times))
    beta = torch.where(clean, 0.0, process.beta(times))
    sigma = torch.where(clean, 0.0, process.sigma(times))
    shape = (len(times), *(1,) * (x.ndim - times.ndim + 1), *times.shape[1:])
    if len(shape) != x.ndim + 1 or any(n not in (1, m) for n, m in zip(shape[1:], x.shape, strict=True)):
        raise InputError(f"times of shape {tuple(times.shape[1:])} do not broadcast against states {tuple(x.shape)}")
    shaped = times.reshape(shape).to(x.device)
    if times.ndim > 1:
        times, alpha, beta, sigma = (c.reshape(shape).to(x.device) for c in (times, alpha, beta, sigma))
    flags = [bool(c.all()) for c in clean]
    return [Knot(*values) for values in zip(shaped, times, alpha, beta, sigma, flags, strict=True)]


@dataclass
class Model:
    """The denoiser as a solver sees it, on z, with the source of fresh noise."""

    denoiser: Denoiser
    y: Tensor | None = None
    noise: Noise | None = None

    @property
    def process(self) -> Process:
        return self.denoiser.process

    def __call__(self, z: Tensor, t: Knot) -> tuple[Tensor, Tensor]:
        """`(D, eps)` at `z`: one evaluation. At the anchored end of a bridge (alpha = sigma = 0) eps is drawn."""
        mean, eps = self.denoiser.predict(self.lift(z, t), t.time, self.y)
        pinned = (t.sigma == 0) & (t.alpha == 0)
        return mean, torch.where(pinned, self.draw(z), eps) if bool(pinned.any()) else eps

    def draw(self, z: Tensor) -> Tensor:
        """Standard normal noise like `z`."""
        if self.noise is None:
            raise InputError("this run draws random numbers, and no source was given; pass noise=Noise.of(seed)")
        return self.noise.normal(z)

    def lift(self, z: Tensor, t: Knot) -> Tensor:
        """`x = z + beta y`."""
        return z if not self.process.anchored or self.y is None else (z + t.beta * self.y).to(z.dtype)


class Solver:
    """One step from time t to the cleaner time s.

    Attributes:
        name: key of `suite.solver.SOLVERS`.
        cost: denoiser evaluations per step (the step to the clean state takes one).
        elementwise: serves times that differ within the batch.
    """

    name: ClassVar[str]
    cost: int = 1
    elementwise: bool = False

    def step(
        self, model: Model, z: Tensor, mean: Tensor, eps: Tensor, t: Knot, s: Knot, history: History
    ) -> tuple[Tensor, History]:
        """`z_s` and the new history, from `z_t` and the denoiser's answer `(mean, eps)` there."""
        raise TypeError(f"{type(self).__name__} defines no step")

    def steps_for(self, evaluations: int) -> int:
        """The most steps to the clean state that take no more than so many denoiser evaluations (at least 1)."""
        return max(1, (evaluations + self.cost - 1) // self.cost)


def decay(t: Knot, s: Knot) -> Tensor:
    """`exp(-h) = alpha_t sigma_s / (alpha_s sigma_t)`, h the gain in log-SNR; 0 from pure noise, and to clean."""
    below = s.alpha * t.sigma
    return torch.where(below > 0, t.alpha * s.sigma / torch.where(below > 0, below, 1.0), 0.0)


def first_order(mean: Tensor, eps: Tensor, s: Knot) -> Tensor:
    """`alpha_s D + sigma_s eps`: DDIM without noise, Euler in sigma/alpha, and DPM-Solver++ of order one."""
    return s.alpha * mean + s.sigma * eps


def noisy_first_order(model: Model, mean: Tensor, eps: Tensor, s: Knot, v: Tensor) -> Tensor:
    """`alpha_s D + sqrt(sigma_s^2 - v^2) eps + v xi`: the same marginal, with fresh noise of std `v`."""
    kept = torch.sqrt((s.sigma**2 - v**2).clamp_min(0))
    return s.alpha * mean + kept * eps + v * model.draw(mean)


def ancestral_noise(t: Knot, s: Knot) -> Tensor:
    """`v = sigma_s sqrt(1 - exp(-2h))`: the std of the Markov posterior (DDPM; IR-SDE's own kernel; MRS SDE-1)."""
    return s.sigma * torch.sqrt((1 - decay(t, s) ** 2).clamp_min(0))
