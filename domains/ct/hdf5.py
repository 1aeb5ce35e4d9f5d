"""Measured scans in HDF5: Data Exchange (read and written) and NeXus NXtomo (read).

Data Exchange (De Carlo et al., J. Synchrotron Rad. 21, 1224, 2014): `/exchange/data` [angle, row, column] as raw counts
beside `data_white` and `data_dark`, or as line integrals when there is no `data_white`; `/exchange/theta` in degrees.
The geometry that format has no place for lies in the attributes of the group `/diffsuite`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from domains.ct.containers import Array, Scan
from domains.ct.formats import valid_affine
from domains.ct.scans import GEOMETRY_NUMBERS, assembled, geometry_number, repaired
from suite.errors import InputError
from suite.files import atomic_file, existing, reading


def read_hdf5(path: str | Path, *, key: str | None = None) -> Scan:
    """A Data Exchange or NXtomo file.

    Args:
        path: the file.
        key: path inside the file of the projections to read instead of `/exchange/data`, or of the NXtomo group.

    Raises:
        InputError: damaged file, neither layout, missing angles, lengths that do not match, no finite data.
    """
    path = existing(path)
    with reading(path, "is not a readable HDF5 scan"), h5py.File(path, "r") as file:
        group = _nxtomo_group(path, file, key)
        if group is not None:
            return _read_nxtomo(path, group)
        return _read_exchange(path, file, key or "/exchange/data")


# --- Data Exchange ---------------------------------------------------------------------------------------------------


def _read_exchange(path: Path, file: h5py.File, key: str) -> Scan:
    data = _dataset(path, file, key, f"a Data Exchange scan holds {key} [angle, row, column]")
    group = data.parent
    theta = _dataset(path, group, "theta", "the angles in degrees, one per view, are needed")
    white = group.get("data_white")
    dark = group.get("data_dark")
    values, notes = _projections(path, data, integer_is_counts=white is None)
    angles, angle_notes = _angles(path, theta)
    scan = assembled(
        path, values, angles,
        None if white is None else _mean_frame(path, white, values.shape[1:]),
        None if dark is None else _mean_frame(path, dark, values.shape[1:]),
    )  # fmt: skip
    scan = replace(scan, warnings=(*notes, *angle_notes, *scan.warnings))
    extra = file.get("diffsuite")
    return scan if extra is None else _with_geometry(path, scan, extra)


def _with_geometry(path: Path, scan: Scan, group: h5py.Group) -> Scan:
    """`scan` with the attributes of `/diffsuite`; unknown ones are left to others."""
    found: dict[str, Any] = {}
    for name in GEOMETRY_NUMBERS:
        if name in group.attrs:
            found[name] = geometry_number(path, name, group.attrs[name])
    for name, choices in (("geometry", ("parallel", "fan", "cone")), ("detector", ("flat", "curved"))):
        if name in group.attrs:
            found[name] = _text(group.attrs[name])
            if found[name] not in choices:
                raise InputError(f"{path}: has {name} '{found[name]}', and one of {', '.join(choices)} is needed.")
    if "image_size" in group.attrs:
        size = np.atleast_1d(np.asarray(group.attrs["image_size"])).astype(np.int64)
        if size.size not in (1, 2) or size.min() < 1:
            raise InputError(f"{path}: has image_size {size.tolist()}, and one or two positive numbers are needed.")
        found["image_size"] = (int(size[0]), int(size[-1]))
    if "image_slices" in group.attrs:
        found["image_slices"] = round(geometry_number(path, "image_slices", group.attrs["image_slices"]))
    if "affine" in group.attrs:
        found["affine"] = np.asarray(group.attrs["affine"], dtype=np.float64)
        if not valid_affine(found["affine"]):
            raise InputError(f"{path}: has an affine that is no invertible 4x4 matrix in mm.")
    if "dicom" in group:
        found["dicom"] = _text(group["dicom"][()])
    return replace(scan, **found)


def write_scan(scan: Scan, path: str | Path) -> Path:
    """`scan` as a Data Exchange file with its geometry in `/diffsuite`, by rename.

    Raw counts are written with their white and dark frames when the scan has them, else line integrals.
    """
    path = Path(path)
    with atomic_file(path) as part, h5py.File(part, "w") as file:
        file.create_dataset("implements", data="exchange")
        exchange = file.create_group("exchange")
        counted = scan.counts is not None and scan.white is not None
        values = scan.counts if counted else scan.line_integrals
        data = exchange.create_dataset("data", data=np.asarray(values, np.float32))
        data.attrs.update({"axes": "theta:y:x", "units": "counts" if counted else "1"})
        if counted:
            dark = np.zeros_like(scan.white) if scan.dark is None else scan.dark
            for name, frame in (("data_white", scan.white), ("data_dark", dark)):
                exchange.create_dataset(name, data=np.asarray(frame, np.float32)[None]).attrs["units"] = "counts"
        exchange.create_dataset("theta", data=np.asarray(scan.theta_deg, np.float64)).attrs["units"] = "degrees"
        group = file.create_group("diffsuite")
        group.attrs["geometry"], group.attrs["detector"] = scan.geometry, scan.detector
        for name in GEOMETRY_NUMBERS:
            if getattr(scan, name) is not None:
                group.attrs[name] = float(getattr(scan, name))
        if scan.image_size is not None:
            rows, columns = scan.image_size
            group.attrs["image_size"] = rows if rows == columns else (rows, columns)
        if scan.image_slices is not None:
            group.attrs["image_slices"] = scan.image_slices
        if scan.affine is not None:
            group.attrs["affine"] = scan.affine
        if scan.dicom is not None:
            group.create_dataset("dicom", data=scan.dicom)
    return path


# --- NXtomo ----------------------------------------------------------------------------------------------------------


def _nxtomo_group(path: Path, file: h5py.File, key: str | None) -> h5py.Group | None:
    """The group laid out as NXtomo (often /entry1/tomo_entry), or the one named `key`; None if there is none.

    Raises:
        InputError: several such groups and no `key`.
    """
    if key is not None:
        group = file.get(key)
        return group if isinstance(group, h5py.Group) and "instrument" in group else None
    if "exchange" in file:
        return None
    found: list[h5py.Group] = []

    def visit(_: str, item: object) -> None:
        if isinstance(item, h5py.Group) and "instrument" in item and "sample" in item:
            found.append(item)

    file.visititems(visit)
    if "instrument" in file and "sample" in file:
        found.append(file)
    named = [g for g in found if "definition" in g and _text(g["definition"][()]) == "NXtomo"]
    groups = named or found
    if len(groups) > 1:
        raise InputError(f"{path}: holds several scans, choose one with --key: {', '.join(g.name for g in groups)}.")
    return groups[0] if groups else None


def _read_nxtomo(path: Path, group: h5py.Group) -> Scan:
    """NXtomo: projections, flats and darks in one stack, told apart by image_key 0, 1, 2 (3 is invalid)."""
    detector = group["instrument/detector"] if "instrument/detector" in group else group["instrument"]
    where = f"an NXtomo group ({group.name}) holds"
    data = _dataset(path, detector, "data", f"{where} instrument/detector/data")
    keys = _dataset(path, detector, "image_key", f"{where} instrument/detector/image_key")[()].astype(int).ravel()
    angles, notes = _angles(path, _dataset(path, group, "sample/rotation_angle", f"{where} sample/rotation_angle"))
    values, data_notes = _projections(path, data, integer_is_counts=False)
    if not len(keys) == len(angles) == len(values):
        raise InputError(
            f"{path}: holds {len(values)} frames, {len(keys)} image keys and {len(angles)} angles, which must be equal."
        )
    frames = {name: values[keys == k] for name, k in (("view", 0), ("white", 1), ("dark", 2))}
    if not len(frames["view"]) or not len(frames["white"]):
        held = f"{len(frames['view'])} projections (0) and {len(frames['white'])} flats (1)"
        raise InputError(f"{path}: its image_key names {held}, and both are needed.")
    dark = frames["dark"].mean(axis=0) if len(frames["dark"]) else None
    scan = assembled(path, frames["view"], angles[keys == 0], frames["white"].mean(axis=0), dark)
    pitch = _length_mm(detector.get("x_pixel_size"))
    return replace(scan, detector_pitch_mm=pitch, pixel_size_mm=pitch, warnings=(*data_notes, *notes, *scan.warnings))


def _length_mm(item: h5py.Dataset | None) -> float | None:
    if item is None:
        return None
    scale = {"m": 1e3, "cm": 10.0, "um": 1e-3, "µm": 1e-3, "micron": 1e-3, "microns": 1e-3, "nm": 1e-6}
    value = float(np.asarray(item[()]).ravel()[0]) * scale.get(_text(item.attrs.get("units", "mm")), 1.0)
    return value if np.isfinite(value) and value > 0 else None


# --- data sets -------------------------------------------------------------------------------------------------------


def _text(value: Any) -> str:
    value = np.asarray(value).ravel()[0] if np.asarray(value).size else ""
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _dataset(path: Path, group: h5py.Group, name: str, wanted: str) -> h5py.Dataset:
    item = group.get(name)
    if not isinstance(item, h5py.Dataset):
        raise InputError(f"{path}: holds no {name} in {group.name}; {wanted}.")
    return item


def _projections(path: Path, data: h5py.Dataset, *, integer_is_counts: bool) -> tuple[Array, list[str]]:
    """The stack as float32 with single NaN repaired along the detector row."""
    if data.ndim != 3 or 0 in data.shape:
        raise InputError(f"{path}: {data.name} has shape {data.shape}, and [angle, row, column] is needed.")
    if data.dtype.kind not in "iuf":
        raise InputError(f"{path}: {data.name} holds {data.dtype} values, and real numbers are needed.")
    if integer_is_counts and data.dtype.kind in "iu":
        raise InputError(f"{path}: {data.name} holds integer counts without data_white, so line integrals are unknown.")
    return repaired(path, data[()].astype(np.float32), data.name)


def _angles(path: Path, data: h5py.Dataset) -> tuple[NDArray[np.float64], list[str]]:
    """Angles in degrees; radians are converted when the units say so."""
    angles = np.asarray(data[()], dtype=np.float64).ravel()
    if angles.size == 0 or not np.isfinite(angles).all():
        raise InputError(f"{path}: {data.name} holds {angles.size} angle(s), and finite degrees are needed.")
    units = _text(data.attrs.get("units", "")).lower()
    if units.startswith("rad"):
        return np.degrees(angles), []
    notes = []
    if not units and angles.size > 20 and np.ptp(angles) < 6.6 and abs(np.ptp(angles) / np.pi % 1 - 0.5) > 0.45:
        notes = [f"{path}: the angles span {np.ptp(angles):.2f}, which looks like radians but is taken as degrees."]
    return angles, notes


def _mean_frame(path: Path, data: h5py.Dataset, shape: tuple[int, ...]) -> Array:
    """The mean of flat or dark frames `(n, row, column)` or one `(row, column)`."""
    frames = np.asarray(data[()], dtype=np.float64)
    if frames.ndim == 2:
        frames = frames[None]
    if frames.ndim != 3 or frames.shape[1:] != shape or len(frames) == 0:
        raise InputError(f"{path}: {data.name} has shape {data.shape}, and [frame, {shape[0]}, {shape[1]}] is needed.")
    seen = np.isfinite(frames)
    if not seen.any():
        raise InputError(f"{path}: {data.name} is wholly NaN.")
    count = seen.sum(axis=0)
    total = np.where(seen, frames, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)
