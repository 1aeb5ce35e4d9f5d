"""Beamformed data in the Ultrasound File Format of USTB (`.uff`): HDF5 groups of class `uff.beamformed_data` with their scan.

Pixels lie along one axis of `data`, in the order of the scan's points; of a sector scan the beams diverge, and are told so.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from domains.ultrasound.containers import Cine, Domain, Layout
from suite.errors import InputError

Array = NDArray[Any]


def uff_objects(file: h5py.File) -> dict[str, str]:
    """Names of the file's objects and their classes, such as `uff.beamformed_data`."""
    found = {}
    for name, item in file.items():
        kind = item.attrs.get("class", "")
        kind = kind.decode() if isinstance(kind, bytes) else str(np.asarray(kind).ravel()[0] if np.size(kind) else "")
        if kind.startswith("uff."):
            found[name] = kind
    return found


def read_uff(path: Path, file: h5py.File, key: str | None) -> Cine:
    """The beamformed data `key`, or the first there are.

    Raises:
        InputError: none, a scan that is neither a sector nor linear, or data that do not fit it.
    """
    objects = uff_objects(file)
    names = [name for name, kind in objects.items() if kind == "uff.beamformed_data"]
    chosen = next((name for name in names if key in (None, name)), None)
    if chosen is None:
        raise InputError(
            f"{path}: holds no beamformed data {key or ''} (it holds {', '.join(objects)}); beamform its channel data first."
        )
    scan = _Scan(path, file[chosen]["scan"])
    array = scan.take(_values(file[chosen]["data"]))
    domain: Domain = "iq" if array.dtype.kind == "c" else "rf" if float(array.min()) < 0 else "envelope"
    rate = file[chosen].get("frame_rate")
    rate = float(np.asarray(rate[()]).ravel()[0]) if rate is not None and rate.size else 0.0
    return Cine(
        array.astype(np.complex64 if domain == "iq" else np.float32),
        domain,
        "uff",
        path,
        Layout(1, 2, 0),
        array.dtype,
        frame_time_ms=1000 / rate if rate > 0 else None,
        spacing_mm=scan.spacing_mm,
        angles_deg=scan.angles_deg,
        apex=scan.apex,
        key=chosen,
        facts={"objects": objects},
        warnings=_others(path, chosen, names),
    )


def write_uff(cine: Cine, data: Array, path: Path) -> None:
    """The source file with these data, everything else as it is."""
    shutil.copyfile(cine.source, path)
    with h5py.File(path, "r+") as file:
        group = file[str(cine.key)]
        stored = _Scan(path, group["scan"]).give(cine.stored(data), group["data"])
        if isinstance(group["data"], h5py.Dataset):
            group["data"][...] = stored
            return
        group["data"]["real"][...] = stored.real
        if "imag" in group["data"]:
            group["data"]["imag"][...] = stored.imag


def _others(path: Path, chosen: str, names: list[str]) -> tuple[str, ...]:
    others = [name for name in names if name != chosen]
    return (f"{path.name}: only {chosen} is dehazed; {', '.join(others)} stay as they are.",) if others else ()


def _values(data: Any) -> Array:
    """A stored array, whose complex values are groups of real and imaginary parts."""
    if isinstance(data, h5py.Dataset):
        return np.asarray(data[()])
    real = np.asarray(data["real"][()])
    return real + 1j * np.asarray(data["imag"][()]) if "imag" in data else real


class _Scan:
    """How the points of a scan lie in the data."""

    def __init__(self, path: Path, group: h5py.Group) -> None:
        self.path = path
        self.angles_deg: tuple[float, float] | None = None
        self.spacing_mm: tuple[float, float] | None = None
        self.apex = 0.0
        sector = "azimuth_axis" in group and "depth_axis" in group
        if not sector and not ("x_axis" in group and "z_axis" in group):
            raise InputError(f"{path}: its scan is neither a sector nor linear; one of these is needed.")
        names = ("depth_axis", "azimuth_axis") if sector else ("z_axis", "x_axis")
        depth, across = (np.asarray(group[name][()], float).ravel() for name in names)
        self.rows, self.columns = len(depth), len(across)
        if min(self.rows, self.columns) < 2:
            raise InputError(f"{path}: a scan of {self.rows} x {self.columns} points is no picture.")
        if sector:
            self.angles_deg = float(np.degrees(across[0])), float(np.degrees(across[-1]))
            self.apex = max(0.0, float(depth[0] / (depth[-1] - depth[0])))
        else:
            pitch = [1000 * abs(float(axis[-1] - axis[0])) / (len(axis) - 1) for axis in (depth, across)]
            self.spacing_mm = pitch[0], pitch[1]
        self.depth_first = _depth_first(group, self.rows, self.columns)

    def _axis(self, shape: tuple[int, ...]) -> int:
        points = self.rows * self.columns
        axes = [k for k, n in enumerate(shape) if n == points]
        if not axes:
            raise InputError(f"{self.path}: data of shape {shape} have no axis of the scan's {points} points.")
        return axes[-1]

    def take(self, stored: Array) -> Array:
        """`(frame, row, column)`; channels and waves, where there are several, count as frames."""
        flat = np.moveaxis(stored, self._axis(stored.shape), -1).reshape(-1, self.rows * self.columns)
        if self.depth_first:
            return flat.reshape(-1, self.columns, self.rows).transpose(0, 2, 1)
        return flat.reshape(-1, self.rows, self.columns)

    def give(self, data: Array, target: Any) -> Array:
        """`(frame, row, column)` as the file holds it."""
        shape = (target if isinstance(target, h5py.Dataset) else target["real"]).shape
        axis = self._axis(shape)
        flat = (data.transpose(0, 2, 1) if self.depth_first else data).reshape(len(data), -1)
        others = tuple(n for k, n in enumerate(shape) if k != axis)
        return np.moveaxis(flat.reshape(*others, -1), -1, axis)


def _depth_first(group: h5py.Group, rows: int, columns: int) -> bool:
    """Whether successive points go down a beam, as USTB writes them; told by the points themselves where they are stored."""
    if "z" not in group or group["z"].size != rows * columns or "x" not in group:
        return True
    x, z = (np.asarray(group[name][()], float).ravel()[:2] for name in ("x", "z"))
    turn = abs(np.arctan2(x[1], z[1]) - np.arctan2(x[0], z[0])) if "azimuth_axis" in group else abs(x[1] - x[0])
    along = abs(np.hypot(x[1], z[1]) - np.hypot(x[0], z[0])) if "azimuth_axis" in group else abs(z[1] - z[0])
    return bool(along > 1e-9 or turn < 1e-12)
