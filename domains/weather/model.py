"""The model file: climatology, linear-Gaussian law, baselines, network and card in one safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from domains.weather.climate import Climatology
from domains.weather.containers import Channel, Ensemble, Grid
from domains.weather.conventions import conversion
from domains.weather.hierarchy import LinearGaussian, Predictive
from domains.weather.network import FieldNet
from suite.errors import InputError
from suite.files import atomic_file
from suite.run import sha256_file

WEIGHTS = Path(__file__).parent / "weights"
KINDS = ("member", "truth")
MOMENTS = ("between", "within", "cross", "target", "rest")


class WeatherCard(BaseModel):
    """What a model emulates, what it was trained on, and what it must not be used for."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    name: str
    domain: Literal["weather"] = "weather"
    description: str
    variables: list[dict[str, Any]]
    grid: str
    periodic: bool
    poles: bool
    homogeneous: bool
    leads_hours: list[float]
    season: list[int]
    members: int = Field(ge=1)
    most_seeds: int = Field(ge=0)
    targets: list[str]
    rain: list[int]
    network: dict[str, Any]
    process: str = "edm"
    head: str = "linear-Gaussian denoiser and a correction"
    spread: list[float]
    informative: dict[str, list[bool]]
    data: list[str]
    validation_data: str
    licence: str
    training: dict[str, Any]
    validation: dict[str, Any]
    limits: list[str]


@dataclass(frozen=True)
class WeatherModel:
    """Everything `weather generate` needs.

    Attributes:
        net: the network.
        climate: climatology by kind of target.
        linear: second moments by (lead, kind).
        baselines: parameters of the baselines, see domains/weather/baselines.py.
        fields: standardised anomalies of training fields `(F, C, H, W)`.
        fields_season: `(F, 2)`.
        latitude, longitude: of the grid, internal order.
        card: see `WeatherCard`.
    """

    net: FieldNet
    climate: Mapping[str, Climatology]
    linear: Mapping[tuple[int, str], LinearGaussian]
    baselines: Mapping[str, Tensor]
    fields: Tensor
    fields_season: Tensor
    latitude: Tensor
    longitude: Tensor
    card: WeatherCard
    path: Path | None = None
    sha256: str = ""
    _cache: dict[tuple[int, str, int], Predictive] = field(default_factory=dict, repr=False)

    @property
    def kind(self) -> str:
        """What it generates: the truth where it was trained on one, else members."""
        return self.card.targets[-1]

    @property
    def grid(self) -> Grid:
        shape = len(self.latitude), len(self.longitude)
        latitude, longitude = self.latitude.double().numpy(), self.longitude.double().numpy()
        return Grid(latitude, longitude, np.arange(shape[0]), np.arange(shape[1]), latitude, longitude)

    def predictive(self, step: int, kind: str, seeds: int) -> Predictive:
        """The linear-Gaussian law of one lead, target and number of seeds."""
        key = (step, kind, seeds)
        if key not in self._cache:
            self._cache[key] = self.linear[step, kind].predictive(seeds)
        return self._cache[key]

    def seeds_of_use(self, step: int, kind: str, seeds: int) -> int:
        """How many of the seeds count: none where they told nothing of dates left out of the fit."""
        return seeds if self.card.informative[kind][step] else 0

    def static(self) -> Tensor:
        return static_maps(self.climate["member"], self.latitude, self.longitude, self.card.homogeneous)

    def lead_scalar(self, step: int) -> float:
        return lead_scalar(self.card.leads_hours, step)

    def save(self, path: Path) -> None:
        """Write the file, atomically; the network and the fields in half precision."""
        tensors = {f"net.{k}": v.detach().cpu().half() for k, v in self.net.state_dict().items()}
        for kind, climate in self.climate.items():
            tensors |= {f"climate.{kind}.{k}": v for k, v in climate.tensors().items()}
        first = next(iter(self.linear.values()))
        tensors["linear.basis"] = first.basis.half() if len(first.basis) > 64 else first.basis
        for (step, kind), law in self.linear.items():
            for name in MOMENTS:
                if name == "within" or name == "between":  # of the members: the same for both kinds
                    tensors[f"linear.{step}.{name}"] = getattr(law, name)
                else:
                    tensors[f"linear.{step}.{kind}.{name}"] = getattr(law, name)
        tensors |= {f"baseline.{k}": v for k, v in self.baselines.items()}
        tensors |= {"fields": self.fields.half(), "fields_season": self.fields_season}
        tensors |= {"latitude": self.latitude, "longitude": self.longitude}
        card = self.card.model_dump_json()
        with atomic_file(path) as part:
            save_file({k: v.contiguous().clone() for k, v in tensors.items()}, part, metadata={"card": card})


