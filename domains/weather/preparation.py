"""What the training dates say: settings, the split by date, anomalies, climatology and second moments."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from domains.weather.climate import Climatology, fit_climatology, is_homogeneous, is_rain, season_of
from domains.weather.containers import Ensemble
from domains.weather.data import matching_dates, truth_values
from domains.weather.dry import continue_below
from domains.weather.evidence import trusted
from domains.weather.hierarchy import LinearGaussian, empirical_basis, second_moments
from domains.weather.model import static_maps
from domains.weather.training_set import Prepared, TrainingSet
from suite.errors import InputError
from suite.noise import generator


class FitConfig(BaseModel):
    """Settings of `weather fit`.

    Attributes:
        widths, blocks, features: of the network; null: by the grid's size.
        steps: training steps at most.
        batch: examples per step.
        seeds: how often 0, 1, ... 5 seeds are trained on, relative to each other.
        truth_share: share of the steps whose target is the truth, where one is given.
        rank: empirical orthogonal functions of the linear-Gaussian law at most.
        development: share of the dates, the last ones, kept for the spread calibration and the validation.
        noise_std: deviation of log sigma in training.
        licence: of the weights, for the card.
        limits: sentences for the card: what the model must not be used for.
        description: for the card.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    widths: list[int] | None = None
    blocks: int | None = Field(default=None, ge=1)
    features: int = Field(default=128, ge=1)
    steps: int = Field(default=20000, ge=1)
    batch: int = Field(default=128, ge=1)
    learning_rate: float = Field(default=2e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup: int = Field(default=100, ge=0)
    cooldown: float = Field(default=0.5, ge=0, le=1)
    ema: float = Field(default=0.998, ge=0, lt=1)
    seeds: list[float] = [0.05, 0.15, 0.5, 0.1, 0.1, 0.1]
    truth_share: float = Field(default=0.7, ge=0, le=1)
    rank: int = Field(default=256, ge=1)
    development: float = Field(default=0.1, ge=0, lt=0.5)
    noise_std: float = Field(default=1.1, gt=0)
    mixed_precision: bool = True
    seed: int = Field(default=0, ge=0, lt=2**63)
    validate_every: int = Field(default=500, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    licence: str = "weights: those of the training data"
    limits: list[str] = []
    description: str = ""


def prepare(ensemble: Ensemble, truth: Ensemble | None, config: FitConfig) -> Prepared:
    """Read everything, split by date, estimate climatology and second moments.

    Raises:
        InputError: too few dates or members, or nothing finite.
    """
    if not ensemble.has_number and truth is None:
        raise InputError(
            f"{ensemble.path}: has no axis of members; an ensemble (number, time, ...) is needed, or --truth beside it."
        )
    dates = np.arange(len(ensemble.time))
    goal: NDArray[np.float32] | None = None
    if truth is not None:
        dates, other = matching_dates(ensemble, truth)
        goal = truth_values(truth, other, ensemble)[:, :, None].astype(np.float32)
    order = np.argsort(ensemble.time[dates], kind="stable")
    dates = dates[order]
    values = ensemble.values(dates)
    goal = None if goal is None else goal[order]
    valid = ensemble.valid_time()[dates]
    keep = np.isfinite(values).any((1, 2, 3, 4, 5)) & (True if goal is None else np.isfinite(goal).any((1, 2, 3, 4, 5)))
    values, valid, goal = values[keep], valid[keep], None if goal is None else goal[keep]
    _check(values, ensemble, truth is not None)
    warnings = list(ensemble.warnings)
    values, mask = _mended(values, warnings)
    goal = None if goal is None else _mended(goal, warnings)[0]
    return _estimate(ensemble, values, goal, valid, mask, config, warnings)


def _check(values: NDArray[np.float32], ensemble: Ensemble, with_truth: bool) -> None:
    if not len(values):
        raise InputError(f"{ensemble.path}: holds nothing but NaN.")
    dates, members = values.shape[0], values.shape[2]
    if members < 2 and not with_truth:
        raise InputError(f"{ensemble.path}: has {members} member; at least 2 are needed, or --truth.")
    if dates < 2 and members < 5:
        raise InputError(f"{ensemble.path}: {dates} date with {members} members is too little to fit anything.")


def _mended(values: NDArray[np.float32], warnings: list[str]) -> tuple[NDArray[np.float32], Tensor]:
    """Single NaNs become the mean of their point; points that are NaN in most fields are masked `(C, H, W)`."""
    finite = np.isfinite(values)
    share = finite.mean((0, 1, 2))
    mask = share > 0.5
    holes = ~finite & mask
    if holes.any():
        warnings.append(f"{int(holes.sum())} missing values were replaced by the mean of their point.")
        total = np.where(finite, values, 0).sum((0, 1, 2)) / np.maximum(finite.sum((0, 1, 2)), 1)
        values = np.where(holes, total, values)
    return np.where(mask, values, np.float32(0)).astype(np.float32), torch.from_numpy(mask).float()


def _estimate(
    ensemble: Ensemble,
    values: NDArray[np.float32],
    goal: NDArray[np.float32] | None,
    valid: NDArray[np.datetime64],
    mask: Tensor,
    config: FitConfig,
    warnings: list[str],
) -> Prepared:
    count = len(values)
    held = math.ceil(config.development * count) if count >= 20 else 0
    if not held:
        warnings.append(f"With {count} date(s) none is kept aside: the spread is not calibrated.")
    train = slice(0, count - held)
    rain = tuple(c for c in range(values.shape[3]) if is_rain(values[train, :, :, c]))
    homogeneous = is_homogeneous(values[train], ensemble.grid.periodic)
    climate = {"member": fit_climatology(values[train], valid[train], rain, mask, pooled=homogeneous)}
    if goal is not None:
        climate["truth"] = fit_climatology(goal[train], valid[train], rain, mask, pooled=homogeneous)
    whole = _anomalies(values, goal, valid, climate, count - held, (homogeneous, ensemble.grid.periodic))
    first = _part(whole, slice(0, count - held))
    held_out = _part(whole, slice(count - held, count)) if held else None
    linear, informative = trusted(_linear(first, config.rank), whole)
    if not any(any(known) for known in informative.values()):
        warnings.append("The seeds told nothing about dates that were left out: the members will be climatological.")
    lat, lon = (torch.from_numpy(x).float() for x in (ensemble.grid.latitude, ensemble.grid.longitude))
    months = sorted({int(m) % 12 + 1 for m in valid.astype("datetime64[M]").astype(int).ravel()})
    return Prepared(
        first,
        held_out,
        climate,
        linear,
        informative,
        static_maps(climate["member"], lat, lon, homogeneous),
        mask[None],
        rain,
        homogeneous,
        months,
        [float(h) for h in ensemble.lead_hours()],
        warnings,
    )


def _anomalies(
    values: NDArray[np.float32],
    goal: NDArray[np.float32] | None,
    valid: NDArray[np.datetime64],
    climate: dict[str, Climatology],
    train: int,
    grid: tuple[bool, bool],
) -> TrainingSet:
    """Anomalies of all dates; dry points as targets are drawn, as the first `train` dates say.

    `grid`: whether it is homogeneous, and periodic.
    """
    homogeneous, periodic = grid
    data = torch.from_numpy(values)
    steps, rng = range(values.shape[1]), generator(0, "dry")
    members, truths = climate["member"], climate.get("truth")

    def drawn(climate: Climatology, fields: Tensor, s: int) -> Tensor:
        out = climate.standardise(fields, valid[:, s], s, rng)
        limit = climate.thresholds(valid[:, s], s)
        return continue_below(out, climate.is_dry(fields), limit, train, rng, periodic=periodic)

    conditions = torch.stack([members.standardise(data[:, s], valid[:, s], s) for s in steps])
    targets = torch.stack([drawn(members, data[:, s], s) for s in steps]) if members.rain else conditions
    truth = None
    if truths is not None and goal is not None:
        fields = torch.from_numpy(goal)
        truth = torch.stack([drawn(truths, fields[:, s], s)[:, 0] for s in steps])
    return TrainingSet(conditions, targets, truth, season_of(valid[:, 0]), members.seasonal, homogeneous)


def _part(whole: TrainingSet, dates: slice) -> TrainingSet:
    truth = None if whole.truth is None else whole.truth[:, dates]
    conditions = whole.conditions[:, dates]
    targets = conditions if whole.targets is whole.conditions else whole.targets[:, dates]
    return TrainingSet(conditions, targets, truth, whole.season[dates], whole.seasonal, whole.pooled)


def _linear(data: TrainingSet, rank: int) -> dict[tuple[int, str], LinearGaussian]:
    fields = data.targets.flatten(0, 2).flatten(1)
    most = min(rank, fields.shape[1] if fields.shape[1] <= rank else len(fields) - 1)
    sample = fields[:: max(1, len(fields) * fields.shape[1] // 20_000_000)]
    basis = empirical_basis(sample, most)
    ring = data.shape[2] if data.pooled else None
    out = {}
    for step in range(data.steps):
        members, seeds = data.targets[step].flatten(2), data.conditions[step].flatten(2)
        for kind in data.kinds:
            truth = None if data.truth is None or kind == "member" else data.truth[step].flatten(1)
            out[step, kind] = second_moments(members, seeds, truth, basis, ring)
    return out
