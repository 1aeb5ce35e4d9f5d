"""Ultrasound files in and out: which reader a path needs, and the public names of this layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from domains.ultrasound.arrays import CLEAN, HAZY, read_mat, read_npy, read_npz, write_mat, write_npy, write_npz
from domains.ultrasound.clarius import read_clarius, write_clarius
from domains.ultrasound.containers import Cine, Domain, checked
from domains.ultrasound.dicom import is_dicom, read_dicom, write_dicom
from domains.ultrasound.hdf5 import read_hdf5, write_hdf5
from domains.ultrasound.metaimage import read_metaimage, write_metaimage
from domains.ultrasound.sector import sector_of
from domains.ultrasound.uff import write_uff
from suite.errors import InputError
from suite.files import existing

__all__ = ["SUFFIXES", "Cine", "describe", "read_cine", "write_cine"]

SUFFIXES = (".dcm", ".dicom", ".h5", ".hdf5", ".uff", ".mha", ".mat", ".raw", ".tar", ".npz", ".npy")
_KNOWN = (
    "DICOM, zea or PICMUS HDF5 (.h5), UFF (.uff), MetaImage (.mha), MATLAB (.mat), Clarius (.raw, .tar), .npz or .npy"
)

WRITERS: dict[str, Callable[[Cine, NDArray[Any], Path], None]] = {
    "npz": write_npz,
    "npy": write_npy,
    "mat": write_mat,
    "dicom": write_dicom,
    "zea": write_hdf5,
    "picmus": write_hdf5,
    "uff": write_uff,
    "metaimage": write_metaimage,
    "clarius": write_clarius,
}


def read_cine(
    path: str | Path,
    *,
    key: str | None = None,
    domain: Domain | None = None,
    dynamic_range_db: float | None = None,
    angles_deg: tuple[float, float] | None = None,
    apex: float = 0.0,
    clean: bool = False,
) -> Cine:
    """A cine of any known format.

    Args:
        path: the file.
        key: which array of a file that holds several.
        domain, dynamic_range_db, angles_deg, apex: over what the file tells.
        clean: prefer the array of a usual name for pictures without haze, where there are several.

    Raises:
        InputError: one sentence that names the file, the fault and what would be right.
    """
    path = existing(path)
    cine = checked(_read(path, key, CLEAN + HAZY if clean else HAZY + CLEAN))
    if domain is not None and domain != cine.domain:
        if (domain == "iq") != bool(np.iscomplexobj(cine.data)):
            raise InputError(f"{path}: IQ is complex and nothing else is; this array is {cine.dtype}, so not {domain}.")
        cine = replace(cine, domain=domain)
    if dynamic_range_db is not None:
        cine = replace(cine, dynamic_range_db=dynamic_range_db, dynamic_range_known=True)
    if angles_deg is not None:
        cine = replace(cine, angles_deg=angles_deg, apex=apex)
    return cine


def _read(path: Path, key: str | None, prefer: tuple[str, ...]) -> Cine:
    name = path.name.lower()
    if name.endswith(".npz"):
        return read_npz(path, key, prefer)
    if name.endswith(".npy"):
        return read_npy(path)
    if name.endswith(".mat"):
        return read_mat(path, key, prefer)
    if name.endswith(".mha"):
        return read_metaimage(path)
    if name.endswith((".raw", ".tar")):
        return read_clarius(path, key)
    if is_dicom(path):
        return read_dicom(path)
    if h5py.is_hdf5(path) or name.endswith((".h5", ".hdf5", ".uff")):
        return read_hdf5(path, key)
    raise InputError(f"{path}: is of no known kind; {_KNOWN} is needed.")


def write_cine(cine: Cine, data: NDArray[Any], path: Path) -> None:
    """Write `data` `(frame, row, column)`, in the units of the cine, as its source was written."""
    WRITERS[cine.kind](cine, data, path)


def describe(path: str | Path, *, key: str | None = None) -> dict[str, Any]:
    """What `ultrasound info` tells: kind, shape, domain, frame rate, sector; JSON-ready and without patient data."""
    cine = read_cine(path, key=key)
    frames, rows, columns = cine.data.shape
    magnitude = np.abs(cine.data)
    facts: dict[str, Any] = {
        "file": cine.source.name,
        "kind": cine.kind,
        "key": cine.key,
        "domain": cine.domain,
        "dtype": str(cine.dtype),
        "frames": frames,
        "rows": rows,
        "columns": columns,
        "frame_time_ms": cine.frame_time_ms,
        "spacing_mm": None if cine.spacing_mm is None else list(cine.spacing_mm),
        "angles_deg": None if cine.angles_deg is None else list(cine.angles_deg),
        "dynamic_range_db": cine.dynamic_range_db,
        "dynamic_range_known": cine.dynamic_range_known,
        "range": [float(cine.data.real.min()), float(magnitude.max())],
        "sector_share": round(float(sector_of(cine).mean()), 4),
    }
    return facts | {k: v for k, v in cine.facts.items() if k not in facts} | {"warnings": list(cine.warnings)}
