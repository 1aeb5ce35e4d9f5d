"""Restoration with one conditional network: as a predictor, as any anchored diffusion, and one after the other.

A network that answers `E[x0 | z, y]` for `z = alpha x0 + sigma eps` and a condition y serves every process of the core, since
z and the ratio sigma/alpha are all it sees: where the process is anchored is the solver's business. So one set of weights is

    predict        D(y): the network at the anchored end of a bridge, where z says nothing
    restore        any process anchored at y (bridge: Jukic et al. 2024; OUVE: Richter et al. 2023; IR-SDE: Luo et al. 2023)
    two-stage      the same process anchored at D(y) (StoRM: Lemercier et al. 2023), the condition still y
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from suite.denoiser import Denoiser
from suite.errors import InputError
from suite.noise import Noise
from suite.prior import Prior, PriorDenoiser
from suite.process import Process
from suite.solver import Solver, sample


class Conditioned(Denoiser):
    """`E[x0 | x_t, condition]` for a process anchored anywhere; the solver's `y` is the anchor, `condition` stays.

    Args:
        prior: its network takes a condition.
        proc: any process.
        condition: `(B, condition_channels, *spatial)` in network units.
        options: of `PriorDenoiser`.
    """

    def __init__(self, prior: Prior, proc: Process, condition: Tensor, **options: Any) -> None:
        super().__init__(proc)
        self.condition = condition
        self.inner = PriorDenoiser(prior, replace(proc, beta=torch.zeros_like, anchored=False), **options)

    @property
    def data_std(self) -> float:
        return self.inner.prior.card.sigma_data

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.inner(self.process.shift(x, t, y), t, self.condition)


@dataclass(frozen=True)
class Plan:
    """How a degraded signal is restored.

    Attributes:
        process: the diffusion; None: predict only.
        solver: of the diffusion.
        grid: its decreasing times, see `suite.grid.time_grid`.
        two_stage: anchor the diffusion at the prediction instead of the degraded signal.
    """

    process: Process | None = None
    solver: Solver | None = None
    grid: Tensor | None = None
    two_stage: bool = False

    @property
    def predicts(self) -> bool:
        return self.process is None or self.two_stage

    @property
    def evaluations(self) -> int:
        """Network evaluations it takes; a solver's step to the clean state takes one."""
        if self.solver is None or self.grid is None:
            return 1
        return int(self.two_stage) + self.solver.cost * (len(self.grid) - 2) + 1


def predict(
    prior: Prior,
    y: Tensor,
    *,
    precision: str = "auto",
    clock: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Tensor:
    """`D(y)` from a network trained at the anchored end of its bridge (`noise.pinned` in training).

    Raises:
        InputError: the prior's process is no bridge, so that its network never saw this.
    """
    end = torch.ones((1,) * y.ndim, dtype=torch.float64, device=y.device)
    if float(prior.process.alpha(end)) > 0 or float(prior.process.sigma(end)) > 0:
        raise InputError(
            f"the prior {prior.card.name} was trained on {prior.process.name}, which does not end at the degraded signal; "
            "prediction needs one trained on a bridge (sb-ve)"
        )
    return Conditioned(prior, prior.process, y, precision=precision, clock=clock)(y, end, y)


def restore(
    prior: Prior,
    plan: Plan,
    y: Tensor,
    noise: Noise,
    *,
    precision: str = "auto",
    clock: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Tensor:
    """The restored signal `(B, C, *spatial)` for the degraded `y`, in network units."""
    anchor = predict(prior, y, precision=precision, clock=clock) if plan.predicts else y
    if plan.process is None or plan.solver is None or plan.grid is None:
        return anchor
    denoiser = Conditioned(prior, plan.process, y, precision=precision, clock=clock)
    x = plan.process.start(noise.normal(anchor), anchor, float(plan.grid[0]))
    return sample(denoiser, plan.solver, plan.grid, x, y=anchor, noise=noise)
