"""Solvers of the reverse process: the one loop, and a small class each (multistep ones in suite/multistep.py)."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from suite.denoiser import Denoiser
from suite.errors import InputError
from suite.multistep import DEIS, DPMpp2M, DPMpp3M, DPMppSDE2M
from suite.noise import Noise
from suite.stepping import (
    History,
    Knot,
    Model,
    Solver,
    ancestral_noise,
    first_order,
    knots,
    noisy_first_order,
)

__all__ = [
    "DDIM",
    "DEIS",
    "SOLVERS",
    "Callback",
    "DPMpp2M",
    "DPMpp3M",
    "DPMppSDE2M",
    "Euler",
    "Heun",
    "History",
    "Knot",
    "Model",
    "PredictorCorrector",
    "Solver",
    "ancestral_noise",
    "resfusion_noise",
    "residual_noise",
    "sample",
]

Callback = Callable[[int, Tensor, Tensor], None]


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    solver: Solver,
    grid: Tensor,
    x: Tensor,
    *,
    y: Tensor | None = None,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Carry `x` from the first time of the grid to the last.

    No gradient flows through the solver; a denoiser that needs one inside enables it for itself.

    Args:
        denoiser: a prior's denoiser, or a guidance method around one.
        solver: one of `SOLVERS`.
        grid: decreasing times `(steps + 1,)` in [0, 1] (`suite.grid.time_grid`), 0 being the clean state; or
            `(steps + 1, ...)` with trailing dimensions that broadcast against `x`, for times per item or per element,
            served by solvers with `elementwise`. Elements whose time does not change stay as they are.
        x: state at `grid[0]`, `(B, C, *spatial)`; see `Process.start`.
        y: degraded signal (anchored processes), or whatever the network is conditioned on.
        noise: needed by stochastic solvers, and by every solver at the anchored end of a bridge.
        callback: called after each step with its number (from 1), the new state and the mean D it used.

    Returns:
        The state at `grid[-1]`.

    Raises:
        InputError: a grid that is not one, or that this solver cannot serve; no `y` or no `noise` where one is needed.
    """
    points = knots(denoiser.process, grid, x)
    if grid.ndim > 1 and not solver.elementwise:
        raise InputError(f"the solver {solver.name} needs one time for all; with times per element use ddim or euler")
    model = Model(denoiser, y, noise)
    z = denoiser.process.shift(x, points[0].time, y)
    history: History = []
    for number, (t, s) in enumerate(pairwise(points), 1):
        mean, eps = model(z, t)
        new, history = solver.step(model, z, mean, eps, t, s, history)
        new = new.to(z.dtype)
        z = torch.where(t.time == s.time, z, new) if grid.ndim > 1 else new
        if callback is not None:
            callback(number, model.lift(z, s), mean)
    return model.lift(z, points[-1])


Injected = Callable[[Knot, Knot], Tensor]


def residual_noise(t: Knot, s: Knot) -> Tensor:
    """`v = sigma_s sqrt(1 - sigma_s^2 / sigma_t^2)`: ResShift's kernel, and RDDM's (whose eta is ours squared)."""
    return s.sigma * torch.sqrt((1 - (s.sigma / t.sigma) ** 2).clamp_min(0))


def resfusion_noise(t: Knot, s: Knot) -> Tensor:
    """`v^2 = (sigma_s / sigma_t)^2 (1 - abar_t / abar_s)`, abar = 1 - sigma^2: Resfusion keeps the std of DDPM."""
    return (s.sigma / t.sigma) * torch.sqrt((1 - (1 - t.sigma**2) / (1 - s.sigma**2)).clamp_min(0))


Form = Callable[[Tensor, Tensor, Tensor, Knot, Knot, Tensor], Tensor]


def direct(z: Tensor, mean: Tensor, eps: Tensor, t: Knot, s: Knot, kept: Tensor) -> Tensor:
    """`alpha_s D + kept eps`."""
    return s.alpha * mean + kept * eps


def incremental(z: Tensor, mean: Tensor, eps: Tensor, t: Knot, s: Knot, kept: Tensor) -> Tensor:
    """`z - (alpha_t - alpha_s) D - (sigma_t - kept) eps`, RDDM's way to write it.

    The same as `direct` where D and eps agree with z, which those of a network of two heads need not.
    """
    return z - (t.alpha - s.alpha) * mean - (t.sigma - kept) * eps


