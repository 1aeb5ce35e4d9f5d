"""What the weather tests share: calls, a small fitted model, its seeds and its truth."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from cli import main

ROOT = Path(__file__).resolve().parent.parent
SMALL = ("--set", "widths=[8]", "--set", "blocks=1", "--set", "features=16", "--set", "batch=16")


def weather(*words: Any) -> int:
    """`diffsuite weather WORDS`: the exit code."""
    return main(["weather", *map(str, words)])


def record(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def weather_data() -> Path:
    """The folder of real weather data, from DIFFSUITE_DATA or beside the checkout; skips where there is none."""
    folder = Path(os.environ.get("DIFFSUITE_DATA", ROOT.parent / "shared" / "data")) / "weather"
    if not folder.is_dir():
        pytest.skip("no real weather data here (set DIFFSUITE_DATA)")
    return folder


def forecast(members: int = 4, dates: int = 60, rows: int = 4, columns: int = 5, seed: int = 0) -> xr.Dataset:
    """Temperatures with an annual cycle and a signal that the members share; latitudes ascend, longitudes cross 0."""
    rng = np.random.default_rng(seed)
    time = np.datetime64("2001-01-01", "ns") + np.arange(dates) * np.timedelta64(6, "D")
    cycle = 10 * np.sin(2 * np.pi * np.arange(dates) * 6 / 365.25)[:, None, None]
    signal = rng.standard_normal((dates, 1, 1)) + 0.5 * rng.standard_normal((dates, rows, columns))
    values = 280 + cycle + signal + rng.standard_normal((members, dates, rows, columns))
    return xr.Dataset(
        {"t2m": (("number", "time", "latitude", "longitude"), values.astype("f4"), {"units": "K"})},
        {
            "number": np.arange(members),
            "time": time,
            "step": np.timedelta64(48, "h").astype("timedelta64[ns]"),
            "latitude": 40.0 + 2 * np.arange(rows),
            "longitude": -4.0 + 2 * np.arange(columns),
        },
    )


def write(data: xr.Dataset, path: Path) -> Path:
    if path.suffix == ".zarr":
        data.to_zarr(path, zarr_format=3)
    else:
        data.to_netcdf(path, engine="h5netcdf")
    return path


def opened(path: Path) -> xr.Dataset:
    data = xr.open_zarr(path, chunks=None) if path.suffix == ".zarr" else xr.open_dataset(path, engine="h5netcdf")
    return data.load()
