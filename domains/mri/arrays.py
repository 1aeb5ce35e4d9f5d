"""Bare arrays of k-space: `.npy`, MATLAB 5 to 7.3, plain HDF5. Their axes are told by `layout`, or by their sizes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from domains.mri.containers import KSpace, checked
from suite.errors import InputError
from suite.files import existing, reading
from suite.mat5 import read_mat5

AXES = ("repetition", "phase", "set", "contrast", "slice", "coil", "kz", "spoke", "ky", "kx", "sample")
_KSPACE_NAME = re.compile(r"^(k|ksp|kspace|k_space|kdata|rawdata|raw|data|dwi|measurement).*", re.IGNORECASE)


def read_npy(path: str | Path, layout: Sequence[str] = ()) -> KSpace:
    """A NumPy array (coil, ky, kx), (slice, coil, ky, kx), (ky, kx), or as `layout` says.

    Raises:
        InputError: no NumPy array of complex numbers, objects (pickle), or axes that cannot be told.
    """
    path = existing(path)
    with reading(path, "is not a readable .npy array"):
        values = np.load(path, allow_pickle=False)
    return _posed(path, values, layout, columns_first=False)


def read_mat(path: str | Path, key: str | None = None, layout: Sequence[str] = ()) -> KSpace:
    """A MATLAB variable, by default (kx, ky, coil, slice, repetition), as `layout` (in MATLAB's own order) says otherwise.

    Complex numbers may also be a struct with the fields real and imag.

    Raises:
        InputError: damaged, no k-space in it, several variables and no `key`.
    """
    path = existing(path)
    with reading(path, "is not a readable MATLAB file"):
        loaded = _load_v73(path) if h5py.is_hdf5(path) else read_mat5(path)
    return _posed(path, _chosen(path, loaded, key), layout, columns_first=True)


def read_plain_hdf5(path: Path, file: h5py.File, key: str | None, layout: Sequence[str] = ()) -> KSpace:
    """A complex data set of an HDF5 file that follows no known layout.

    Raises:
        InputError: no such data set.
    """
    found: dict[str, Any] = {}

    def visit(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim >= 2 and (item.dtype.kind == "c" or item.dtype.names):
            found[name] = item

    file.visititems(visit)
    item = _chosen(path, found, key.strip("/") if key else None)
    return _posed(path, _complex(item[()]), layout, columns_first=False)


def _load_v73(path: Path) -> dict[str, Any]:
    """Variables in MATLAB's order of axes."""

    def plain(item: h5py.Group | h5py.Dataset) -> Any:
        if isinstance(item, h5py.Group):
            return {name: plain(value) for name, value in item.items()}
        return np.asarray(item[()]).T

    with h5py.File(path, "r") as file:
        return {name: plain(item) for name, item in file.items() if not name.startswith("#")}


def _complex(value: Any) -> Any:
    """A complex array from a complex, a compound (real, imag), or a struct with these fields; else None."""
    if isinstance(value, dict):
        parts = {name.lower(): v for name, v in value.items()}
        for real, imag in (("real", "imag"), ("re", "im")):
            if real in parts and imag in parts:
                return np.asarray(parts[real]) + 1j * np.asarray(parts[imag])
        return None
    if isinstance(value, h5py.Dataset):
        return value
    values = np.asarray(value)
    if values.dtype.names and {"real", "imag"} <= set(values.dtype.names):
        return values["real"] + 1j * values["imag"]
    return values if values.dtype.kind == "c" else None


def _chosen(path: Path, held: dict[str, Any], key: str | None) -> Any:
    """The variable `key`, or the only complex one with a name that k-space has."""
    if key is not None and key not in held:
        raise InputError(f"{path}: holds no '{key}'; it holds {', '.join(held) or 'nothing'}.")
    usable = {name: _complex(v) for name, v in held.items() if key in (None, name)}
    usable = {name: v for name, v in usable.items() if v is not None and getattr(v, "ndim", 0) >= 2}
    if not usable:
        raise InputError(f"{path}: holds {key or ', '.join(held) or 'nothing'}, and a complex k-space array is needed.")
    named = usable if key is not None else {n: v for n, v in usable.items() if _KSPACE_NAME.match(n.rsplit("/", 1)[-1])}
    if len(named) != 1:
        raise InputError(f"{path}: holds {', '.join(usable)}; say with --key which one is the k-space.")
    return next(iter(named.values()))


def _posed(path: Path, values: NDArray[Any], layout: Sequence[str], *, columns_first: bool) -> KSpace:
    if values.dtype.kind != "c":
        raise InputError(f"{path}: holds {values.dtype} numbers of shape {values.shape}; complex k-space is needed.")
    if values.ndim < 2 or 0 in values.shape:
        raise InputError(
            f"{path}: has shape {values.shape}; (coil, ky, kx), (slice, coil, ky, kx) or (ky, kx) is needed."
        )
    names = list(layout) or _guessed(values.shape, columns_first)
    if len(names) != values.ndim or len(set(names)) != len(names) or not set(names) <= set(AXES):
        raise InputError(
            f"{path}: the layout {','.join(names) or '(none)'} does not name the {values.ndim} axes of {values.shape}; "
            f"use --set layout=[...] with one of {', '.join(AXES)} for each."
        )
    radial = "spoke" in names
    if radial != ("sample" in names) or (radial and {"kx", "ky", "kz"} & set(names)):
        raise InputError(f"{path}: a radial layout has the axes spoke and sample in place of kx and ky.")
    grid = ["spoke", "sample"] if radial else [n for n in ("kz", "ky", "kx") if n in names]
    if not radial and not {"ky", "kx"} <= set(grid):
        raise InputError(f"{path}: the layout {','.join(names)} has no ky and kx.")
    extra = [n for n in ("repetition", "phase", "set", "contrast") if n in names]
    for missing in ("coil", "slice"):
        if missing not in names:
            values, names = values[None], [missing, *names]
    order = [names.index(n) for n in (*extra, "slice", "coil", *grid)]
    data = np.ascontiguousarray(values.transpose(order)).astype(np.complex64)
    if radial:
        return _radial(path, data, tuple(extra))
    return checked(KSpace(data, extra=tuple(extra), three_d="kz" in names, sources=(path,)))


def _guessed(shape: tuple[int, ...], columns_first: bool) -> list[str]:
    """Names by the sizes: the grid at one end, no side of it shorter than there are coils beside it; else none."""
    n = len(shape)
    if n > 5:
        return []
    last = ["repetition", "slice", "coil", "ky", "kx"][5 - n :]
    if n == 2:
        return last
    fits = {False: min(shape[-2:]) >= shape[-3], True: min(shape[:2]) >= shape[2]}
    order = [columns_first, not columns_first]
    return next(([last, last[::-1]][reverse] for reverse in order if fits[reverse]), [])


def _radial(path: Path, data: NDArray[np.complex64], extra: tuple[str, ...]) -> KSpace:
    """Spokes at uniform angles over the full circle, samples from edge to edge: `(..., slice, coil, spoke, sample)`."""
    spokes, samples = data.shape[-2:]
    angle = 2 * np.pi * np.arange(spokes) / spokes
    radius = np.arange(samples) - samples // 2
    trajectory = np.stack([np.outer(np.sin(angle), radius), np.outer(np.cos(angle), radius)], -1).reshape(-1, 2)
    said = (
        f"{path.name}: holds no trajectory; {spokes} spokes at uniform angles over the full circle were taken, so the "
        "orientation is not known."
    )
    flat = data.reshape(*data.shape[:-2], spokes * samples)
    return checked(
        KSpace(
            flat,
            extra=extra,
            trajectory=trajectory.astype(np.float32),
            grid=(samples, samples),
            facts={"trajectory": "radial"},
            sources=(path,),
            warnings=(said,),
        )
    )