class DDIM(Solver):
    """`z_s = alpha_s D + sqrt(sigma_s^2 - v^2) eps + v xi` (Song et al. 2021, DDIM, eq. 12 and 16, on z).

    Args:
        eta: `v = eta * injected(t, s)`; 0 is deterministic, 1 the full noise of the kernel.
        injected: std of a kernel's noise, at most sigma_s. The default is that of the Markov posterior;
            `residual_noise` and `resfusion_noise` make the authors' samplers of RDDM, ResShift and Resfusion, `lambda
            t, s: s.sigma` that of DDS and DDNM.
        form: `direct`, or `incremental` for networks that say D and eps each by a head of its own.
    """

    name = "ddim"
    elementwise = True

    def __init__(self, eta: float = 0.0, injected: Injected = ancestral_noise, form: Form = direct) -> None:
        if not 0 <= eta <= 1:
            raise InputError(f"DDIM's eta lies between 0 (deterministic) and 1 (ancestral); it is {eta}")
        self.eta, self.injected, self.form = eta, injected, form

    def step(
        self, model: Model, z: Tensor, mean: Tensor, eps: Tensor, t: Knot, s: Knot, history: History
    ) -> tuple[Tensor, History]:
        if self.eta == 0 or s.clean:
            return self.form(z, mean, eps, t, s, s.sigma), history
        v = torch.where(t.sigma > 0, self.eta * self.injected(t, s), 0.0)  # at the end of a bridge eps is fresh already
        if bool((v > s.sigma * (1 + 1e-9)).any()):
            raise InputError(
                "the noise injected by a DDIM step exceeds sigma at its end; its std must be at most sigma_s"
            )
        kept = torch.sqrt((s.sigma**2 - v**2).clamp_min(0))
        return self.form(z, mean, eps, t, s, kept) + v * model.draw(mean), history


class Euler(Solver):
    """Euler's method in t on the probability-flow ODE `dz/dt = alpha' D + sigma' eps` (Song et al. 2021, eq. 13, on z).

    Meant for flow matching and other processes whose schedules are nearly straight in t, on uniform grids; with
    geometric schedules (ve, edm) it needs hundreds of steps where DDIM, which is Euler in sigma/alpha, does not. The
    step to the clean state gives D; the first step of a bridge is DDIM's (sigma' is infinite there).
    """

    name = "euler"
    elementwise = True

    def step(
        self, model: Model, z: Tensor, mean: Tensor, eps: Tensor, t: Knot, s: Knot, history: History
    ) -> tuple[Tensor, History]:
        if s.clean:
            return mean, history
        alpha, _, sigma = model.process.derivatives(t.now)
        euler = z + (s.now - t.now) * (alpha * mean + sigma * eps)
        return torch.where((t.sigma > 0) & (s.sigma > 0), euler, first_order(mean, eps, s)), history


class Heun(Solver):
    """Heun's second-order method in rho = sigma/alpha on z/alpha (Karras et al. 2022, algorithm 1).

    `d(z/alpha)/d rho = eps`, so the step is DDIM's with eps averaged over its two ends. The step to the clean state,
    and one from alpha = 0, where rho is infinite, stay first order and take one evaluation.
    """

    name = "heun"
    cost = 2

    def step(
        self, model: Model, z: Tensor, mean: Tensor, eps: Tensor, t: Knot, s: Knot, history: History
    ) -> tuple[Tensor, History]:
        first = first_order(mean, eps, s)
        if s.clean or bool(t.alpha == 0):
            return first, history
        _, eps_s = model(first.to(z.dtype), s)
        return first + s.alpha * (s.rho - t.rho) * (eps_s - eps) / 2, history


class PredictorCorrector(Solver):
    """A predictor step, then Langevin corrections at the new time (Song et al. 2021, algorithm 1).

    Corrector: Langevin dynamics over the authors' step `e = 2 (snr sigma)^2` (their norms at expectation, so that
    nothing couples the elements), solved exactly for a D held fixed: `z <- alpha D + sigma (k eps + sqrt(1 - k^2) xi)`,
    `k = exp(-e / sigma^2) = exp(-2 snr^2)`. Unlike an Euler step it leaves pure noise as it is and is stable for any
    snr. Repeated for ever, it shortens the std of a Gaussian by at most snr^2 / 2 of itself.

    Args:
        snr: sets the step of the corrector.
        corrections: corrector steps after each predictor step, one evaluation each.
        predictor: a solver of one evaluation per step; default the probability flow by `DPMpp2M`, `DDIM(1.0)` is
            ancestral.
    """

    name = "pc"

    def __init__(self, snr: float = 0.16, corrections: int = 1, predictor: Solver | None = None) -> None:
        if snr <= 0 or corrections < 0:
            raise InputError(f"a corrector needs snr > 0 and corrections >= 0, not {snr} and {corrections}")
        self.predictor = DPMpp2M() if predictor is None else predictor
        if self.predictor.cost != 1:
            raise InputError(f"a predictor takes one evaluation per step, and {self.predictor.name} does not; use ddim")
        self.keep, self.corrections = math.exp(-2 * snr**2), corrections
        self.cost, self.elementwise = 1 + corrections, self.predictor.elementwise

    def step(
        self, model: Model, z: Tensor, mean: Tensor, eps: Tensor, t: Knot, s: Knot, history: History
    ) -> tuple[Tensor, History]:
        new, history = self.predictor.step(model, z, mean, eps, t, s, history)
        for _ in range(0 if s.clean else self.corrections):
            mean, eps = model(new.to(z.dtype), s)
            new = noisy_first_order(model, mean, eps, s, s.sigma * math.sqrt(1 - self.keep**2))
        return new, history


SOLVERS: dict[str, Callable[[], Solver]] = {
    "ddim": DDIM,
    "euler": Euler,
    "heun": Heun,
    "dpmpp-2m": DPMpp2M,
    "dpmpp-3m": DPMpp3M,
    "dpmpp-sde": DPMppSDE2M,
    "deis": DEIS,
    "pc": PredictorCorrector,
}
