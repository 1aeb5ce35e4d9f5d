"""Restoration with one conditional network: as a predictor, as any anchored diffusion, and one after the other.

A network that answers `E[x0 | z, y]` for `z = alpha x0 + sigma eps` and a condition y serves every process of the core, since
z and the ratio sigma/alpha are all it sees: where the process is anchored is the solver's business. So one set of weights is

    predict        D(y): the network at the anchored end of a bridge, where z says nothing
    restore        any process anchored at y (bridge: Jukic et al. 2024; OUVE: Richter et al. 2023; IR-SDE: Luo et al. 2023)
    two-stage      the same process anchored at D(y) (StoRM: Lemercier et al. 2023), the condition still y

The predictor of two stages may also be any other function of y, and the network may see its answer too (`Predicted`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from suite.denoiser import Denoiser
from suite.errors import InputError
from suite.families import family
from suite.grid import time_grid
from suite.noise import Noise
from suite.prior import Prior, PriorDenoiser
from suite.process import Process, process
from suite.solver import Solver, sample

if TYPE_CHECKING:
    from suite.training import Source


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

    def predict(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.inner.predict(self.process.shift(x, t, y), t, self.condition)


@dataclass(frozen=True)
class Plan:
    """How a degraded signal is restored.

    Attributes:
        process: the diffusion; None: predict only.
        solver: of the diffusion.
        grid: its decreasing times, see `suite.grid.time_grid`.
        two_stage: anchor the diffusion at the prediction instead of the degraded signal.
        predictor: what predicts, any function of y that has x0's shape; None: the prior itself, by `predict`.
        start: noise `(C, *patch)` to start from, tiled over the signal, in place of fresh noise; see `best_start`.
    """

    process: Process | None = None
    solver: Solver | None = None
    grid: Tensor | None = None
    two_stage: bool = False
    predictor: Callable[[Tensor], Tensor] | None = None
    start: Tensor | None = None

    @property
    def predicts(self) -> bool:
        return self.process is None or self.two_stage

    @property
    def evaluations(self) -> int:
        """Evaluations of the prior it takes; a solver's step to the clean state takes one."""
        own = int(self.predicts and self.predictor is None)
        if self.solver is None or self.grid is None:
            return own
        return own + self.solver.cost * (len(self.grid) - 2) + 1


def plan(
    name: str, evaluations: int | None = None, *, proc: Process | None = None, two_stage: bool = False, **settings: Any
) -> Plan:
    """How the authors of a family (suite/families.py) sample, in at most so many evaluations of the network.

    Args:
        name: key of `FAMILIES`.
        evaluations: network evaluations (default: what the authors advertise), that of two stages' predictor included.
        proc: the process, where a prior was trained with parameters of its own.
        two_stage: anchor it at the prediction.
        settings: further fields of `Plan`.

    Raises:
        InputError: no such family, or fewer evaluations than it can do with.
    """
    published = family(name)
    proc = proc or process(published.process, **published.parameters)
    solver = published.solver()
    left = (evaluations or published.evaluations) - (two_stage and settings.get("predictor") is None)
    if left < 1:
        raise InputError("two stages take at least 2 evaluations, one to predict and one to regenerate")
    grid = time_grid(proc, solver.steps_for(left), published.grid, log_snr_range=published.log_snr_range)
    return Plan(proc, solver, grid, two_stage, **settings)


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
    """The restored signal `(B, C, *spatial)` for the degraded `y`, in network units.

    A prior with as many condition channels as y and the prediction together is shown both, see `Predicted`.
    """
    anchor = y
    if plan.predicts:
        anchor = plan.predictor(y) if plan.predictor else predict(prior, y, precision=precision, clock=clock)
    if plan.process is None or plan.solver is None or plan.grid is None:
        return anchor
    both = plan.predicts and prior.card.condition_channels == y.shape[1] + anchor.shape[1]
    condition = torch.cat([y, anchor], dim=1) if both else y
    denoiser = Conditioned(prior, plan.process, condition, precision=precision, clock=clock)
    if plan.start is not None:
        pinned = float(plan.process.sigma(plan.grid[0])) == 0  # a bridge starts with the noise of its first step
        noise = FixedStart(plan.start, noise, draws=1 + pinned)
    x = plan.process.start(noise.normal(anchor), anchor, float(plan.grid[0]))
    return sample(denoiser, plan.solver, plan.grid, x, y=anchor, noise=noise)


class FixedStart(Noise):
    """The same noise patch, tiled over every item, for the first draws; then another source's.

    Args:
        patch: `(C, *patch)`.
        then: the other source.
        draws: how many draws are the patch.
    """

    def __init__(self, patch: Tensor, then: Noise, draws: int = 1) -> None:
        super().__init__([])
        self.patch, self.then, self.draws = patch, then, draws

    def normal(self, like: Tensor) -> Tensor:
        self.draws -= 1
        if self.draws < 0:
            return self.then.normal(like)
        repeats = [-(-n // p) for n, p in zip(like.shape[1:], self.patch.shape, strict=True)]
        whole = self.patch.repeat(repeats)[tuple(map(slice, like.shape[1:]))]
        return whole.to(like.device, like.dtype).expand_as(like)


def best_start(
    run: Callable[[Tensor], Tensor], x0: Tensor, patch: tuple[int, ...], candidates: int = 16, seed: int = 0
) -> Tensor:
    """The start noise with the least error on reference pairs (Ma et al. 2023: approximately optimal boundary condition).

    With a deterministic solver it makes restoration a function of the degraded signal, reproducible without a seed and of
    less error than a start at random.

    Args:
        run: restores the reference signals from a given `Plan.start`.
        x0: their clean partners `(B, C, *spatial)`.
        patch: shape of the noise `(C, *patch)`.
        candidates: how many are tried.
        seed: of the candidates.
    """
    noises = Noise.of(seed, ["start"]).normal(torch.empty(1, candidates, *patch))[0]
    errors = [float((run(noise) - x0).square().mean()) for noise in noises]
    return noises[min(range(candidates), key=errors.__getitem__)]


class Predicted:
    """Training pairs whose degraded partner carries a prediction along, `(y, f(y))` as channels: StoRM's second stage.

    Args:
        source: of the pairs.
        predictor: f.
    """

    def __init__(self, source: Source, predictor: Callable[[Tensor], Tensor]) -> None:
        self.source, self.predictor = source, predictor
        self.channels, self.condition_channels = source.channels, source.condition_channels + source.channels

    def _with(self, x0: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        if y is None:
            raise InputError("two stages are trained on pairs, and these data have no degraded signals")
        return x0, torch.cat([y, self.predictor(y)], dim=1)

    def batch(self, size: int, patch: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        return self._with(*self.source.batch(size, patch, rng))

    def validation(self, patch: int) -> tuple[Tensor, Tensor]:
        return self._with(*self.source.validation(patch))
