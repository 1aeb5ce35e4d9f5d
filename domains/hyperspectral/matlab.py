"""MATLAB files: level 5 by the suite's own reader, 7.3 (HDF5, axes reversed) by h5py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.io import savemat

from domains.hyperspectral.arrays import band_facts, maps, outside_mask, pick
from domains.hyperspectral.containers import Cube
from domains.hyperspectral.netcdf import write_netcdf
from suite.mat5 import read_mat5, replace_variable


def read_matlab(path: Path, key: str | None = None) -> Cube:
    """The cube of a `.mat` file; of 7.3 (h5py), level 5 otherwise."""
    if h5py.is_hdf5(path):
        with h5py.File(path, "r") as file:
            shapes = {
                n: v.shape[::-1] for n, v in file.items() if isinstance(v, h5py.Dataset) and v.dtype.kind in "iufb"
            }
            name = pick(path, shapes, key)
            named = {n: file[n][()].T for n in shapes if len(shapes[n]) <= 2 or n == name}
        kind, axes = "mat73", (2, 1, 0)
    else:
        variables = read_mat5(path)
        named = {n: v for n, v in variables.items() if isinstance(v, np.ndarray) and v.dtype.kind in "iufb"}
        name = pick(path, {n: v.shape for n, v in named.items()}, key)
        kind, axes = "mat", (0, 1, 2)
    data = named.pop(name)
    return Cube(
        data,
        **band_facts(named, data.shape[2]),
        outside=outside_mask(named, data.shape[:2]),
        kind=kind,
        key=name,
        axes=axes,
        layout={"maps": maps(named, data.shape[:2])},
        source=path,
    )


def write_matlab(cube: Cube, values: NDArray[Any], path: Path) -> list[Path]:
    """The source with the cube replaced and every other variable as it was; without a MATLAB source a new file."""
    if cube.kind == "mat73" and values.dtype == cube.data.dtype:
        return write_netcdf(cube, values, path)
    if cube.kind == "mat" and values.dtype == cube.data.dtype and cube.source is not None:
        replace_variable(cube.source, path, cube.key, values)
        return [path]
    named: dict[str, Any] = {cube.key or "data": values}
    for name in ("wavelengths", "fwhm"):
        if getattr(cube, name) is not None:
            named[name] = getattr(cube, name)
    if cube.good is not None:
        named["good_wavelengths"] = cube.good.astype(np.uint8)
    if cube.outside is not None:
        named["mask"] = (~cube.outside).astype(np.uint8)
    savemat(path, named, do_compression=True)
    return [path]
