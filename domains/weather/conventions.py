"""Names, orders and units: whatever a file calls its axes, here they are number, time, step, latitude, longitude."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from domains.weather.containers import FIELD_DIMS, Channel, Ensemble, Grid
from suite.errors import InputError

ALIASES = {
    "number": ("number", "member", "realization", "ensemble", "sample", "members", "ens"),
    "time": ("time", "init_time", "initial_time", "forecast_reference_time", "init", "reference_time", "start_date",
             "date"),
    "step": ("step", "lead_time", "prediction_timedelta", "lead", "lead_month", "leadtime", "forecast_period"),
    "latitude": ("latitude", "lat", "rlat", "nav_lat"),
    "longitude": ("longitude", "lon", "rlon", "nav_lon"),
}  # fmt: skip
LEVELS = (
    "isobaricInhPa", "level", "pressure_level", "plev", "pressure", "heightAboveGround", "height", "depth", "hybrid",
    "surface", "meanSea", "depthBelowLandLayer", "isobaricInPa", "lev", "z",
)  # fmt: skip
DROPPED_ATTRIBUTES = ("_FillValue", "missing_value", "scale_factor", "add_offset", "coordinates", "grid_mapping")
HOURS = {"hour": 1.0, "h": 1.0, "hr": 1.0, "day": 24.0, "d": 24.0, "month": 730.5, "minute": 1 / 60, "second": 1 / 3600}


def normalise(data: xr.Dataset, path: Path, key: str | None = None) -> Ensemble:
    """A data set of any of the known conventions as an `Ensemble`.

    Args:
        key: variable (or several, by commas) to take; default: those with the most axes.

    Raises:
        InputError: no gridded variable, an axis that is not understood, or no such variable.
    """
    notes: list[str] = []
    data = _renamed(data, path)
    names = _variables(data, path, key)
    point = _point_dim(data[names[0]], path)
    time, step = _time(data, path, notes), _step(data, path)
    grid = _grid(data[names[0]], point, path)
    channels, arrays = [], []
    for name in names:
        for channel, array in _levels(data[name], path):
            channels.append(channel)
            arrays.append(_shaped(array, point, path))
    has_number = "number" in data[names[0]].dims
    numbers = (
        np.asarray(data["number"].values, np.int64) if _integers(data, has_number) else np.arange(_members(arrays))
    )
    coordinates = {n: data[n] for n in ("time", "step") if n in data.variables}
    attributes = {k: v for k, v in data.attrs.items() if isinstance(v, str | int | float)}
    return Ensemble(
        path,
        tuple(channels),
        tuple(arrays),
        grid,
        time,
        step,
        numbers,
        coordinates,
        attributes,
        has_number,
        tuple(notes),
    )


def _integers(data: xr.Dataset, has_number: bool) -> bool:
    return has_number and "number" in data.variables and data["number"].dtype.kind in "iu"


def _members(arrays: list[xr.DataArray]) -> int:
    return int(arrays[0].sizes["number"])


def _renamed(data: xr.Dataset, path: Path) -> xr.Dataset:
    """Axes and scalar coordinates under their internal names."""
    names = {}
    for ours, others in ALIASES.items():
        found = [n for n in others if n in data.dims] or [n for n in others if n in data.coords and not data[n].dims]
        if found and found[0] != ours:
            if ours in data.variables or ours in data.dims:
                data = data.drop_vars(ours, errors="ignore")
            names[found[0]] = ours
    try:
        return data.rename(names)
    except ValueError as error:
        raise InputError(f"{path}: two axes mean the same ({error}).") from error


def _variables(data: xr.Dataset, path: Path, key: str | None) -> list[str]:
    numeric = [str(n) for n in data.data_vars if data[n].dtype.kind in "fiu" and data[n].ndim and data[n].size]
    if key is not None:
        wanted = [word.strip().split("@")[0] for word in key.split(",")]
        for word in wanted:
            if word not in numeric:
                raise InputError(f"{path}: there is no variable {word!r}; it holds {', '.join(numeric) or 'none'}.")
        return list(dict.fromkeys(wanted))
    fields = [n for n in numeric if any(d in data[n].dims for d in ("time", "number", "latitude", "longitude", "step"))]
    fields = [n for n in fields if not n.endswith(("_bnds", "_bounds"))]
    if not fields:
        raise InputError(f"{path}: no variable has an axis of time, member, latitude or longitude.")
    with_number = [n for n in fields if "number" in data[n].dims]
    best = with_number or fields
    dims = set(data[best[0]].dims) - set(LEVELS)
    same = [n for n in best if set(data[n].dims) - set(LEVELS) == dims and _shape(data[n]) == _shape(data[best[0]])]
    return same


def _shape(array: xr.DataArray) -> dict[Any, int]:
    return {d: n for d, n in array.sizes.items() if d not in LEVELS}


def _point_dim(array: xr.DataArray, path: Path) -> str | None:
    """The one spatial axis that is neither latitude nor longitude, if there is one."""
    others = [str(d) for d in array.dims if d not in FIELD_DIMS and d not in LEVELS]
    if not others:
        return None
    if len(others) > 1 or "latitude" in array.dims or "longitude" in array.dims:
        raise InputError(
            f"{path}: the axis {others[0]!r} of {array.name} is not understood; axes are {', '.join(FIELD_DIMS)} or their "
            "usual other names, a level, or one axis of points"
        )
    return others[0]


def _time(data: xr.Dataset, path: Path, notes: list[str]) -> NDArray[np.datetime64]:
    """Initial times `(D,)`; numbers count days."""
    if "time" not in data.variables:
        notes.append("The file tells no initial time; 2000-01-01 and the days after it are assumed.")
        return np.datetime64("2000-01-01", "ns") + np.arange(data.sizes.get("time", 1)) * np.timedelta64(1, "D")
    values = np.atleast_1d(data["time"].values)
    if values.dtype.kind == "M":
        if np.isnat(values).any():
            raise InputError(f"{path}: an initial time is missing (NaT).")
        return values.astype("datetime64[ns]")
    if values.dtype.kind in "iuf":
        notes.append("The initial times are plain numbers; they are taken as days from 2000-01-01.")
        return np.datetime64("2000-01-01", "ns") + (values * 86400e9).astype("timedelta64[ns]")
    raise InputError(f"{path}: the initial times are neither dates nor numbers ({values.dtype}).")


def _step(data: xr.Dataset, path: Path) -> NDArray[np.timedelta64]:
    """Leads `(S,)`; numbers count hours unless their units or name say otherwise."""
    if "step" not in data.variables:
        return np.arange(data.sizes.get("step", 1)) * np.timedelta64(1, "h").astype("timedelta64[ns]")
    coordinate = data["step"]
    values = np.atleast_1d(coordinate.values)
    if values.dtype.kind == "m":
        return values.astype("timedelta64[ns]")
    if values.dtype.kind not in "iuf":
        raise InputError(f"{path}: the leads are neither time differences nor numbers ({values.dtype}).")
    words = str(coordinate.attrs.get("units", "hours")).lower().rstrip("s").split()
    hours = HOURS.get(words[0] if words else "", 1.0)
    return (values * hours * 3.6e12).astype("timedelta64[ns]")


def _grid(array: xr.DataArray, point: str | None, path: Path) -> Grid:
    """The grid in internal order, with the way back."""
    if point is not None:
        size = array.sizes[point]
        degrees = np.arange(size) * 360.0 / size
        ring = point.lower() not in ("station", "stations", "site", "location", "station_id")
        longitude = degrees if ring else np.arange(size, dtype=np.float64)
        return Grid(np.zeros(1), longitude, np.arange(1), np.arange(size), None, None, point)
    values: dict[str, NDArray[np.float64] | None] = {}
    for name in ("latitude", "longitude"):
        if name not in array.coords:
            values[name] = None if name not in array.dims else np.arange(array.sizes[name], dtype=np.float64)
            if name in array.dims and name == "longitude":  # an axis without values: a whole circle
                values[name] = np.arange(array.sizes[name]) * 360.0 / array.sizes[name]
            continue
        if array[name].ndim > 1:
            raise InputError(f"{path}: {name} is two-dimensional; only regular latitude-longitude grids are read.")
        found = np.atleast_1d(np.asarray(array[name].values, np.float64))
        if not np.isfinite(found).all() or (name == "latitude" and np.abs(found).max() > 90.001):
            raise InputError(f"{path}: {name} holds values that are no degrees.")
        if len(np.unique(found)) != len(found):
            raise InputError(f"{path}: {name} holds a value twice.")
        values[name] = found
    latitude = np.zeros(1) if values["latitude"] is None else values["latitude"]
    longitude = np.zeros(1) if values["longitude"] is None else values["longitude"]
    rows = np.argsort(-latitude, kind="stable")
    columns, unrolled = _unrolled(longitude)
    return Grid(latitude[rows], unrolled, rows, columns, values["latitude"], values["longitude"])


def _unrolled(longitude: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Order and values of the longitudes, ascending from behind the widest gap."""
    turn = np.round(longitude % 360, 6) % 360
    order = np.argsort(turn, kind="stable")
    ordered = turn[order]
    gaps = np.diff(np.concatenate([ordered, ordered[:1] + 360]))
    first = (int(gaps.argmax()) + 1) % len(order) if np.ptp(gaps) > 1e-3 else 0
    order = np.roll(order, -first)
    values = turn[order]
    return order, np.where(values < values[0], values + 360, values)


