"""Cines in NumPy and MATLAB files."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
from numpy.typing import NDArray

from domains.ultrasound.containers import Cine, Layout, guess_domain
from suite.errors import InputError
from suite.files import existing, reading
from suite.mat5 import read_mat5, replace_variable

HAZY = ("cluttered", "hazy", "noisy", "input", "cine", "frames", "data", "rf", "iq", "bmode")
CLEAN = ("clean", "reference", "dehazed", "tissue", "ground_truth")


def npz_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of an `.npz` file."""
    with reading(path, "is not a readable .npz file"), np.load(existing(path), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def npz_cines(path: Path) -> dict[str, NDArray[Any]]:
    """Those arrays of an `.npz` file that have the shape of a picture or a cine."""
    return {name: a for name, a in npz_arrays(path).items() if a.ndim in (2, 3) and min(a.shape[-2:]) >= 8}


def choose(arrays: Mapping[str, NDArray[Any]], key: str | None, path: Path, prefer: tuple[str, ...] = HAZY) -> str:
    """Which array: the one asked for, the only one, or the first of the usual names.

    Raises:
        InputError: there is none, none of that name, or several and no usual name.
    """
    names = [name for name, a in arrays.items() if a.ndim in (2, 3) and a.dtype.kind in "iufc" and min(a.shape) >= 1]
    big = [name for name in names if sorted(arrays[name].shape)[-2] >= 8]
    if key is not None:
        if key not in names:
            raise InputError(f"{path}: holds no cine '{key}'; it holds {', '.join(names) or 'none'}.")
        return key
    if len(big) == 1:
        return big[0]
    found = next((name for wanted in prefer for name in big if name.lower() == wanted), None)
    if found is None:
        raise InputError(f"{path}: holds {', '.join(big) or 'no picture or cine'}; name one with --key.")
    return found


def read_npz(path: Path, key: str | None, prefer: tuple[str, ...] = HAZY) -> Cine:
    """A cine `(frame, row, column)` or picture `(row, column)`; `fps`, `frame_time_ms`, `domain`, `dynamic_range_db` count."""
    arrays = npz_arrays(path)
    name = choose(arrays, key, path, prefer)
    return _cine(arrays[name], path, "npz", name, arrays, frames_last=False)


def read_npy(path: Path) -> Cine:
    """A bare array `(frame, row, column)` or `(row, column)`."""
    with reading(path, "is not a readable .npy file"):
        array = np.load(existing(path), allow_pickle=False)
    return _cine(array, path, "npy", None, {}, frames_last=False)


def read_mat(path: Path, key: str | None, prefer: tuple[str, ...] = HAZY) -> Cine:
    """A MATLAB variable `(row, column, frame)` or `(row, column)`, of version 5 to 7.3."""
    with reading(path, "is not a readable MATLAB file"):
        arrays = _hdf5_variables(path) if h5py.is_hdf5(path) else _mat5_variables(path)
    name = choose(arrays, key, path, prefer)
    return _cine(arrays[name], path, "mat", name, arrays, frames_last=True)


def _mat5_variables(path: Path) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {}
    for name, value in read_mat5(path).items():
        if isinstance(value, np.ndarray):
            found[name] = value
        elif isinstance(value, dict):
            found |= {f"{name}.{k}": v for k, v in value.items() if isinstance(v, np.ndarray)}
    return found


def _hdf5_variables(path: Path) -> dict[str, NDArray[Any]]:
    """Variables of a version 7.3 file, its axes as MATLAB shows them."""
    with h5py.File(path, "r") as file:
        found = {}
        for name, value in file.items():
            if isinstance(value, h5py.Dataset) and value.ndim in (2, 3):
                array = value[()]
                found[name] = (array["real"] + 1j * array["imag"] if array.dtype.names else array).T
        return found


def _cine(
    array: NDArray[Any], path: Path, kind: str, key: str | None, others: Mapping[str, Any], *, frames_last: bool
) -> Cine:
    if array.ndim not in (2, 3):
        raise InputError(f"{path}: an array of shape {array.shape} is no cine; (frame, row, column) is needed.")
    layout = (
        Layout(0, 1, 2) if frames_last and array.ndim == 3 else Layout(1, 2, 0) if array.ndim == 3 else Layout(0, 1)
    )
    domain, black, white = guess_domain(array, str(path))
    told = _scalar(others, "domain")
    db, fps, frame_time = (_number(others, name) for name in ("dynamic_range_db", "fps", "frame_time_ms"))
    if told in ("grey", "envelope", "rf", "iq"):
        domain = told
    return Cine(
        layout.take(array).astype(np.complex64 if array.dtype.kind == "c" else np.float32),
        domain,
        kind,
        path,
        layout,
        array.dtype,
        black,
        white,
        dynamic_range_db=db or 60.0,
        dynamic_range_known=db is not None,
        frame_time_ms=frame_time or (1000 / fps if fps else None),
        key=key,
        facts={"arrays": {name: list(a.shape) for name, a in others.items() if isinstance(a, np.ndarray) and a.ndim}},
    )


def _scalar(others: Mapping[str, Any], name: str) -> Any:
    value = others.get(name)
    return value.item() if isinstance(value, np.ndarray) and value.size == 1 else None


def _number(others: Mapping[str, Any], name: str) -> float | None:
    value = _scalar(others, name)
    return float(value) if isinstance(value, int | float) and value > 0 else None


def write_npz(cine: Cine, data: NDArray[Any], path: Path) -> None:
    """The source file with this array replaced, all others as they are."""
    arrays = npz_arrays(cine.source)
    arrays[str(cine.key)] = cine.stored(data)
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def write_npy(cine: Cine, data: NDArray[Any], path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, cine.stored(data))


def write_mat(cine: Cine, data: NDArray[Any], path: Path) -> None:
    """The source file with this variable replaced, all others as they are."""
    stored, name = cine.stored(data), str(cine.key)
    if h5py.is_hdf5(cine.source):
        shutil.copyfile(cine.source, path)
        with h5py.File(path, "r+") as file:
            kept = file[name]
            if kept.dtype.names:
                pair = np.empty(kept.shape, kept.dtype)
                pair["real"], pair["imag"] = stored.T.real, stored.T.imag
                kept[...] = pair
            else:
                kept[...] = stored.T
    elif stored.dtype.kind != "c" and "." not in name:
        replace_variable(cine.source, path, name, stored)
    else:
        variables = {k: v for k, v in scipy.io.loadmat(cine.source).items() if not k.startswith("__")}
        top, _, inner = name.partition(".")
        if inner:
            variables[top][inner][0, 0] = stored
        else:
            variables[top] = stored
        scipy.io.savemat(path, variables, appendmat=False, do_compression=True)