def lead_scalar(hours: list[float], step: int) -> float:
    """The lead as the network sees it: -1 to 1 over the leads it knows, 0 where it knows one."""
    low, high = min(hours), max(hours)
    return 0.0 if high == low else 2 * (hours[step] - low) / (high - low) - 1


def static_maps(climate: Climatology, latitude: Tensor, longitude: Tensor, homogeneous: bool) -> Tensor:
    """Position, climatology and mask `(1, S, H, W)`; none for a homogeneous ring, whose points are all alike."""
    shape = (len(latitude), len(longitude))
    if homogeneous:
        return torch.zeros(1, 0, *shape)
    lat, lon = torch.deg2rad(latitude)[:, None].expand(shape), torch.deg2rad(longitude)[None].expand(shape)
    maps = [lat.sin(), lat.cos(), lon.sin(), lon.cos()]
    for c in range(climate.mean.shape[2]):
        mean, deviation = climate.mean[0, 0, c], climate.variance[0, 0, c].clamp_min(1e-12).sqrt()
        maps += [
            (mean - mean.mean()) / mean.std().clamp_min(1e-6),
            torch.log(deviation / deviation.mean().clamp_min(1e-6)),
        ]
        maps.append(climate.mask[c])
    stack = torch.stack([m.float() for m in maps]).nan_to_num()
    return stack.clamp(-4, 4)[None]


# --- reading ----------------------------------------------------------------------------------------------------------


