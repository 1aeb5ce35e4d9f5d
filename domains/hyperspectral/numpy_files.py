"""`.npy` and `.npz`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from domains.hyperspectral.arrays import band_facts, maps, outside_mask, pick
from domains.hyperspectral.containers import Cube
from suite.errors import InputError


def read_npy(path: Path, key: str | None = None) -> Cube:
    """The array, as a memory map."""
    if key is not None:
        raise InputError(f"{path}: holds one array without a name; leave out --key.")
    _starts(path, b"\x93NUMPY")
    return Cube(np.load(path, mmap_mode="r", allow_pickle=False), kind="npy", source=path)


def read_npz(path: Path, key: str | None = None) -> Cube:
    """The cube, and wavelengths, good bands and a mask where the file holds them."""
    _starts(path, b"PK")
    with np.load(path, allow_pickle=False) as file:
        named = {name: file[name] for name in file.files}
    name = pick(path, {name: array.shape for name, array in named.items()}, key)
    data = named.pop(name)
    facts = band_facts(named, data.shape[2])
    nodata = named.get("nodata")
    return Cube(
        data,
        **facts,
        nodata=float(nodata) if nodata is not None and nodata.ndim == 0 else None,
        outside=outside_mask(named, data.shape[:2]),
        kind="npz",
        key=name,
        layout={"maps": maps(named, data.shape[:2])},
        source=path,
    )


def _starts(path: Path, magic: bytes) -> None:
    """np.load takes other content for a pickle, and says how to load it."""
    with path.open("rb") as file:
        if file.read(len(magic)) != magic:
            raise InputError(f"{path}: is not a readable {path.suffix} cube (NumPy did not write it)")


def write_npy(_cube: Cube, values: NDArray[Any], path: Path) -> list[Path]:
    np.save(path, values)
    return [path]


def write_npz(cube: Cube, values: NDArray[Any], path: Path) -> list[Path]:
    """The source's arrays with the cube replaced; of another format the cube and what is known of its bands."""
    named: dict[str, Any] = {}
    if cube.source is not None and cube.kind == "npz":
        with np.load(cube.source, allow_pickle=False) as file:
            named |= {name: file[name] for name in file.files if name != cube.key}
    else:
        about = {"wavelength_nm": cube.wavelengths, "fwhm_nm": cube.fwhm, "good_wavelengths": cube.good}
        named |= {name: array for name, array in about.items() if array is not None}
        if cube.outside is not None:
            named["mask"] = ~cube.outside
    named[cube.key or "cube"] = values
    np.savez_compressed(path, **named)
    return [path]
