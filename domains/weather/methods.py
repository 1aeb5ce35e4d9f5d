"""What practice uses, as methods of the same call: climatology, dressing, EMOS, ECC, Schaake, a linear-Gaussian field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from domains.weather.baselines import emos_moments
from domains.weather.hierarchy import Predictive
from suite.errors import InputError
from suite.noise import generator

BASELINES = ("raw", "climatology", "dressing", "emos", "ecc", "schaake", "gaussian")


@dataclass(frozen=True)
class Case:
    """One lead of one date.

    Attributes:
        seeds: `(K, C, H, W)`.
        season: `(2,)`.
        lead: of the model.
        kind: member or truth.
        identity: of the date; with `seed`, of what its members share.
        seed: of the run.
    """

    seeds: Tensor
    season: Tensor
    lead: int
    kind: str
    identity: str
    seed: int = 0


def baseline_members(
    method: str,
    case: Case,
    eps: Tensor,
    numbers: list[int],
    predictive: Predictive,
    parameters: Mapping[str, Tensor],
    fields: tuple[Tensor, Tensor],
    dressing: str = "gaussian",
) -> Tensor:
    """Standardised anomalies `(N, C, H, W)` of the members `numbers`.

    Args:
        method: one of `BASELINES` except raw.
        eps: white noise of these members `(N, C, H, W)`.
        predictive: the linear-Gaussian law for this lead, kind and K.
        parameters: of `fit_baselines`.
        fields: training fields `(F, C, H, W)` and their season `(F, 2)`.
        dressing: what the method dressing adds: "gaussian" noise, or the errors of a "best-member" of the past.

    Raises:
        InputError: dressing or ECC without enough seeds.
    """
    seeds, count = case.seeds, len(case.seeds)
    need = {"dressing": 1, "ecc": 2}.get(method, 0)
    if count < need:
        many = "at least one seed" if need == 1 else f"at least {need} seeds"
        raise InputError(f"the method {method} needs {many}; use climatology, gaussian or diffusion")
    if method == "climatology":
        return fields[0][_analogues(fields[1], case)][[n % len(fields[0]) for n in numbers]]
    if method == "dressing":
        return seeds[[n % count for n in numbers]] + _dress(case, eps, numbers, parameters, dressing)
    if method == "gaussian":
        centre = seeds.mean(0) if count else torch.zeros_like(eps[0])
        mean = predictive.mean(centre.flatten()[None]).reshape(1, *eps.shape[1:])
        return mean + predictive.draw(eps.flatten(1)).reshape(eps.shape)
    m = (seeds.mean(0) if count else torch.zeros_like(eps[0]))[None]
    square = (seeds.var(0) if count > 1 else torch.zeros_like(eps[0]))[None]
    margin = parameters[f"emos.{case.lead}.{case.kind}.{count}"]
    mean, deviation = emos_moments(margin, m, square, case.season[None])
    if method == "emos":
        return mean + deviation * eps
    if method == "ecc":
        return mean + deviation * _coupled(case, numbers)
    return mean + deviation * _ranks_of(fields[0][_analogues(fields[1], case)], numbers)


def _dress(case: Case, eps: Tensor, numbers: list[int], parameters: Mapping[str, Tensor], kind: str) -> Tensor:
    """What is added to the seeds: noise of the fitted width, or whole fields of errors in random order."""
    count = len(case.seeds)
    if kind == "gaussian":
        return parameters[f"dressing.{case.lead}.{case.kind}"][count] * eps
    errors = parameters.get(f"errors.{case.lead}.{case.kind}.{count}")
    if errors is None:
        raise InputError("the model holds no errors of the best member; fit it anew, or use --set dressing=gaussian")
    order = torch.randperm(len(errors), generator=generator(case.seed, f"errors {case.identity} {case.lead}"))
    return errors[order[[n % len(errors) for n in numbers]]]


def _coupled(case: Case, numbers: list[int]) -> Tensor:
    """Ensemble copula coupling (Schefzik et al. 2013) with stratified levels (ECC-S, Hu et al. 2016): normal scores.

    A block of K members takes the K strata of the margin at each point, in the order which the seeds have there; the level inside
    a stratum is one number for a whole field. Further blocks repeat the order with other levels.
    """
    count = len(case.seeds)
    ranks = case.seeds.argsort(0).argsort(0)  # of each seed at each point
    out = []
    for n in numbers:
        rng = generator(case.seed, f"ecc {case.identity} {case.lead} {n // count}")
        levels = (torch.arange(count) + torch.rand(count, generator=rng).clamp(1e-3, 1 - 1e-3)) / count
        out.append(torch.special.ndtri(levels)[ranks[n % count]])
    return torch.stack(out)


def _analogues(season: Tensor, case: Case) -> Tensor:
    """Order of the training fields for a date: random among those within 45 days of the season, then the others."""
    rng = generator(0, f"fields {case.identity}")
    order = torch.randperm(len(season), generator=rng)
    far = (season[order] @ case.season) < math.cos(2 * math.pi * 45 / 365.25)
    near, rest = order[~far], order[far]
    return torch.cat([near, rest]) if len(near) < 20 else near.repeat(math.ceil(len(season) / len(near)))[: len(season)]


def _ranks_of(template: Tensor, numbers: list[int]) -> Tensor:
    """Schaake shuffle (Clark et al. 2004): normal scores of the ranks the members' template fields have at each point."""
    ordered = template.flatten(1).T.sort(1).values.contiguous()  # (points, F)
    chosen = template[[n % len(template) for n in numbers]].flatten(1).T.contiguous()
    below = (torch.searchsorted(ordered, chosen) + torch.searchsorted(ordered, chosen, right=True)) / 2
    return torch.special.ndtri(below / len(template)).T.reshape(len(numbers), *template.shape[1:])
