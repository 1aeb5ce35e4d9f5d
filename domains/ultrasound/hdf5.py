"""HDF5 cines: zea files (`data/...`, `scan/...`), the plane-wave files of PICMUS (`US/US_DATASET0000`), and USTB's UFF."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from domains.ultrasound.containers import Cine, Domain, Layout
from domains.ultrasound.uff import read_uff, uff_objects
from suite.errors import InputError
from suite.files import existing, reading

ZEA = ("image_sc", "image", "envelope_data", "beamformed_data", "aligned_data", "raw_data")
PICMUS = "US/US_DATASET0000"


def read_hdf5(path: Path, key: str | None = None) -> Cine:
    """The first of zea's `image_sc`, `image`, `envelope_data`, `beamformed_data`, `raw_data` (or `key`), or PICMUS channel data.

    Raises:
        InputError: neither layout, or an array that is no cine.
    """
    with reading(existing(path), "is not a readable HDF5 file"), h5py.File(path, "r") as file:
        if f"{PICMUS}/data/real" in file:
            return _picmus(path, file)
        if "data" in file and isinstance(file["data"], h5py.Group):
            return _zea(path, file, key)
        if uff_objects(file):
            return read_uff(path, file, key)
    raise InputError(f"{path}: is no zea file (group data), no PICMUS file (group {PICMUS}) and no UFF file of USTB.")


def _zea(path: Path, file: h5py.File, key: str | None) -> Cine:
    names = [name for name in file["data"] if isinstance(file["data"][name], h5py.Dataset)]
    chosen = next((name for name in ((key,) if key else ZEA) if name in names), None)
    if chosen is None:
        raise InputError(
            f"{path}: holds no cine {key or 'of zea'}; its group data holds {', '.join(names) or 'nothing'}."
        )
    stored = file["data"][chosen]
    array, scan = stored[()], file.get("scan", {})
    channels = array.shape[-1] if array.ndim >= 4 and array.shape[-1] in (1, 2) else None
    if array.dtype.kind != "c" and channels is not None:
        array = array[..., 0] + 1j * array[..., 1] if channels == 2 else array[..., 0]
    if array.ndim > 3:  # transmits and elements of one frame count as frames and columns
        array = array.reshape(-1, *array.shape[-2:])
    layout = Layout(1, 2, 0) if array.ndim == 3 else Layout(0, 1)
    if array.ndim not in (2, 3):
        raise InputError(f"{path}: data/{chosen} of shape {stored.shape} is no cine of frames, depth and width.")
    low = float(np.nanmin(array.real)) if array.dtype.kind != "c" else 0.0
    domain: Domain = "iq" if array.dtype.kind == "c" else "grey" if chosen.startswith("image") else "envelope"
    domain = "rf" if domain == "envelope" and low < 0 else domain
    black, white = (0.0, 255.0) if low >= 0 else (low, 0.0)
    db = -low if domain == "grey" and low < 0 else 60.0
    return Cine(
        layout.take(array).astype(np.complex64 if domain == "iq" else np.float32),
        domain,
        "zea",
        path,
        layout,
        array.dtype,
        black,
        white,
        dynamic_range_db=db,
        dynamic_range_known=domain == "grey" and low < 0,
        frame_time_ms=_frame_time(scan),
        angles_deg=_angles(scan, chosen, array.shape[-1]),
        key=chosen,
        facts={"data": names}
        | {name: _number(scan, name) for name in ("sampling_frequency", "center_frequency", "sound_speed")},
        warnings=_stale(path, chosen, names),
    )


def _angles(scan: Any, name: str, columns: int) -> tuple[float, float] | None:
    """First and last beam from the vertical, in degrees, where every column is a beam of its own angle."""
    if name == "image_sc" or "polar_angles" not in scan or scan["polar_angles"].size != columns:
        return None
    angles = np.degrees(np.asarray(scan["polar_angles"][()], float).ravel())
    steps = np.diff(angles)
    even = columns > 1 and np.allclose(steps, steps[0], rtol=0.05, atol=1e-6) and abs(angles[-1] - angles[0]) > 1
    return (float(angles[0]), float(angles[-1])) if even else None


def _stale(path: Path, chosen: str, names: list[str]) -> tuple[str, ...]:
    others = [name for name in names if name != chosen]
    if not others:
        return ()
    return (f"{path.name}: only data/{chosen} is dehazed; {', '.join(others)} in the output are those of the input.",)


def _number(scan: Any, name: str) -> float | None:
    if name not in scan or not isinstance(scan[name], h5py.Dataset) or scan[name].size != 1:
        return None
    return float(np.asarray(scan[name][()]).ravel()[0])


def _frame_time(scan: Any) -> float | None:
    """From `time_to_next_transmit` (frames, transmits) in s, where it is told."""
    if "time_to_next_transmit" not in scan:
        return None
    total = np.asarray(scan["time_to_next_transmit"][()], float)
    return float(1000 * total.sum(-1).mean()) if total.ndim == 2 and total.size else None


def _picmus(path: Path, file: h5py.File) -> Cine:
    group = file[PICMUS]
    data = group["data"]["real"][()].astype(np.float32)
    imag = group["data"]["imag"][()].astype(np.float32) if "imag" in group["data"] else np.zeros_like(data)
    if data.ndim not in (2, 3) or data.shape != imag.shape:
        raise InputError(f"{path}: {PICMUS}/data of shape {data.shape} is not (angle, channel, sample).")
    layout = Layout(2, 1, 0) if data.ndim == 3 else Layout(1, 0)
    iq = bool(imag.any())
    array = data + 1j * imag if iq else data
    return Cine(
        layout.take(array).astype(np.complex64 if iq else np.float32),
        "iq" if iq else "rf",
        "picmus",
        path,
        layout,
        array.dtype,
        facts={n: _number(group, n) for n in ("sampling_frequency", "modulation_frequency", "sound_speed")},
        warnings=(f"{path.name}: channel data before beamforming; the networks know beamformed pictures only.",),
    )


def write_hdf5(cine: Cine, data: NDArray[Any], path: Path) -> None:
    """The source file with this array replaced, everything else as it is."""
    shutil.copyfile(cine.source, path)
    stored = cine.layout.give(data)
    with h5py.File(path, "r+") as file:
        if cine.kind == "picmus":
            group = file[PICMUS]["data"]
            group["real"][...] = stored.real
            if "imag" in group:
                group["imag"][...] = stored.imag
            return
        target = file["data"][cine.key]
        if cine.domain == "iq" and target.dtype.kind != "c":
            stored = np.stack([stored.real, stored.imag], -1)
        if target.dtype.kind in "iu":
            limits = np.iinfo(target.dtype)
            stored = np.clip(np.rint(stored), limits.min, limits.max)
        target[...] = stored.reshape(target.shape).astype(target.dtype)