def _levels(array: xr.DataArray, path: Path) -> list[tuple[Channel, xr.DataArray]]:
    """One channel for each level of a variable."""
    attributes = {
        k: v for k, v in array.attrs.items() if k not in DROPPED_ATTRIBUTES and not k.startswith(("GRIB_", "_"))
    }
    units = str(array.attrs.get("units", ""))
    name = str(array.name)
    axes = [str(d) for d in array.dims if d in LEVELS]
    if len(axes) > 1:
        raise InputError(f"{path}: {name} has two axes of levels, {axes[0]} and {axes[1]}.")
    if axes:
        levels = array[axes[0]].values if axes[0] in array.coords else np.arange(array.sizes[axes[0]])
        return [
            (Channel(name, float(v), axes[0], units, attributes, True), array.isel({axes[0]: i}))
            for i, v in enumerate(levels)
        ]
    if "_level" in array.attrs:  # of a GRIB message
        kind = str(array.attrs["_level_dim"])
        return [(Channel(name, float(array.attrs["_level"]), kind, units, attributes), array)]
    scalars = [n for n in LEVELS if n in array.coords and not array[n].dims and array[n].dtype.kind in "iuf"]
    level = float(array[scalars[0]]) if scalars and scalars[0] not in ("surface", "meanSea") else None
    return [(Channel(name, level, scalars[0] if level is not None else None, units, attributes), array)]


