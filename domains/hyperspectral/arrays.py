"""Files that are a set of named arrays (npz, MATLAB, HDF5): which one is the cube, and what the others say about it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suite.errors import InputError

_GOOD = ("good_wavelengths", "good_bands", "good", "bbl")


def pick(path: Path, shapes: Mapping[str, tuple[int, ...]], key: str | None) -> str:
    """The name of the cube: `key`, or the only array of three axes longer than 1.

    Raises:
        InputError: no such name, no such array, or several.
    """
    listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "none"
    if key is not None:
        if key not in shapes:
            raise InputError(f"{path}: holds no array '{key}'; its arrays are: {listed}.")
        if len(shapes[key]) != 3:
            raise InputError(f"{path}: '{key}' has the shape {shapes[key]}; (rows, columns, bands) is needed.")
        return key
    cubes = [name for name, shape in shapes.items() if len(shape) == 3 and min(shape) > 1]
    if len(cubes) > 1:
        raise InputError(f"{path}: holds several cubes; choose one with --key: {', '.join(cubes)}.")
    if not cubes:
        raise InputError(f"{path}: holds no array of (rows, columns, bands); its arrays are: {listed}.")
    return cubes[0]


def nanometres(values: NDArray[Any], unit: str = "") -> NDArray[np.float64]:
    """Wavelengths in nm; without a unit that is known, values below 100 are micrometres (no sensor sees less than 100 nm)."""
    array = np.asarray(values, dtype=np.float64).ravel()
    unit = unit.strip().lower()
    micro = unit.startswith(("um", "µm", "micro")) or (not unit.startswith(("nm", "nano")) and array.max() < 100)
    return array * 1000 if micro else array


def band_facts(named: Mapping[str, Any], bands: int) -> dict[str, Any]:
    """`wavelengths`, `fwhm` and `good` of a `Cube` among arrays by name, recognised by their names and their length.

    A name may be a path in a file; a unit stands at its end (`wavelength_um`).
    """
    found: dict[str, Any] = {}
    for name, value in named.items():
        array = np.asarray(value)
        last = name.rsplit("/", 1)[-1].lower()
        if array.size != bands or array.dtype.kind not in "iufb" or max(array.shape, default=0) != bands:
            continue
        unit = next((u for u in ("um", "nm") if last.endswith(f"_{u}")), "")
        if last.startswith(("wavelength", "wave_", "wl", "lambda")):
            found["wavelengths"] = nanometres(array, unit)
        elif last.startswith("fwhm"):
            found["fwhm"] = nanometres(array, unit or ("um" if array.max() < 1 else "nm"))
        elif last in _GOOD:
            found["good"] = array.ravel() != 0
    return found


def maps(named: Mapping[str, Any], shape: tuple[int, int]) -> dict[str, NDArray[Any]]:
    """The variables of the scene's size, by name: masks, anomaly and class maps."""
    arrays = {name: np.asarray(value) for name, value in named.items()}
    return {name: array for name, array in arrays.items() if array.shape == shape and array.dtype.kind in "iufb"}


def outside_mask(named: Mapping[str, Any], shape: tuple[int, int]) -> NDArray[np.bool_] | None:
    """Pixels that a variable `mask...` or `valid...` of the cube's size gives as 0: no data. None where there is none."""
    for name, value in named.items():
        array = np.asarray(value)
        if name.lower().startswith(("mask", "valid")) and array.shape == shape and array.dtype.kind in "iufb":
            outside: NDArray[np.bool_] = array == 0
            return outside if outside.any() and not outside.all() else None
    return None
