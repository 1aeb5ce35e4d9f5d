"""Weather from Python: lazy arrays give the members of loaded ones, and only what is needed is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from weather_cases import SMALL, forecast, opened, weather, write

from domains.weather.arrays import as_ensemble, generate
from domains.weather.evaluation import evaluate
from domains.weather.model import WeatherModel, load_model
from suite.errors import InputError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> WeatherModel:
    path = tmp_path_factory.mktemp("arrays")
    archive = write(forecast(), path / "archive.nc")
    words = ("--iterations", "3", "--quiet", *SMALL)
    assert weather("fit", archive, "-o", path / "model.safetensors", *words) == 0
    return load_model(path / "model.safetensors")


def counted(data: xr.DataArray, read: list[int]) -> xr.DataArray:
    """The same values, dask-backed with a chunk for each date that notes its index when it is computed."""
    da = pytest.importorskip("dask.array")

    def block(x: np.ndarray, block_info: dict[int, dict[str, list[tuple[int, int]]]]) -> np.ndarray:
        read.append(block_info[0]["array-location"][data.dims.index("time")][0])
        return x

    chunks = tuple(1 if d == "time" else n for d, n in data.sizes.items())
    return data.copy(data=da.from_array(data.values, chunks=chunks).map_blocks(block, meta=np.empty((), data.dtype)))


@pytest.mark.parametrize("method", ["diffusion", "climatology", "gaussian"])
def test_lazy_seeds_give_the_same_members(model: WeatherModel, method: str) -> None:
    seeds = forecast(members=2, dates=5, seed=9)["t2m"]
    loaded = generate(seeds, model, 6, method=method, batch=4)
    lazy = generate(counted(seeds, []), model, 6, method=method, batch=4)
    assert loaded["t2m"].chunks is None and lazy["t2m"].chunks is not None
    xr.testing.assert_identical(lazy.compute(), loaded)
    assert loaded["t2m"].dims == ("number", "time", "latitude", "longitude") and loaded["t2m"].attrs["units"] == "K"
    np.testing.assert_array_equal(loaded["latitude"], seeds["latitude"])


def test_arrays_and_files_give_the_same_members(model: WeatherModel, tmp_path: Path) -> None:
    seeds = forecast(members=2, dates=3, seed=9)
    write(seeds, tmp_path / "seeds.nc")
    words = ("--model", model.path, "--members", 6, "--batch", 4, "--quiet", "--no-report")
    assert weather("generate", tmp_path / "seeds.nc", "-o", tmp_path / "o.zarr", *words) == 0
    made, file = generate(seeds, model, 6, batch=4), opened(tmp_path / "o.zarr")
    xr.testing.assert_equal(made, file)
    assert set(made.coords) == set(file.coords)


def test_only_the_dates_that_are_asked_for_are_read(model: WeatherModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the call nor a member of one date touches the others; large maps make every date a block of its own."""
    monkeypatch.setattr("domains.weather.pipeline.BLOCK", 1)
    read: list[int] = []
    seeds = counted(forecast(members=2, dates=6, seed=9)["t2m"], read)
    members = generate(seeds, model, 4, method="gaussian")["t2m"]
    assert not read
    assert np.isfinite(members.isel(time=3, number=[0]).values).all()
    assert read == [3]
    assert members.isel(time=slice(1, 3)).values.shape == (4, 2, 4, 5) and sorted(read) == [1, 2, 3]


def test_numbers_and_seeds_are_chosen(model: WeatherModel) -> None:
    data = forecast(members=3, dates=2, seed=9)
    whole = generate(data, model, 9, seeds=2)["t2m"]
    some = generate(data, model, 9, seeds=2, numbers=range(4, 6))["t2m"]
    assert list(some["number"]) == [4, 5]
    np.testing.assert_allclose(some, whole[4:6], rtol=1e-5)
    raw = generate(data["t2m"], None, 50, method="raw")
    np.testing.assert_array_equal(raw["t2m"], data["t2m"])
    with pytest.raises(InputError, match="there are 9 members"):
        generate(data, model, 9, numbers=range(8, 12))
    with pytest.raises(InputError, match="needs a fitted model"):
        generate(data, None)
    with pytest.raises(InputError, match="leaves none"):
        generate(data, None, method="raw", seeds=0)
    with pytest.raises(InputError, match="solvr"):
        generate(data, model, solvr="deis")


@pytest.mark.parametrize("lazy", [False, True])
def test_masks_rings_and_stations(tmp_path: Path, lazy: bool) -> None:
    """A sea with land in it, a ring without coordinates and a station: fitted from files, generated from arrays."""
    if lazy:
        pytest.importorskip("dask.array")
    grid = forecast(members=3, dates=30)["t2m"]
    land = xr.DataArray(np.ones((4, 5), bool), {d: grid[d] for d in ("latitude", "longitude")})
    land[1, 2] = False
    ring = grid.isel(latitude=0, drop=True).drop_vars("longitude").rename(longitude="site_index")
    station = grid.isel(latitude=0, longitude=0, drop=True)
    for name, data, mask in (("sea", grid, land), ("ring", ring, None), ("station", station, None)):
        archive = write((data if mask is None else data.where(mask)).to_dataset(name="t2m"), tmp_path / f"{name}.nc")
        fitted = tmp_path / f"{name}.safetensors"
        assert weather("fit", archive, "-o", fitted, "--iterations", "2", "--quiet", *SMALL) == 0
        seeds = data.isel(number=[0, 1], time=slice(0, 2))
        made = generate(seeds.chunk(time=1) if lazy else seeds, fitted, 3, mask=mask)["t2m"]
        assert made.sizes == {"number": 3, **{d: n for d, n in seeds.sizes.items() if d != "number"}}
        holes = np.isnan(made.values)
        assert not holes.any() if mask is None else (holes == ~mask.values).all()


def test_lazy_forecasts_and_truths_are_verified() -> None:
    data, truth = forecast(members=4, dates=12)["t2m"], forecast(members=1, dates=12)["t2m"].isel(number=0, drop=True)
    loaded = evaluate(as_ensemble(data), as_ensemble(truth), None)
    lazy = evaluate(as_ensemble(counted(data, [])), as_ensemble(counted(truth, [])), None)
    assert lazy["metrics"] == loaded["metrics"] and np.isfinite(loaded["metrics"]["crps"])


def test_what_is_to_be_told_is_a_warning(model: WeatherModel) -> None:
    strange = forecast(members=2, dates=1, rows=6, columns=7)["t2m"].rename("gust").assign_attrs(units="m s-1")
    with pytest.warns(UserWarning, match="was not trained for this input"), pytest.warns(match="not calibrated"):
        made = generate(strange, model, 3)
    assert "not calibrated" in made.attrs["comment"]
    holed = forecast(members=2, dates=1)["t2m"].copy()
    holed[0, 0, 0, 0] = np.nan
    with pytest.warns(UserWarning, match="Missing values"):
        generate(holed, model, 3)


def test_an_array_that_is_no_field_is_refused() -> None:
    with pytest.raises(InputError, match="no variable has an axis"):
        as_ensemble(xr.DataArray(np.zeros(3), dims="x"))
    with pytest.raises(InputError, match="mask"):
        as_ensemble(forecast(), mask=xr.DataArray(np.ones((2, 3), bool), dims=("latitude", "longitude")))
