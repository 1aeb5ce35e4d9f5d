"""What practice uses, fitted: EMOS, dressing by its width, and the errors of the best member; all on standardised anomalies.

For rain-like variables these are normal scores, so that EMOS and the Gaussian field are censored at zero when mapped back.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from suite.noise import generator

if TYPE_CHECKING:
    from domains.weather.training_set import TrainingSet

MOST_VALUES = 600_000  # of the sample EMOS is fitted on, or
FEWEST_DRAWS = 300  # of seeds and target, on large grids
MOST_ERRORS = 128  # fields of a best member's errors that are kept
ERROR_VALUES = 400_000
ITERATIONS = 100


def gaussian_crps(mean: Tensor, deviation: Tensor, y: Tensor) -> Tensor:
    """CRPS of N(mean, deviation^2) (Gneiting et al. 2005, eq. 5)."""
    z = (y - mean) / deviation
    density = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return deviation * (z * torch.erf(z / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))


def mixture_crps(centres: Tensor, deviation: Tensor, y: Tensor) -> Tensor:
    """CRPS of the equal mixture of N(centre_k, deviation^2), centres `(K, ...)` (Grimit et al. 2006, eq. 5)."""

    def distance(difference: Tensor, scale: Tensor | float) -> Tensor:  # E |N(difference, scale^2)|
        z = difference / scale
        density = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
        return 2 * scale * density + difference * torch.erf(z / math.sqrt(2))

    pairs = distance(centres[:, None] - centres[None], math.sqrt(2) * deviation)
    return distance(y - centres, deviation).mean(0) - pairs.mean((0, 1)) / 2


# --- fitting ----------------------------------------------------------------------------------------------------------


def fit_baselines(data: TrainingSet) -> dict[str, Tensor]:
    """EMOS and dressing for every lead, kind of target and number of seeds, from the training dates."""
    out: dict[str, Tensor] = {}
    for step in range(data.steps):
        for kind in data.kinds:
            scales = []
            for seeds in range(data.most_seeds(kind) + 1):
                x, y, season = _pairs(data, step, kind, seeds)
                out[f"emos.{step}.{kind}.{seeds}"] = _fit_emos(x, y, season if data.seasonal else None, data.pooled)
                scales.append(_fit_dressing(x, y) if seeds else 1.0)
                if seeds:
                    out[f"errors.{step}.{kind}.{seeds}"] = _best_member_errors(x, y)
            out[f"dressing.{step}.{kind}"] = torch.tensor(scales)
    return out


def _pairs(data: TrainingSet, step: int, kind: str, seeds: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draws of K seeds and a target: `(N, K, C, H, W)`, `(N, C, H, W)`, `(N, 2)`."""
    rng = generator(0, f"baseline {step} {kind} {seeds}")
    dates = data.dates
    points = math.prod(data.shape)
    wanted = min(3 * dates, max(FEWEST_DRAWS, MOST_VALUES // points))
    rows = torch.arange(wanted) % dates if wanted >= dates else torch.randperm(dates, generator=rng)[:wanted]
    x, y = data.draw(step, kind, seeds, rows, rng)
    return x, y, data.season[rows]


def _fit_emos(x: Tensor, y: Tensor, season: Tensor | None, pooled: bool) -> Tensor:
    """`(P, C, H, W)`: a, b, log c, log d, and the annual cycle of a; N(a + b m + season, c^2 + d^2 S^2)."""
    count = x.shape[1]
    m = x.mean(1) if count else torch.zeros_like(y)
    square = x.var(1) if count > 1 else torch.zeros_like(y)
    slope = (m * y).mean(0) / m.square().mean(0).clamp_min(1e-6)
    left = (y - slope * m).square().mean(0).clamp_min(1e-4).sqrt()
    start = [torch.zeros_like(left), slope, left.log(), torch.full_like(left, math.log(0.3))]
    start += [torch.zeros_like(left)] * (0 if season is None else 2)
    values = torch.stack(start)
    values = values.mean(-1, keepdim=True) if pooled else values
    parameters = values.clone().requires_grad_()
    optimiser = torch.optim.Adam([parameters], lr=0.03)
    for iteration in range(ITERATIONS):
        for group in optimiser.param_groups:
            group["lr"] = 0.03 * (1 - iteration / ITERATIONS)
        mean, deviation = emos_moments(parameters, m, square, season)
        optimiser.zero_grad()
        gaussian_crps(mean, deviation, y).mean(0).sum().backward()
        optimiser.step()
    return parameters.detach().expand(len(parameters), *y.shape[1:]).contiguous()


def emos_moments(p: Tensor, m: Tensor, square: Tensor, season: Tensor | None) -> tuple[Tensor, Tensor]:
    mean = p[0] + p[1] * m
    if season is not None and len(p) > 4:
        shape = (-1, *(1,) * (m.ndim - 1))
        mean = mean + season[:, 0].reshape(shape) * p[4] + season[:, 1].reshape(shape) * p[5]
    return mean, ((2 * p[2]).exp() + (2 * p[3]).exp() * square).sqrt()


def _fit_dressing(x: Tensor, y: Tensor) -> float:
    """Width of the noise, in climatological standard deviations, one for all points: golden section on the CRPS."""
    stride = max(1, y.numel() * x.shape[1] ** 2 // 400_000)
    centres, target = x[::stride].movedim(1, 0), y[::stride]

    def score(log_width: float) -> float:
        return float(mixture_crps(centres, torch.tensor(math.exp(log_width)), target).mean())

    low, high, ratio = math.log(1e-3), math.log(3.0), (math.sqrt(5) - 1) / 2
    for _ in range(20):
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, b) if score(a) < score(b) else (a, high)
    return math.exp((low + high) / 2)


def _best_member_errors(x: Tensor, y: Tensor) -> Tensor:
    """Errors `(F, C, H, W)` of the seed that was nearest to the target, as fields (Roulston and Smith 2003)."""
    best = (x - y[:, None]).flatten(2).square().sum(2).argmin(1)
    errors = y - x[torch.arange(len(x)), best]
    count = max(8, min(MOST_ERRORS, ERROR_VALUES // errors[0].numel()))
    return errors[:: max(1, len(errors) // count)][:count].half().float()