def find_model(name: str | Path) -> Path:
    """A model file: a path, or the name of a shipped one.

    Raises:
        InputError: neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = {file.stem: file for file in sorted(WEIGHTS.glob("*.safetensors"))}
    if str(name) in shipped:
        return shipped[str(name)]
    raise InputError(f"{name}: no model file, and no shipped model of that name ({', '.join(shipped) or 'none ship'}).")


def read_card(path: Path) -> WeatherCard:
    """The card of a model file.

    Raises:
        InputError: not a model file, or its card is damaged.
    """
    try:
        with safe_open(path, "pt") as f:
            metadata = f.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error}).") from error
    if "card" not in metadata:
        raise InputError(f"{path}: carries no card; a weather model is made by `diffsuite weather fit`.")
    try:
        return WeatherCard.model_validate_json(metadata["card"])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "card"
        raise InputError(f"{path}: no weather model (card field {where}: {first['msg']}).") from error


def load_model(name: str | Path) -> WeatherModel:
    """Read a model file and check that it is whole.

    Raises:
        InputError: unreadable, damaged, or its parts do not fit each other.
    """
    path = find_model(name)
    card = read_card(path)
    with safe_open(path, "pt") as f:
        tensors = {k: f.get_tensor(k).float() for k in f.keys()}  # noqa: SIM118 - safe_open is no mapping
    if not all(bool(v.isfinite().all()) for v in tensors.values()):
        raise InputError(f"{path}: a tensor holds NaN or infinity; the file is damaged.")
    try:
        net = FieldNet(**card.network)
        net.load_state_dict({k.removeprefix("net."): v for k, v in tensors.items() if k.startswith("net.")})
        climate = {k: Climatology.of(_part(tensors, f"climate.{k}."), tuple(card.rain)) for k in card.targets}
        climate.setdefault("member", Climatology.of(_part(tensors, "climate.member."), tuple(card.rain)))
        linear = {
            (step, kind): LinearGaussian(
                tensors["linear.basis"],
                tensors[f"linear.{step}.between"],
                tensors[f"linear.{step}.within"],
                *(tensors[f"linear.{step}.{kind}.{name}"] for name in MOMENTS[2:]),
            )
            for step in range(len(card.leads_hours))
            for kind in card.targets
        }
        fields = tensors["fields"], tensors["fields_season"], tensors["latitude"], tensors["longitude"]
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        raise InputError(f"{path}: the file is incomplete or damaged ({str(error).splitlines()[0]}).") from error
    net = net.eval().requires_grad_(False)
    digest = sha256_file(path)
    return WeatherModel(net, climate, linear, _part(tensors, "baseline."), *fields, card, path, digest)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


# --- does it fit the input? -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """How an input relates to a model.

    Attributes:
        steps: for each lead of the input the model's lead.
        factor, offset: `(C, 1, 1)`, from the input's units to the model's.
        foreign: grid, level or kind of unit are not the model's: only its patterns can be used, not its climatology.
        warnings: sentences.
    """

    steps: NDArray[np.intp]
    factor: Tensor
    offset: Tensor
    foreign: bool
    warnings: list[str]


def compare(model: WeatherModel, seeds: Ensemble) -> Fit:
    """What of the input is outside the model's training.

    Raises:
        InputError: another number of fields per member.
    """
    card = model.card
    if len(seeds.channels) != len(card.variables):
        have, want = ", ".join(c.label for c in seeds.channels), ", ".join(_label(v) for v in card.variables)
        raise InputError(
            f"{seeds.path}: holds the fields {have}, the model {card.name} knows {want}; choose as many with --key."
        )
    reasons: list[str] = []
    factors, offsets, foreign = [], [], False
    for channel, variable in zip(seeds.channels, card.variables, strict=True):
        rule = conversion(channel.units, variable["units"])
        same, level = _same_variable(channel, variable), _same_level(channel, variable)
        if not (same and level and rule is not None):
            reasons.append(
                f"the variable is {channel.label} [{channel.units or 'no unit'}] and not {_label(variable)} "
                f"[{variable['units'] or 'no unit'}]"
            )
        foreign |= rule is None or not level
        factors.append(1.0 if rule is None else rule[0])
        offsets.append(0.0 if rule is None else rule[1])
    if not seeds.grid.same_as(model.grid):
        reasons.append(f"the grid is {seeds.grid.describe()} and not {card.grid}")
        foreign = True
    hours = np.asarray(card.leads_hours)
    steps = np.abs(seeds.lead_hours()[:, None] - hours[None]).argmin(1)
    off = [h for h, s in zip(seeds.lead_hours(), steps, strict=True) if abs(h - hours[s]) > 0.5]
    if off:
        reasons.append(
            f"the lead {', '.join(f'{h:g} h' for h in off[:3])} is not among its leads "
            f"({', '.join(f'{h:g} h' for h in hours[:6])})"
        )
    months = {int(m) for m in (seeds.valid_time().astype("datetime64[M]").astype(int).ravel() % 12 + 1)}
    strange = sorted(months - set(card.season))
    if strange:
        reasons.append(f"the season (month {', '.join(map(str, strange))}) is not in its training data")
    warnings = [f"The model {card.name} was not trained for this input: {reason}." for reason in reasons]
    to_tensor = [torch.tensor(v, dtype=torch.float32)[:, None, None] for v in (factors, offsets)]
    return Fit(steps, to_tensor[0], to_tensor[1], foreign, warnings)


def _label(variable: Mapping[str, Any]) -> str:
    return str(variable["name"]) if variable["level"] is None else f"{variable['name']}@{variable['level']:g}"


@cache
def _synonyms() -> dict[str, str]:
    groups = (
        ("air_pressure_at_mean_sea_level", "air_pressure_at_sea_level", "msl", "slp", "psl", "prmsl", "mslp"),
        ("geopotential", "geopotential_height", "z", "gh", "z500"),
        ("air_temperature", "t", "ta", "temperature"),
        ("precipitation_amount", "pr", "tp", "precip", "precipitation", "rain"),
    )
    return {name: group[0] for group in groups for name in group}


def _same_variable(channel: Channel, variable: Mapping[str, Any]) -> bool:
    """By name or standard name, the usual short names taken for one."""
    names = _synonyms()
    mine = {channel.name, channel.attributes.get("standard_name", channel.name)}
    theirs = {variable["name"], variable.get("standard_name") or variable["name"]}
    return bool({names.get(str(n), str(n)) for n in mine} & {names.get(str(n), str(n)) for n in theirs})


def _same_level(channel: Channel, variable: Mapping[str, Any]) -> bool:
    return None in (channel.level, variable["level"]) or channel.level == variable["level"]
