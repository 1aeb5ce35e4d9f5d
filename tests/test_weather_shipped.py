"""The shipped weather models: cards as the command writes them, and the promises on seeds and members."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
import yaml
from pydantic import BaseModel
from weather_cases import ROOT

from domains.weather.arrays import generate
from domains.weather.model import WEIGHTS, WeatherModel, load_model
from domains.weather.pipeline import GenerateConfig
from domains.weather.preparation import FitConfig
from suite.config import MainConfig, load_config

NAMES = sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def seeds_of(model: WeatherModel, dates: int = 2) -> xr.DataArray:
    """Two members of a winter's days, white about the model's own climatology, in its order of points."""
    time = np.datetime64("2007-01-05", "ns") + np.arange(dates) * np.timedelta64(9, "D")
    lead = np.timedelta64(round(model.card.leads_hours[0]), "h").astype("timedelta64[ns]")
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(dates, 2, 1, *model.fields.shape[2:], generator=rng)
    values = model.climate["member"].restore(noise, time + lead, 0)[:, :, 0].numpy()
    variable = model.card.variables[0]
    attributes = {"units": variable["units"], "standard_name": variable["standard_name"] or variable["name"]}
    shared = {"time": time, "step": lead, "number": [0, 1]}
    if len(model.latitude) == 1:
        return xr.DataArray(values[:, :, 0], shared, ("time", "number", "point"), variable["name"], attributes)
    space = {"latitude": model.latitude.numpy().astype(float), "longitude": model.longitude.numpy().astype(float)}
    dims = ("time", "number", "latitude", "longitude")
    return xr.DataArray(values, {**shared, **space}, dims, variable["name"], attributes)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("error::UserWarning")  # its own grid, variable, season and lead: nothing to tell
def test_order_of_seeds_and_company_of_members_change_nothing(name: str) -> None:
    model = load_model(name)
    seeds = seeds_of(model)
    whole = generate(seeds, model, 5)[seeds.name]
    swapped = generate(seeds.isel(number=[1, 0]).assign_coords(number=[0, 1]), model, 5, batch=2)[seeds.name]
    alone = generate(seeds, model, 5, numbers=range(3, 4))[seeds.name]
    size = float(abs(whole).max())
    assert float(abs(swapped - whole).max()) < 1e-5 * size and float(abs(alone - whole[3:4]).max()) < 1e-5 * size
    best = generate(seeds, model, 5, method="dressing", dressing="best-member")[seeds.name]
    assert np.isfinite(best).all() and float(best.std("number").mean()) > 0


@pytest.mark.parametrize("name", NAMES)
def test_cards_are_those_of_the_config(name: str) -> None:
    card = load_model(name).card
    config = yaml.safe_load((ROOT / "configs" / "weather" / f"{name}.yaml").read_text())
    assert card.training["command"].startswith("diffsuite weather fit ") and card.name == name
    assert card.training["steps"] == config["steps"] and card.network["widths"] == config["widths"]
    assert card.description == config["description"] and set(config["limits"]) <= set(card.limits)
    assert any("never for a real forecast" in limit for limit in card.limits)
    assert "development dates" in card.validation["spread_fitted_on"] and all(0.5 <= s <= 2 for s in card.spread)


@pytest.mark.parametrize(("name", "config"), [("fit", FitConfig), ("generate", GenerateConfig)])
def test_written_defaults_are_the_defaults(name: str, config: type[BaseModel]) -> None:
    written = load_config(config, ROOT / "configs" / "weather" / f"{name}.yaml")
    assert written == config()
    shared = set(MainConfig.model_fields)  # settings of every domain, which a weather config need not repeat
    assert set(config.model_fields) - written.model_fields_set <= shared
