"""The main job: a few members of each date in, as many as wanted out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from domains.weather.climate import season_of
from domains.weather.containers import Ensemble
from domains.weather.denoiser import STEPS, Condition, SeedDenoiser, condition, process_for, sample_residual, scalars_of
from domains.weather.methods import Case, baseline_members
from domains.weather.model import Fit, WeatherModel, compare
from domains.weather.refinement import refined
from suite.config import MainConfig
from suite.errors import InputError
from suite.noise import Noise

POINTS = {"cpu": 1 << 14, "cuda": 1 << 19}  # grid points that go through the network at once: a member at 2 degrees
BLOCK = 1 << 21  # values of a block of dates and members
REFINEMENTS = 4  # steps of the solver `refine`
UNUSUAL = 2.5  # root-mean-square anomaly of seeds that calls for a warning
ITEMS = 256  # members of several dates that go through it together, where they are small


class GenerateConfig(MainConfig):
    """Settings of `weather generate`.

    Attributes:
        method: default `diffusion`.
        steps: network evaluations per member; default 12.
        seeds: use only the first so many members of the input; default all.
        target: what to generate where the model knows both; default the truth.
        dressing: what the method dressing adds to the seeds: Gaussian noise, or past errors of the best member.
        solver: of the diffusion; `refine` takes a linear-Gaussian member and refines it.
        spread: factor on the spread; default the model's own, calibrated on its development dates.
    """

    method: Literal["diffusion", "raw", "climatology", "dressing", "emos", "ecc", "schaake", "gaussian"] = "diffusion"
    dressing: Literal["gaussian", "best-member"] = "gaussian"
    seeds: int | None = Field(default=None, ge=0)
    target: Literal["auto", "member", "truth"] = "auto"
    solver: Literal["deis", "dpmpp-2m", "dpmpp-3m", "heun", "refine"] = "deis"
    spread: float | None = Field(default=None, gt=0)


@dataclass(frozen=True)
class Day:
    """The seeds of one date, in the model's terms.

    Attributes:
        anomalies: `(S, K, C, H, W)` standardised, on the model's grid.
        valid: valid times `(S,)`.
        back: standardised anomalies `(N, C, H, W)` of lead s to physical fields in the input's units and internal order.
        identity: of the date, for its random numbers.
    """

    anomalies: Tensor
    valid: NDArray[np.datetime64]
    back: Callable[[int, Tensor], Tensor]
    identity: str


class Generator:
    """Makes members of a date by one method.

    Args:
        model: None for the method raw.
        seeds: the input.
        config: see `GenerateConfig`.
        device: where the network runs.
        clock: times the network.

    Raises:
        InputError: the model cannot serve this input at all (other fields, too many or too few seeds).
    """

    def __init__(
        self,
        model: WeatherModel | None,
        seeds: Ensemble,
        config: GenerateConfig,
        device: torch.device | None = None,
        clock: Callable[[str], AbstractContextManager[Any]] = lambda _: nullcontext(),
    ) -> None:
        if config.method == "raw" and config.seeds == 0:
            raise InputError("the method raw returns the seeds, and seeds=0 leaves none")
        self.seeds = seeds.select(None, config.seeds) if config.seeds else seeds
        self.config, self.clock = config, clock
        self.device = device or torch.device("cpu")
        self.count = len(self.seeds.number) if seeds.has_number else 1
        self.count = 0 if config.seeds == 0 else self.count
        self.warnings = list(seeds.warnings)
        self.evaluations = 0
        self._rows, self._days = range(0), list[Day]()
        self.model = model
        if model is not None:
            self.kind = _kind(model, config)
            self.fit = self._fit(model)
            self.net = model.net.to(self.device)

    def _fit(self, model: WeatherModel) -> Fit:
        fit = compare(model, self.seeds)
        self.warnings += fit.warnings
        most = model.card.most_seeds
        if self.count > most:
            raise InputError(
                f"{self.seeds.path}: holds {self.count} members and the model {model.card.name} takes 0 to {most} seeds; "
                f"choose with --set seeds={min(2, most)}"
            )
        if fit.foreign and self.count < 2:
            raise InputError(
                f"{self.seeds.path}: is not what the model {model.card.name} was trained on (it knows {model.card.grid}), and "
                "without its climatology at least 2 seeds are needed to know the scale"
            )
        useless = [int(s) for s in fit.steps if not model.seeds_of_use(int(s), self.kind, 1)]
        if useless and self.count and not fit.foreign:
            self.warnings.append(
                f"The seeds told {model.card.name} nothing of dates left out of its fit: diffusion and gaussian draw from the "
                "climatology."
            )
        if fit.foreign:
            self.warnings.append(
                "Without a climatology of this input the members are the mean of the seeds and the model's patterns, scaled "
                "to the difference of the seeds; they are not calibrated."
            )
        return fit

    @property
    def calibrated(self) -> bool | None:
        """Whether the spread is scaled by dates that were held out of the fit; None where nothing scales it."""
        if self.model is None or self.config.method != "diffusion":
            return None
        return not self.fit.foreign and self.config.spread is None and self.model.card.validation_data != "none"

    # --- dates ---

    def days(self, rows: range, given: NDArray[np.float32] | None = None) -> list[Day]:
        """The seeds of some dates, from values `given` `(D, S, K, C, H, W)` or else read; the last ones read are kept."""
        if given is not None:
            return [self.day(date, values) for date, values in zip(rows, given, strict=True)]
        if self._rows != rows:
            self._rows, self._days = rows, [self.day(date) for date in rows]
        return self._days

    def day(self, date: int, given: NDArray[np.float32] | None = None) -> Day:
        """The seeds of a date, from values `given` `(S, K, C, H, W)` or else read.

        Raises:
            InputError: nothing but NaN.
        """
        given = self.seeds.values(np.asarray([date]))[0] if given is None else given
        values = torch.from_numpy(given)[:, : self.count]
        valid = self.seeds.valid_time()[date]
        identity = str(self.seeds.time[date])
        if values.numel() and not bool(values.isfinite().any()):
            raise InputError(f"{self.seeds.path}: the members of {identity[:16]} hold nothing but NaN.")
        if self.model is None:
            return Day(values, valid, lambda s, x: x, identity)
        model, fit = self.model, self.fit
        if fit.foreign:
            return _foreign_day(model, fit, values, valid, identity, self.kind, self.count)
        values = values * fit.factor + fit.offset
        seeds = model.climate["member"]
        anomalies = torch.stack(
            [seeds.standardise(values[s][None], valid[s : s + 1], int(fit.steps[s]))[0] for s in range(len(valid))]
        )
        holes = ~anomalies.isfinite()
        if self.count and float(anomalies.nan_to_num().square().mean()) > UNUSUAL**2:
            self._warn_once(
                f"Seeds lie more than {UNUSUAL:g} climatological standard deviations from what {model.card.name} was trained on."
            )
        if bool(holes.any()):
            self._warn_once("Missing values in the seeds were taken as climatological.")
            anomalies = torch.where(holes, 0.0, anomalies)

        def back(s: int, x: Tensor) -> Tensor:
            times = np.repeat(valid[s], len(x))
            return (model.climate[self.kind].restore(x, times, int(fit.steps[s])) - fit.offset) / fit.factor

        return Day(anomalies, valid, back, identity)

    def _warn_once(self, sentence: str) -> None:
        if sentence not in self.warnings:
            self.warnings.append(sentence)

    # --- members ---

    def members(self, days: list[Day], numbers: list[int]) -> NDArray[np.float32]:
        """The members `numbers` of some dates, `(D, S, N, C, H, W)` in internal order and the input's units."""
        if self.config.method == "raw" or self.model is None:
            return np.stack([day.anomalies[:, numbers].numpy() for day in days])
        shape = days[0].anomalies.shape[2:]
        identities = [f"{day.identity} {n}" for day in days for n in numbers]
        eps = Noise.of(self.config.seed, identities).normal(torch.empty(len(identities), *shape))
        eps = eps.unflatten(0, (len(days), len(numbers)))
        out = []
        for s in range(len(days[0].valid)):
            make = self._diffuse if self.config.method == "diffusion" else self._baseline
            fields = make(days, s, eps, numbers)
            out.append(torch.stack([day.back(s, field) for day, field in zip(days, fields, strict=True)]))
        return torch.stack(out, 1).numpy()

    def _baseline(self, days: list[Day], s: int, eps: Tensor, numbers: list[int]) -> Tensor:
        """Standardised anomalies `(D, N, C, H, W)` of one lead."""
        model = self.model
        assert model is not None
        lead = int(self.fit.steps[s])
        count = self._seeds_of_use(lead) if self.config.method == "gaussian" else self.count
        law = model.predictive(lead, self.kind, count)
        library = model.fields, model.fields_season
        return torch.stack(
            [
                baseline_members(
                    self.config.method, self._case(day, s, lead, count), noise, numbers, law, model.baselines, library,
                    self.config.dressing,
                )
                for day, noise in zip(days, eps, strict=True)
            ]
        )  # fmt: skip

    def _case(self, day: Day, s: int, lead: int, count: int) -> Case:
        season = season_of(day.valid[s : s + 1])[0]
        return Case(day.anomalies[s][:count], season, lead, self.kind, day.identity, self.config.seed)

    @torch.no_grad()
    def _diffuse(self, days: list[Day], s: int, eps: Tensor, numbers: list[int]) -> Tensor:
        """Standardised anomalies `(D, N, C, H, W)` of one lead."""
        model = self.model
        assert model is not None
        lead = int(self.fit.steps[s])
        season = season_of(np.asarray([day.valid[s] for day in days]))
        given = self._condition(torch.stack([day.anomalies[s] for day in days]), lead, season)
        spread = self.config.spread or model.card.spread[lead]
        size = max(1, POINTS[self.device.type] // eps[0, 0, 0].numel())
        owner = torch.arange(len(days), device=self.device).repeat_interleave(len(numbers))
        identities = [f"{day.identity} {n}" for day in days for n in numbers]
        parts, done = [], 0
        for noise, index in zip(eps.flatten(0, 1).split(size), owner.split(size), strict=True):
            repeated = given.repeat(index)
            denoiser = SeedDenoiser(self.net, repeated, process_for(given.predictive), lambda: self.clock("network"))
            start = noise.to(self.device)
            if self.config.solver == "refine":
                steps = self.config.steps or REFINEMENTS
                more = Noise.of(self.config.seed, [f"refine {name}" for name in identities[done : done + len(start)]])
                noises = more.normal(torch.empty(len(start), 2 * steps, *start.shape[1:])).to(self.device)
                residual = spread * refined(denoiser, start, noises.unbind(1))
            else:
                steps = self.config.steps or STEPS
                residual = sample_residual(denoiser, start, spread=spread, steps=steps, solver=self.config.solver)
            self.evaluations = max(self.evaluations, denoiser.evaluations)
            parts.append((repeated.mean + residual).cpu())
            done += len(start)
        return torch.cat(parts).unflatten(0, eps.shape[:2])

    def _seeds_of_use(self, lead: int) -> int:
        assert self.model is not None
        return self.count if self.fit.foreign else self.model.seeds_of_use(lead, self.kind, self.count)

    def _condition(self, seeds: Tensor, lead: int, season: Tensor) -> Condition:
        model = self.model
        assert model is not None
        count = self._seeds_of_use(lead)
        seeds = seeds[:, :count]
        law = model.predictive(lead, self.kind, count)
        scalars = scalars_of(count, self.kind == "truth", model.lead_scalar(lead), season)
        mask, static = model.climate["member"].mask[None], model.static()
        tensors = (seeds, scalars, static, mask)
        x, scalars, static, mask = (t.to(self.device) for t in tensors)
        return condition(self.net, law.to(self.device), x, scalars, static, mask)


def _kind(model: WeatherModel, config: GenerateConfig) -> str:
    if config.target == "auto":
        return model.kind
    if config.target not in model.card.targets:
        raise InputError(
            f"the model {model.card.name} generates {' and '.join(model.card.targets)}, and the target {config.target} was "
            "asked for"
        )
    return config.target


def _foreign_day(
    model: WeatherModel, fit: Fit, values: Tensor, valid: NDArray[np.datetime64], identity: str, kind: str, count: int
) -> Day:
    """A grid or variable the model does not know: its patterns, stretched over the grid and scaled to the seeds' difference.

    The seeds enter as deviations from their mean, so that their mean stays the centre.
    """
    values = torch.where(values.isfinite(), values, values.nanmean())
    mine, theirs = values.shape[-2:], (len(model.latitude), len(model.longitude))
    mean = values.mean(1, keepdim=True)
    difference = (values - mean).square().sum((1, 3, 4), keepdim=True) / ((count - 1) * mine[0] * mine[1])
    width = difference.sqrt()[:, 0].clamp_min(1e-12)  # (S, C, 1, 1)
    points = float(model.climate["member"].mask.sum())
    inside = [float(model.linear[int(step), kind].within.diagonal().sum() / points) ** 0.5 for step in fit.steps]
    scale = width / torch.tensor(inside).clamp_min(1e-3)[:, None, None, None]
    flat = ((values - mean) / scale[:, None]).flatten(0, 1)
    anomalies = F.interpolate(flat, theirs, mode="bilinear", align_corners=True).unflatten(0, values.shape[:2])

    def back(s: int, x: Tensor) -> Tensor:
        out = mean[s] + scale[s] * F.interpolate(x, mine, mode="bilinear", align_corners=True)
        return out.clamp_min(0) if not bool((values < 0).any()) else out

    return Day(anomalies, valid, back, identity)


def dates_at_once(seeds: Ensemble, members: int) -> int:
    """How many dates are worth taking together."""
    height, width = seeds.grid.shape
    per_date = members * len(seeds.channels) * height * width * len(seeds.step)
    return max(1, min(ITEMS // max(1, members), BLOCK // max(1, per_date)))
