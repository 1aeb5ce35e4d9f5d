"""Readers: NetCDF, Zarr 2 and 3, GRIB 1 and 2, and the NumPy archives of the test-beds, into an `Ensemble`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from domains.weather.containers import Ensemble
from domains.weather.conventions import conversion, normalise
from suite.errors import InputError
from suite.files import existing, reading

NETCDF = (".nc", ".nc4", ".netcdf", ".cdf", ".h5")
GRIB = (".grib", ".grib1", ".grib2", ".grb", ".grb1", ".grb2")
FORMATS = "NetCDF (.nc), Zarr (.zarr), GRIB (.grib, .grb) or a NumPy archive (.npz)"


def read_ensemble(path: str | Path, key: str | None = None) -> Ensemble:
    """An ensemble forecast, or a truth (then without members), of any supported format.

    Raises:
        InputError: no such file, not readable, no gridded variable, or nothing but NaN.
    """
    path = existing(path, folder=True)
    return normalise(_open(path), path, key)


def _open(path: Path) -> xr.Dataset:
    suffix = path.suffix.lower()
    if is_zarr(path):
        with reading(path, "is no readable Zarr store"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zarr speaks of consolidated metadata that need not exist
            return xr.open_zarr(path, chunks=None)
    if path.is_dir():
        raise InputError(f"{path}: is a folder and no Zarr store; give {FORMATS}.")
    if suffix in NETCDF:
        with reading(path, "is no readable NetCDF file"):
            return xr.open_dataset(path, engine=_netcdf_engine(path))
    if suffix in GRIB:
        from domains.weather.grib import open_grib

        return open_grib(path)
    if suffix == ".npz":
        return _archive(path)
    raise InputError(f"{path}: the format {suffix or 'without suffix'} is not known; give {FORMATS}.")


def is_zarr(path: Path) -> bool:
    """A Zarr store by its marker files."""
    return path.is_dir() and any((path / name).exists() for name in (".zgroup", ".zmetadata", "zarr.json"))


def _netcdf_engine(path: Path) -> str:
    """NetCDF 4 is HDF5; the classic formats are read by SciPy."""
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == b"\x89HDF":
        return "h5netcdf"
    if magic[:3] == b"CDF":
        return "scipy"
    raise InputError(f"{path}: is no NetCDF file (it starts with {magic!r}).")


def _archive(path: Path) -> xr.Dataset:
    """`ens` (date, member, point) or `truth` (date, point) on a ring, integers times `scale`."""
    with reading(path, "is no readable NumPy archive"), np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    scale = float(arrays.get("scale", 1.0))
    out: dict[str, Any] = {}
    if "ens" in arrays and arrays["ens"].ndim == 3:
        out["x"] = (("time", "number", "point"), arrays["ens"] * np.float32(scale))
    if "truth" in arrays and arrays["truth"].ndim == 2:
        out["truth"] = (("time", "point"), arrays["truth"] * np.float32(scale))
    if not out:
        raise InputError(f"{path}: an archive needs `ens` (date, member, point) or `truth` (date, point).")
    dates = len(next(iter(out.values()))[1])
    days = np.datetime64("2000-01-01", "ns") + np.arange(dates) * np.timedelta64(1, "D")
    return xr.Dataset(out, {"time": days}, {"source": path.name})


def read_truth(path: str | Path, like: Ensemble, key: str | None = None) -> Ensemble:
    """The truth of an ensemble: one field per date and lead on the same grid, its dates in the ensemble's order.

    A file that holds both is searched for the variable without members.

    Raises:
        InputError: no variable that fits, another grid, or dates that are missing.
    """
    truth = existing(path, folder=True)
    data = _open(truth)
    names = [c.name for c in like.channels]
    if key is None:
        candidates = {str(n) for n in data.data_vars if data[n].dtype.kind in "fiu" and data[n].ndim}
        same = [n for n in dict.fromkeys(names) if n in candidates]
        plain = [n for n in sorted(candidates) if not {"number", "member", "realization"} & set(data[n].dims)]
        if same and (truth.resolve() != like.path.resolve() or not plain):
            key = ",".join(same)
        elif plain:
            key = ",".join(plain)
    found = normalise(data, truth, key)
    if len(found.channels) != len(like.channels):
        have, want = (", ".join(c.label for c in e.channels) for e in (found, like))
        raise InputError(f"{truth}: holds {have}, and the truth of {want} is needed; choose with --truth-key.")
    if not found.grid.same_as(like.grid):
        raise InputError(f"{truth}: its grid ({found.grid.describe()}) is not the forecast's ({like.grid.describe()}).")
    return found


def matching_dates(forecast: Ensemble, truth: Ensemble) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Indices `(D,)` into the dates of both, for the dates they share.

    Raises:
        InputError: none is shared.
    """
    common, first, second = np.intersect1d(forecast.time, truth.time, return_indices=True)
    if not len(common):
        raise InputError(
            f"{truth.path}: shares no initial time with {forecast.path} ({_span(truth)} against {_span(forecast)})."
        )
    order = np.argsort(first)
    return first[order], second[order]


