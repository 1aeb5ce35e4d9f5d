"""NetCDF-4 and other HDF5 files: EMIT's layout, plain variables with a band dimension, and MATLAB 7.3.

EMIT L2A (github.com/nasa/EMIT-Data-Resources): root variable `reflectance` (downtrack, crosstrack, bands), group
`sensor_band_parameters` (wavelengths, fwhm, good_wavelengths), group `location` (lon, lat, glt_x, glt_y), fill value -9999.
A result is a copy of the file with the numbers of one variable replaced, so that all else is kept.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.io import netcdf_file

from domains.hyperspectral.arrays import band_facts, nanometres, outside_mask, pick
from domains.hyperspectral.containers import Cube
from suite.errors import InputError

_BANDS = ("band", "bands", "wavelength", "wavelengths", "channel", "lambda")


def read_netcdf(path: Path, key: str | None = None) -> Cube:
    """The cube of a NetCDF file (version 3 or 4)."""
    with path.open("rb") as file:
        classic = file.read(3) == b"CDF"
    if classic:
        with netcdf_file(path, mmap=False) as old:
            data = {name: v.data for name, v in old.variables.items()}
            attributes = {n: {k: _attribute(a) for k, a in v._attributes.items()} for n, v in old.variables.items()}
            dims = {name: tuple(v.dimensions) for name, v in old.variables.items()}
        return _cube(path, data, attributes, dims, key, "netcdf3")
    with h5py.File(path, "r") as new:
        found: dict[str, h5py.Dataset] = {}
        new.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
        shapes = {name: item.shape for name, item in found.items() if item.dtype.kind in "iufb"}
        chosen = pick(path, shapes, key)
        small = {name: item[()] for name, item in found.items() if name in shapes and item.ndim <= 2}
        attributes = {name: {k: _attribute(v) for k, v in found[name].attrs.items()} for name in shapes}
        dims = {chosen: _dimensions(found[chosen])}
        return _cube(path, small | {chosen: found[chosen][()]}, attributes, dims, chosen, "netcdf")


def _attribute(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    array = np.asarray(value)
    return array.ravel()[0] if array.size == 1 else value


def _dimensions(dataset: h5py.Dataset) -> tuple[str, ...]:
    """Names of the dimension scales, as far as there are some."""
    return tuple(next((scale.name.rsplit("/", 1)[-1] for scale in dim.values()), "") for dim in dataset.dims)


def _cube(
    path: Path,
    named: dict[str, Any],
    attributes: dict[str, dict[str, Any]],
    dims: dict[str, tuple[str, ...]],
    key: str | None,
    kind: str,
) -> Cube:
    name = pick(path, {n: np.shape(v) for n, v in named.items()}, key)
    stored = np.asarray(named.pop(name))
    axis = _band_axis(path, stored.shape, dims.get(name, ()), named)
    others = tuple(i for i in range(3) if i != axis)
    axes = (others[0], others[1], axis)
    about = attributes.get(name, {})
    facts = band_facts(named, stored.shape[axis])
    for other, value in named.items():  # the unit that the file itself gives
        unit = str(attributes.get(other, {}).get("units", ""))
        if unit and other.rsplit("/", 1)[-1].lower().startswith("wavelength") and np.size(value) == stored.shape[axis]:
            facts["wavelengths"] = nanometres(value, unit)
    fill = about.get("_FillValue", about.get("missing_value"))
    data = stored.transpose(axes)
    return Cube(
        data,
        **facts,
        nodata=None if fill is None or not np.isfinite(fill) else float(fill),
        outside=outside_mask(named, data.shape[:2]),
        scale=float(about.get("scale_factor", 1.0)),
        offset=float(about.get("add_offset", 0.0)),
        kind=kind,
        key=name,
        axes=axes,
        facts={k: v for k, v in about.items() if isinstance(v, str | int | float | np.number)},
        source=path,
    )


def _band_axis(path: Path, shape: tuple[int, ...], dims: tuple[str, ...], named: dict[str, Any]) -> int:
    """By the dimension's name, else by the length of a list of wavelengths, else the last."""
    for axis, name in enumerate(dims):
        if name.lower() in _BANDS:
            return axis
    lengths = [axis for axis in range(3) if "wavelengths" in band_facts(named, shape[axis])]
    if len(lengths) > 1:
        raise InputError(f"{path}: has the shape {shape} and does not tell which axis holds the bands.")
    return lengths[0] if lengths else 2


def write_netcdf(cube: Cube, values: NDArray[Any], path: Path) -> list[Path]:
    """A copy of the source with the cube's numbers replaced."""
    assert cube.source is not None
    shutil.copyfile(cube.source, path)
    stored = values.transpose(tuple(cube.axes.index(axis) for axis in range(3)))
    if cube.kind == "netcdf3":
        with netcdf_file(path, mode="a", mmap=False) as old:
            old.variables[cube.key].data[:] = stored
        return [path]
    with h5py.File(path, "r+") as new:
        new[cube.key][...] = stored
    return [path]
