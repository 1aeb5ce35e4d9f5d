"""Do the seeds tell anything? Decided by predicting dates that were left out, block by block."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from domains.weather.hierarchy import LinearGaussian, second_moments
from domains.weather.training_set import TrainingSet
from suite.noise import generator

FOLDS = 8
FEWEST = 40  # dates; with fewer the moments are taken as they are
SIGNIFICANT = 2.0  # standard errors
WHOLE = 0.9  # a factor above it is no reason to scale


def trusted(
    linear: dict[tuple[int, str], LinearGaussian], data: TrainingSet
) -> tuple[dict[tuple[int, str], LinearGaussian], dict[str, list[bool]]]:
    """Scale the influence of the seeds to what it predicts of dates left out; told uninformative where that is nothing.

    Returns:
        The laws, and for each kind and lead whether the seeds tell anything. Sampling noise in the covariances looks like
        a signal on the dates they were estimated on, and would make members worse than climatology.
    """
    out = dict(linear)
    informative = {kind: [True] * data.steps for kind in data.kinds}
    for (step, kind), law in linear.items():
        seeds = min(2, data.most_seeds(kind))
        if seeds < 1 or data.dates < FEWEST:
            continue
        factor = _factor(law.basis, data, step, kind, seeds)
        informative[kind][step] = factor > 0
        if factor < WHOLE:
            out[step, kind] = replace(law, cross=factor * law.cross)
    return out, informative


def _factor(basis: Tensor, data: TrainingSet, step: int, kind: str, seeds: int) -> float:
    """Least-squares factor on the conditional mean over all dates, each predicted from the other blocks; 0 if not significant."""
    members, conditions = (x[step].flatten(2) @ basis for x in (data.targets, data.conditions))
    truth = data.truth[step].flatten(1) @ basis if kind == "truth" and data.truth is not None else None
    space, ring = torch.eye(basis.shape[1]), data.shape[2] if data.pooled else None
    rng = generator(0, f"evidence {step} {kind}")
    products, squares = [], []
    for fold in np.array_split(np.arange(data.dates), FOLDS):
        rest = torch.from_numpy(np.setdiff1d(np.arange(data.dates), fold))
        law = second_moments(members[rest], conditions[rest], None if truth is None else truth[rest], space, ring)
        x, y = data.draw(step, kind, seeds, torch.from_numpy(fold).repeat(3), rng)
        mean = law.predictive(seeds).mean(x.mean(1).flatten(1) @ basis)
        products.append(float((mean * (y.flatten(1) @ basis)).sum()))
        squares.append(float(mean.square().sum()))
    a, b = np.asarray(products), np.asarray(squares)
    factor = a.sum() / max(b.sum(), 1e-30)
    error = np.sqrt(((a - factor * b) ** 2).sum() * FOLDS / (FOLDS - 1)) / max(b.sum(), 1e-30)
    return float(min(factor, 1.0)) if factor > SIGNIFICANT * error else 0.0