def truth_values(truth: Ensemble, dates: np.ndarray[Any, Any], forecast: Ensemble) -> np.ndarray[Any, Any]:
    """`(D, S, C, H, W)` of these dates; steps are matched, a truth without a lead serves a single one.

    Raises:
        InputError: steps that do not match, or several members.
    """
    if len(truth.step) == len(forecast.step) == 1:
        index = np.zeros(1, int)
    else:
        index = np.searchsorted(truth.step, forecast.step)
        if (index >= len(truth.step)).any() or (truth.step[index.clip(max=len(truth.step) - 1)] != forecast.step).any():
            raise InputError(
                f"{truth.path}: its leads are not those of {forecast.path}; the truth needs the same `step` axis."
            )
    values = truth.values(dates)
    if values.shape[2] != 1:
        raise InputError(f"{truth.path}: holds {values.shape[2]} members; a truth has one field per date and lead.")
    factor, offset = _conversion(truth, forecast)
    out: np.ndarray[Any, Any] = values[:, index, 0] * factor + offset
    return out


def _conversion(truth: Ensemble, forecast: Ensemble) -> np.ndarray[Any, Any]:
    """Factor and offset `(2, C, 1, 1)` from the truth's units to the forecast's."""
    rules = []
    for mine, theirs in zip(truth.channels, forecast.channels, strict=True):
        rule = conversion(mine.units, theirs.units)
        if rule is None:
            raise InputError(f"{truth.path}: {mine.label} is in {mine.units}, the forecast in {theirs.units}.")
        rules.append(rule)
    return np.asarray(rules, np.float32).T[:, :, None, None]


def _span(ensemble: Ensemble) -> str:
    first, last = (str(t)[:10] for t in (ensemble.time.min(), ensemble.time.max()))
    return f"{len(ensemble.time)} dates from {first} to {last}"


def describe(path: Path, key: str | None = None) -> dict[str, Any]:
    """Facts on a file, for `weather info`."""
    ensemble = read_ensemble(path, key)
    return {
        "file": path.name,
        "kind": "ensemble" if ensemble.has_number else "fields without members",
        "variables": [f"{c.label} [{c.units or 'no unit'}]" for c in ensemble.channels],
        "members": len(ensemble.number) if ensemble.has_number else 0,
        "dates": _span(ensemble),
        "leads_hours": [round(float(h), 3) for h in ensemble.lead_hours()],
        "grid": ensemble.grid.describe(),
        "periodic": ensemble.grid.periodic,
        "poles": ensemble.grid.poles,
        "missing_share": round(float(np.isnan(ensemble.values(slice(0, 1))).mean()), 4),
        "warnings": list(ensemble.warnings),
    }
