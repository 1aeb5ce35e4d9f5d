"""Every file format behind one door: `read_cube`, `write_cube`, `describe`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from domains.hyperspectral.containers import Cube, checked
from domains.hyperspectral.envi import read_envi, write_envi
from domains.hyperspectral.geotiff import read_geotiff, write_geotiff
from domains.hyperspectral.matlab import read_matlab, write_matlab
from domains.hyperspectral.netcdf import read_netcdf, write_netcdf
from domains.hyperspectral.numpy_files import read_npy, read_npz, write_npy, write_npz
from domains.hyperspectral.prisma import read_prisma, write_prisma
from suite.errors import InputError
from suite.files import existing, reading

READERS: dict[str, Callable[[Path, str | None], Cube]] = {
    ".hdr": read_envi,
    ".mat": read_matlab,
    ".nc": read_netcdf,
    ".nc4": read_netcdf,
    ".tif": read_geotiff,
    ".tiff": read_geotiff,
    ".npz": read_npz,
    ".npy": read_npy,
    ".he5": read_prisma,
}
WRITERS: dict[str, Callable[[Cube, NDArray[Any], Path], list[Path]]] = {
    "envi": write_envi,
    "mat": write_matlab,
    "mat73": write_matlab,
    "netcdf": write_netcdf,
    "netcdf3": write_netcdf,
    "geotiff": write_geotiff,
    "npz": write_npz,
    "npy": write_npy,
    "prisma": write_prisma,
}
NEW: dict[str, Callable[[Cube, NDArray[Any], Path], list[Path]]] = {
    ".hdr": write_envi,
    ".mat": write_matlab,
    ".npz": write_npz,
    ".npy": write_npy,
}
"""Formats in which a cube that came from another one can be written."""


def read_cube(path: Path, key: str | None = None) -> Cube:
    """The cube of a file of any known format.

    Raises:
        InputError: no such file, another format, a damaged one, or no usable cube in it.
    """
    path = existing(path)
    suffix = path.suffix.lower()
    if suffix not in READERS and path.with_name(path.name + ".hdr").exists():
        path, suffix = path.with_name(path.name + ".hdr"), ".hdr"
    elif suffix not in READERS and path.with_suffix(".hdr").exists():
        path, suffix = path.with_suffix(".hdr"), ".hdr"
    if suffix not in READERS:
        raise InputError(f"{path}: is no cube this reads; one of {', '.join(READERS)} is needed (of ENVI the .hdr).")
    with reading(path, f"is not a readable {suffix} cube"):
        return checked(READERS[suffix](path, key))


def input_files(cube: Cube) -> list[Path]:
    """The files behind a cube: of ENVI both."""
    assert cube.source is not None
    return [cube.source, cube.layout["raw"]] if cube.kind == "envi" else [cube.source]


def write_like(cube: Cube, values: NDArray[Any], path: Path) -> list[Path]:
    """Write `values` `(rows, columns, bands)` as the source was: format, type, key, axes, metadata, other variables.

    Whole numbers are rounded and kept within the range of their type.
    """
    return WRITERS[cube.kind](cube, fit(values, cube.data.dtype), path)


def write_new(cube: Cube, values: NDArray[Any], path: Path) -> list[Path]:
    """Write `values` with what is known of the bands, in the format that the ending of `path` names.

    Raises:
        InputError: a format in which no new file is written.
    """
    suffix = path.suffix.lower()
    if suffix not in NEW:
        raise InputError(f"{path}: a new cube is written as {', '.join(NEW)}; choose such a name.")
    return NEW[suffix](cube, values, path)


def fit(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Values in another type, rounded and clipped where it holds whole numbers."""
    if dtype.kind == "f" or values.dtype == dtype:
        return values.astype(dtype, copy=False)
    limits = np.iinfo(dtype)
    out = np.empty(values.shape, dtype)
    for row, block in enumerate(values):
        out[row] = np.clip(np.rint(np.nan_to_num(block)), limits.min, limits.max)
    return out


def describe(path: Path, key: str | None = None) -> dict[str, Any]:
    """What is in a file, for `info`."""
    cube = read_cube(path, key)
    rows, columns, bands = cube.shape
    some = cube.values(slice(0, rows, max(1, rows * columns * bands // 20_000_000)))
    empty = ~np.isfinite(some).any((0, 1))
    facts: dict[str, Any] = {
        "file": path.name,
        "format": cube.kind,
        "key": cube.key or None,
        "rows": rows,
        "columns": columns,
        "bands": bands,
        "type": str(cube.data.dtype),
        "range": [float(np.nanmin(some)), float(np.nanmax(some))],
        "scale": cube.scale,
        "offset": cube.offset,
        "no_data_value": cube.nodata,
        "no_data_pixels": float((~np.isfinite(some)).all(2).mean()),
        "wavelengths_nm": None if cube.wavelengths is None else [float(w) for w in cube.wavelengths[[0, -1]]],
        "bad_bands": 0 if cube.good is None else int((~cube.good).sum()),
        "empty_bands": int(empty.sum()),
        "warnings": list(cube.warnings),
    }
    return facts | {f"header: {name}": value for name, value in cube.facts.items() if name not in facts}
