"""Settings of dds chosen for one scan, by how well they predict acquired samples that were held back. Needs no truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from domains.mri.coils import calibration_box
from domains.mri.problem import Problem
from suite.errors import InputError
from suite.noise import generator

HELD_SHARE = 0.1
"""Of the samples outside the calibration region."""

TUNING_SLICES = 3
FACTORS: tuple[tuple[str, tuple[float, ...]], ...] = (("strength", (0.5, 1.0, 2.0, 4.0)), ("finest", (0.5, 1.0, 2.0)))
"""What is tried, one setting after the other, as factors on what `scan_settings` derives."""


def some_slices(problem: Problem, device: torch.device) -> Problem:
    """Up to `TUNING_SLICES` slices, evenly spaced, on a device."""
    count = min(problem.slices, TUNING_SLICES)
    return problem.part([int((k + 0.5) * problem.slices / count) for k in range(count)], device)


def held_back(problem: Problem, seed: int = 0) -> tuple[Problem, Tensor]:
    """The problem without a tenth of its samples outside the calibration region, and the mask `(S, 1, ny, nx)` of those.

    Where the sampling is by lines, whole lines are held back, two at least.

    Raises:
        InputError: data along a trajectory, or too few samples outside the calibration region.
    """
    if problem.fourier is not None:
        raise InputError(
            "--tune needs data on a grid; along a trajectory set options.strength and options.finest by hand"
        )
    rng = generator(seed, "held back")
    held = torch.zeros_like(problem.mask)
    for row, mask in enumerate(problem.mask[:, 0]):
        y, x = calibration_box(mask)
        calibration = torch.zeros_like(mask)
        calibration[y, x] = True
        units = mask & ~calibration
        if len(problem.axes) == 1:  # lines along the other axis
            along = 0 if problem.axes == (-1,) else 1
            units = mask.all(along, keepdim=True) & ~calibration.any(along, keepdim=True)
        places = units.nonzero()
        count = max(2, round(HELD_SHARE * len(places)))
        if len(places) < 2 * count:
            raise InputError(
                f"only {len(places)} lines or points lie outside the calibration region, too few for --tune, and for "
                "contrasts without options.coupling"
            )
        chosen = torch.zeros_like(units)
        chosen[tuple(places[torch.randperm(len(places), generator=rng)[:count].to(places.device)].T)] = True
        held[row, 0] = chosen.expand_as(mask)
    return replace(problem, data=torch.where(held, 0, problem.data), mask=problem.mask & ~held), held


def held_misfits(problem: Problem, held: Tensor, image: Tensor) -> Tensor:
    """`|A x - y|^2 / (2 M)` over the samples held back of the whole `problem`, `(S,)`; 1 is what noise alone would leave."""
    residual = torch.where(held, replace(problem, mask=held).operator()(image) - problem.data, 0)
    return residual.abs().square().flatten(1).sum(1) / (2 * held.flatten(1).sum(1) * problem.data.shape[1])


def held_misfit(problem: Problem, held: Tensor, image: Tensor) -> float:
    """The same over all slices."""
    count = held.flatten(1).sum(1)
    return float((held_misfits(problem, held, image) * count).sum() / count.sum())


def search(misfit: Callable[[dict[str, float]], float]) -> list[dict[str, float]]:
    """The factors tried, one setting after the other from the best so far, each with its `misfit`."""
    tried: list[dict[str, float]] = []
    best = {name: 1.0 for name, _ in FACTORS}
    for name, factors in FACTORS:
        for factor in factors:
            trial = best | {name: factor}
            if all({key: row[key] for key in trial} != trial for row in tried):
                tried.append(trial | {"misfit": misfit(trial)})
        least = min(tried, key=lambda row: row["misfit"])
        best = {key: least[key] for key in best}
    return tried
