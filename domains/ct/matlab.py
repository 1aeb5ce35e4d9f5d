"""Measured scans in MATLAB files of the Finnish Inverse Problems Society and the Helsinki Tomography Challenge 2022.

A struct (`CtDataFull`, `CtDataLimited`, `CtData`, ...) with the fields `sinogram` (view, bin), already log-transformed,
and `parameters` (Meaney, Silva de Moura, Siltanen, doi:10.5281/zenodo.7418878). Versions 5 to 7 and 7.3 (HDF5) are
read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from domains.ct.containers import Scan
from domains.ct.scans import geometry_number, repaired
from suite.errors import InputError
from suite.files import existing, reading
from suite.mat5 import read_mat5

HTC2022_GRID = 512
_MM = {"mm": 1.0, "cm": 10.0, "m": 1000.0}


def read_mat(path: str | Path, *, key: str | None = None) -> Scan:
    """A FIPS / HTC2022 scan; `key` names the struct when the file holds several.

    Angles are taken as they stand: with this package's convention (source at (0, -d) at 0 degrees, turning
    counter-clockwise, bins along (cos, sin)) they reconstruct sharply.

    Raises:
        InputError: damaged file, no such struct, missing angles, lengths that do not match, no finite data.
    """
    path = existing(path)
    with reading(path, "is not a readable MATLAB scan"):
        loaded = _load_v73(path) if h5py.is_hdf5(path) else read_mat5(path)
        structs = {n: v for n, v in loaded.items() if isinstance(v, dict) and {"sinogram", "parameters"} <= v.keys()}
        name = _chosen(path, structs, key, held=list(loaded))
        return _scan(path, name, structs[name])


def _chosen(path: Path, structs: dict[str, Any], key: str | None, held: list[str]) -> str:
    if not structs:
        raise InputError(
            f"{path}: holds {', '.join(held) or 'nothing'}, and a struct with the fields sinogram and parameters is "
            f"needed."
        )
    if key is not None and key not in structs:
        raise InputError(f"{path}: holds no scan '{key}'; it holds {', '.join(structs)}.")
    if key is None and len(structs) > 1:
        raise InputError(f"{path}: holds several scans, choose one with --key: {', '.join(structs)}.")
    return key or next(iter(structs))


def _scan(path: Path, name: str, struct: dict[str, Any]) -> Scan:
    parameters = struct["parameters"]
    if not isinstance(parameters, dict) or "angles" not in parameters:
        raise InputError(f"{path}: {name}.parameters holds no angles (in degrees, one per view).")
    sinogram = np.asarray(struct["sinogram"])
    angles = np.asarray(parameters["angles"], dtype=np.float64).ravel()
    if sinogram.ndim != 2 or 0 in sinogram.shape or sinogram.dtype.kind not in "iuf":
        raise InputError(f"{path}: {name}.sinogram has shape {sinogram.shape}, and (view, bin) numbers are needed.")
    if len(sinogram) != len(angles):
        raise InputError(f"{path}: {name} holds {len(sinogram)} views and {len(angles)} angles, which must be equal.")
    if not np.isfinite(angles).all():
        raise InputError(f"{path}: {name}.parameters.angles are not all finite.")
    with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite, and is then repaired or refused
        lines, notes = repaired(path, sinogram.astype(np.float32)[:, None], f"{name}.sinogram")
    geometry = _geometry(path, name, parameters, bins=lines.shape[-1])
    return Scan(lines, angles, sources=(path,), warnings=tuple(notes), **geometry)


def _geometry(path: Path, name: str, parameters: dict[str, Any], bins: int) -> dict[str, Any]:
    def length(*fields: str) -> float | None:
        for field in fields:
            if field in parameters:
                return geometry_number(path, f"{name}.parameters.{field}", parameters[field]) * unit
        return None

    unit = _MM.get(str(parameters.get("distanceUnit", "mm")).lower(), 0.0)
    if unit == 0.0:
        given = parameters["distanceUnit"]
        raise InputError(f"{path}: {name}.parameters.distanceUnit is {given}, and mm, cm or m is needed.")
    pitch = length("pixelSizePost", "pixelSize")
    if str(parameters.get("geometryType", "cone")).lower().startswith("par"):
        return {"geometry": "parallel", "detector_pitch_mm": pitch, "pixel_size_mm": pitch}
    source, detector = length("distanceSourceOrigin"), length("distanceSourceDetector")
    if source is not None and detector is not None and detector <= source:
        raise InputError(f"{path}: {name} has its detector ({detector:g} mm) nearer to the source than the object.")
    effective = length("effectivePixelSizePost", "effectivePixelSize")
    if effective is None and pitch and source and detector:
        effective = pitch * source / detector
    challenge = str(parameters.get("projectName", "")).lower().startswith("htc2022")
    return {
        "geometry": "fan",
        "detector_pitch_mm": pitch,
        "pixel_size_mm": effective,
        "source_origin_mm": source,
        "origin_detector_mm": None if source is None or detector is None else detector - source,
        "center_column": (bins - 1) / 2,
        "image_size": (HTC2022_GRID, HTC2022_GRID) if challenge else None,
    }


# --- MATLAB 7.3 ----------------------------------------------------------------------------------


def _load_v73(path: Path) -> dict[str, Any]:
    with h5py.File(path, "r") as file:
        return {name: _plain_hdf5(item) for name, item in file.items() if not name.startswith("#")}


def _plain_hdf5(item: h5py.Group | h5py.Dataset) -> Any:
    if isinstance(item, h5py.Group):
        return {name: _plain_hdf5(value) for name, value in item.items()}
    values: NDArray[Any] = np.asarray(item[()])
    if item.attrs.get("MATLAB_class", b"") in (b"char", "char"):
        return "".join(chr(int(c)) for c in values.T.ravel())
    return values.T  # MATLAB stores columns first