def _shaped(array: xr.DataArray, point: str | None, path: Path) -> xr.DataArray:
    """Exactly the dims `FIELD_DIMS`; a missing axis gets length 1."""
    if point is not None:
        array = array.rename({point: "longitude"})
    array = array.drop_vars(list(array.coords), errors="ignore")
    missing = [d for d in FIELD_DIMS if d not in array.dims]
    if array.size == 0:
        raise InputError(f"{path}: {array.name} is empty.")
    return array.expand_dims(missing).transpose(*FIELD_DIMS)


# --- units ------------------------------------------------------------------------------------------------------------

_SPELLINGS = {
    "hpa": "hPa", "mbar": "hPa", "millibar": "hPa", "mb": "hPa", "pa": "Pa", "k": "K", "kelvin": "K", "degc": "degC",
    "celsius": "degC", "c": "degC", "degreescelsius": "degC", "m2s-2": "m2 s-2", "m^2s^-2": "m2 s-2", "m2/s2": "m2 s-2",
    "gpm": "m", "m": "m", "ms-1": "m s-1", "m/s": "m s-1", "mm": "mm", "mmday-1": "mm day-1", "mm/day": "mm day-1",
    "mmd-1": "mm day-1", "kgm-2s-1": "kg m-2 s-1", "mm(6h)-1": "mm (6 h)-1", "kgkg-1": "kg kg-1", "kg/kg": "kg kg-1",
    "1": "1", "": "",
}  # fmt: skip
_FACTORS = {
    ("hPa", "Pa"): (100.0, 0.0), ("degC", "K"): (1.0, 273.15), ("m2 s-2", "m"): (1 / 9.80665, 0.0),
    ("kg m-2 s-1", "mm day-1"): (86400.0, 0.0), ("mm (6 h)-1", "mm day-1"): (4.0, 0.0), ("cm", "m"): (0.01, 0.0),
}  # fmt: skip


def canonical(units: str) -> str:
    """A unit in one spelling."""
    compact = units.replace("**", "").replace(" ", "").replace("·", "").lower()
    return _SPELLINGS.get(compact, units.strip())


def conversion(have: str, want: str) -> tuple[float, float] | None:
    """`(factor, offset)` from one unit to another, None where they do not measure the same."""
    a, b = canonical(have), canonical(want)
    if a == b or not a or not b:
        return 1.0, 0.0
    if (a, b) in _FACTORS:
        return _FACTORS[a, b]
    if (b, a) in _FACTORS:
        factor, offset = _FACTORS[b, a]
        return 1 / factor, -offset / factor
    return None
