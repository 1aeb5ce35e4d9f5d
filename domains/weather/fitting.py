"""`weather fit` from containers to a model: estimate, train, calibrate the spread, write the card."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from domains.weather.baselines import fit_baselines
from domains.weather.containers import Ensemble
from domains.weather.denoiser import SeedDenoiser, condition, process_for, sample_residual, scalars_of
from domains.weather.model import WeatherCard, WeatherModel, lead_scalar
from domains.weather.network import FieldNet
from domains.weather.preparation import FitConfig, prepare
from domains.weather.training import SeedTrainer
from domains.weather.training_set import Prepared, TrainingSet
from suite.noise import generator

STORED_VALUES = 2_000_000  # of training fields that go into the model file
STORED_FIELDS = 1024
CALIBRATION_MEMBERS = 8
CALIBRATION_BLOCKS = 10
CALIBRATION_VALUES = 200_000  # members x points
LIMITS = [
    "It knows only the ensemble, the grid, the leads and the season it was fitted on; elsewhere its members mean nothing.",
    "It adds no information to the seeds: from two members nobody can know the mean of the full ensemble.",
    "Not for warnings or decisions about safety without verification on your own recent dates.",
]


def fit_model(
    ensemble: Ensemble,
    truth: Ensemble | None,
    config: FitConfig,
    output: Path,
    device: torch.device,
    *,
    minutes: float | None = None,
    resume: bool = False,
    command: str = "",
    report: Callable[[dict[str, Any]], None] = lambda _: None,
) -> tuple[WeatherModel, list[str]]:
    """A model of an ensemble, and what to tell about it.

    Args:
        minutes: wall budget of everything, reading to calibration.
        command: that fits this model, for the card.

    Raises:
        InputError: see `prepare`; or nothing to resume.
    """
    began = time.monotonic()
    data = prepare(ensemble, truth, config)
    baselines = fit_baselines(data.train)
    grid = {"periodic": ensemble.grid.periodic, "poles": ensemble.grid.poles}
    trainer = SeedTrainer(config, data, output, device, grid)
    if resume:
        trainer.resume()
    if minutes is not None:
        spent = (time.monotonic() - began) / 60
        trainer.minutes = max(0.02 * minutes, 0.92 * minutes - spent)
    trainer.run(report, trainer.minutes)
    kept, losses = keep_what_helps(trainer)
    net: FieldNet = trainer.average.float().eval()  # type: ignore[assignment]
    spread = calibrate(net, data, trainer, config)
    fields, season = _library(data.train)
    card = _card(ensemble, truth, config, data, trainer, (spread, kept, losses), command)
    lat, lon = (torch.from_numpy(x).float() for x in (ensemble.grid.latitude, ensemble.grid.longitude))
    model = WeatherModel(net, data.climate, data.linear, baselines, fields, season, lat, lon, card)
    return model, data.warnings


@torch.no_grad()
def keep_what_helps(trainer: SeedTrainer) -> tuple[float, dict[str, float]]:
    """Scale the network's correction by the factor in [0, 1] that predicts the development dates best.

    The loss is quadratic in the factor, so three values of it give the minimum; 0 leaves the linear-Gaussian law. Without
    development dates nothing is scaled.

    Returns:
        The factor, and by number of seeds the loss it leaves over that of the linear-Gaussian law on the same dates.
    """
    tail = trainer.average.tail.conv  # type: ignore[union-attr]
    weight, bias = tail.weight.clone(), tail.bias.clone()  # type: ignore[operator, union-attr]

    def loss(factor: float) -> dict[str, float]:
        tail.weight.copy_(factor * weight)  # type: ignore[operator, union-attr]
        tail.bias.copy_(factor * bias)  # type: ignore[operator, union-attr]
        return trainer.validate()

    linear, factor = loss(0.0), 1.0
    if trainer.data.development is not None:
        none, half, whole = (sum(losses.values()) for losses in (linear, loss(0.5), loss(1.0)))
        curvature = 2 * (whole + none - 2 * half)
        factor = (none - whole + curvature) / (2 * curvature) if curvature > 0 else float(whole < none)
        factor = round(min(max(factor, 0.0), 1.0), 3)
        factor = 1.0 if factor > 0.95 else factor
    return factor, {seeds: round(left / linear[seeds], 5) for seeds, left in loss(factor).items()}


@torch.no_grad()
def calibrate(net: FieldNet, data: Prepared, trainer: SeedTrainer, config: FitConfig) -> list[float]:
    """For each lead the factor on the spread that makes it equal the error of the mean on the development dates.

    With M members and two seeds, `sqrt((M + 1)/M) spread / RMSE = 1`, drawn to 1 by its own uncertainty over blocks of dates
    (James and Stein 1961); 1.0 where there are too few dates.
    """
    held = data.development
    if held is None or held.dates < 10:
        return [1.0] * data.train.steps
    factors = []
    kind = held.kinds[-1]
    for step in range(held.steps):
        which = (step, kind, min(2, data.most_seeds(step, kind)))
        factor, error = 1.0, 0.0
        for _ in range(2):
            change, error = _error_over_spread(net, data, trainer, config, which, factor)
            factor *= change
        kept = max(0.0, 1 - error**2 / max((factor - 1) ** 2, 1e-12))
        factors.append(round(min(max(1 + kept * (factor - 1), 0.5), 2.0), 4))
    return factors


def _error_over_spread(
    net: FieldNet, data: Prepared, trainer: SeedTrainer, config: FitConfig, which: tuple[int, str, int], factor: float
) -> tuple[float, float]:
    """The ratio, and its standard error over blocks of dates."""
    step, kind, seeds = which
    held = data.development
    assert held is not None
    rng = generator(0, f"calibration {step}")
    count = int(min(3 * held.dates, max(20, CALIBRATION_VALUES // (CALIBRATION_MEMBERS * data.mask.numel()))))
    rows = (
        torch.arange(count) % held.dates if count >= held.dates else torch.randperm(held.dates, generator=rng)[:count]
    )
    law, device = trainer.law(*which), trainer.device
    squares, variances = [], []
    for part in rows.split(max(1, 64 * 1024 // data.mask.numel())):
        x, y = held.draw(step, kind, seeds, part, rng)
        scalars = scalars_of(seeds, kind == "truth", lead_scalar(data.leads_hours, step), held.season[part])
        tensors = (x, scalars, data.static, data.mask)
        given = condition(net, law, *(t.to(device) for t in tensors))
        members: list[Tensor] = []
        for _ in range(CALIBRATION_MEMBERS):
            eps = torch.randn(y.shape, generator=rng).to(device)
            denoiser = SeedDenoiser(net, given, process_for(law))
            residual = sample_residual(denoiser, eps, spread=factor)
            members.append((given.mean + residual).cpu())
        sample = torch.stack(members)
        squares.append(((sample.mean(0) - y) * data.mask).square().flatten(1).mean(1))
        variances.append((sample.var(0) * data.mask).flatten(1).mean(1))
    inflation = (CALIBRATION_MEMBERS + 1) / CALIBRATION_MEMBERS
    square, variance = torch.cat(squares), inflation * torch.cat(variances)
    ratio = square.mean() / variance.mean()
    block = rows * CALIBRATION_BLOCKS // held.dates  # consecutive dates share their weather
    deviation = torch.zeros(CALIBRATION_BLOCKS).index_add(0, block, square - ratio * variance)
    error = deviation.square().sum().sqrt() / variance.sum()
    return float(ratio.sqrt()), float(error / (2 * ratio.sqrt()))


def _library(train: TrainingSet) -> tuple[Tensor, Tensor]:
    """Training fields spread over the dates, `(F, C, H, W)`, and their season."""
    goal = train.targets[0] if train.truth is None else train.truth[0][:, None]
    points = goal[0, 0].numel()
    count = max(1, min(STORED_FIELDS, STORED_VALUES // points, goal.shape[0] * goal.shape[1]))
    index = torch.linspace(0, goal.shape[0] * goal.shape[1] - 1, count).long()
    rows, members = index // goal.shape[1], torch.arange(count) % goal.shape[1]
    members = members if count < goal.shape[0] * goal.shape[1] else index % goal.shape[1]
    return goal[rows, members].clone(), train.season[rows].clone()


def _card(
    ensemble: Ensemble,
    truth: Ensemble | None,
    config: FitConfig,
    data: Prepared,
    trainer: SeedTrainer,
    fitted: tuple[list[float], float, dict[str, float]],
    command: str,
) -> WeatherCard:
    kinds = data.train.kinds
    held = data.development
    count = int(data.train.conditions.shape[2])
    sides = [ensemble.path.name] + ([] if truth is None else [f"{truth.path.name} (truth)"])
    first, last = (str(t)[:10] for t in (ensemble.time.min(), ensemble.time.max()))
    return WeatherCard(
        name=trainer.output.stem,
        description=config.description
        or f"{', '.join(c.label for c in ensemble.channels)} on {ensemble.grid.describe()}",
        variables=[
            {
                "name": c.name,
                "level": c.level,
                "units": c.units,
                "standard_name": c.attributes.get("standard_name"),
                "rain_like": i in data.rain,
            }
            for i, c in enumerate(ensemble.channels)
        ],
        grid=ensemble.grid.describe(),
        periodic=ensemble.grid.periodic,
        poles=ensemble.grid.poles,
        homogeneous=data.homogeneous,
        leads_hours=data.leads_hours,
        season=data.months,
        members=count,
        most_seeds=data.train.most_seeds(kinds[-1]),
        targets=list(kinds),
        rain=list(data.rain),
        network=trainer.net.settings,  # type: ignore[arg-type]
        spread=fitted[0],
        informative=data.informative,
        data=[f"{', '.join(sides)}: {data.train.dates} dates of {first} to {last}, {count} members"],
        validation_data="none" if held is None else f"the last {held.dates} dates",
        licence=config.licence,
        training={
            "command": command,
            "steps": trainer.step,
            "seconds": round(trainer.seconds),
            "batch": config.batch,
            "seed": config.seed,
        },
        validation={
            "what": "squared denoising error over that of the linear-Gaussian law, by number of seeds (1: no better)",
            "loss": fitted[2],
            "correction_kept": fitted[1],
            "spread_fitted_on": "nothing" if held is None else "the development dates, two seeds",
        },
        limits=[*config.limits, *LIMITS],
    )
