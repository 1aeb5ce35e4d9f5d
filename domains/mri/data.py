"""MRI files in and out: which reader a path needs, and the public names of this layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from domains.mri.arrays import read_mat, read_npy, read_plain_hdf5
from domains.mri.bart import read_bart
from domains.mri.containers import KSpace, Volume
from domains.mri.dicom import is_dicom, read_series
from domains.mri.fastmri import Simulated, read_fastmri, write_fastmri
from domains.mri.ismrmrd import is_ismrmrd, read_ismrmrd
from domains.mri.nifti import read_nifti, write_nifti
from domains.mri.twix import read_twix
from suite.errors import InputError
from suite.files import existing, reading

__all__ = [
    "KSpace",
    "Simulated",
    "Volume",
    "describe",
    "is_image",
    "read_kspace",
    "read_volume",
    "write_fastmri",
    "write_nifti",
]

_RAW = "fastMRI or ISMRMRD HDF5 (.h5, .mrd), BART (.cfl), Siemens twix (.dat), .npy or MATLAB (.mat)"


def is_image(path: Path) -> bool:
    """Whether a file is a NIfTI image or a DICOM file."""
    return path.name.lower().endswith((".nii", ".nii.gz")) or is_dicom(path)


def read_volume(path: str | Path, *, series_uid: str | None = None, slices: slice | None = None) -> Volume:
    """An image volume from NIfTI, or a DICOM folder or file.

    Raises:
        InputError: one sentence that names the file, the fault and what would be right.
    """
    path = existing(path, folder=True)
    if path.name.lower().endswith((".nii", ".nii.gz")):
        return read_nifti(path).select(slices)
    if path.is_dir() or is_dicom(path):
        return read_series(path, series_uid=series_uid).select(slices)
    raise InputError(f"{path}: is no image; NIfTI (.nii, .nii.gz) or a DICOM folder is needed.")


def read_kspace(path: str | Path, *, key: str | None = None, layout: Sequence[str] = ()) -> KSpace:
    """Raw k-space of any known format.

    Args:
        path: the file.
        key: which array, group or variable of a file that holds several.
        layout: names of the axes of a bare array, see `domains.mri.arrays.AXES`.

    Raises:
        InputError: one sentence that names the file, the fault and what would be right.
    """
    path = existing(path)
    name = path.name.lower()
    if name.endswith(".npy"):
        return read_npy(path, layout)
    if name.endswith(".mat"):
        return read_mat(path, key, layout)
    if name.endswith((".cfl", ".hdr")):
        return read_bart(path)
    if name.endswith(".dat"):
        return read_twix(path)
    if h5py.is_hdf5(path) or name.endswith((".h5", ".hdf5", ".mrd")):
        with reading(path, "is not a readable HDF5 file"), h5py.File(path, "r") as file:
            if is_ismrmrd(file, key):
                return read_ismrmrd(path, file, key)
            if (
                isinstance(file.get(key or "kspace"), h5py.Dataset)
                and not layout
                and file[key or "kspace"].ndim in (3, 4)
            ):
                return read_fastmri(path, file, key)
            return read_plain_hdf5(path, file, key, layout)
    if is_image(path):
        raise InputError(f"{path}: is an image, and raw k-space is needed: {_RAW}.")
    raise InputError(f"{path}: is of no known kind; raw k-space is {_RAW}.")


def describe(path: str | Path, *, key: str | None = None) -> dict[str, Any]:
    """What `mri info` tells: kind, shape, geometry, sampling, warnings; JSON-ready and without patient data.

    Raises:
        InputError: as the readers.
    """
    path = existing(path, folder=True)
    if path.is_dir() or is_image(path):
        return _volume_facts(path, read_volume(path))
    kspace = read_kspace(path, key=key)
    acquired = kspace.acquired
    coil = kspace.data.ndim - 1 - kspace.grid_axes
    lines = acquired.any(axis=0) if acquired.ndim == 2 else acquired
    facts: dict[str, Any] = {
        "file": path.name,
        "kind": "k-space",
        "shape": list(kspace.data.shape),
        "axes": [*kspace.extra, "slice", "coil", *_grid_names(kspace)],
        "coils": kspace.coils,
        "slices": int(kspace.data.shape[coil - 1]),
        "trajectory": "cartesian" if kspace.trajectory is None else "non-cartesian",
        "acceleration": None if kspace.trajectory is not None else round(float(acquired.size / acquired.sum()), 4),
        "lines_acquired": int(lines.sum()) if acquired.ndim == 2 else None,
        "matrix": None if kspace.matrix is None else list(kspace.matrix),
        "spacing_mm": None
        if kspace.affine is None
        else [round(float(s), 6) for s in np.linalg.norm(kspace.affine[:3, :3], axis=0)],
        "noise_scan": kspace.noise is not None,
        "noise_sigma": kspace.noise_sigma,
        "target": kspace.target is not None,
        "largest": float(np.abs(kspace.data).max()),
    }
    return facts | {k: v for k, v in kspace.facts.items() if k not in facts} | {"warnings": list(kspace.warnings)}


def _grid_names(kspace: KSpace) -> list[str]:
    return ["sample"] if kspace.trajectory is not None else ["kz", "ky", "kx"][3 - kspace.grid_axes :]


def _volume_facts(path: Path, volume: Volume) -> dict[str, Any]:
    return {
        "file": path.name,
        "kind": "volume",
        "shape": list(volume.data.shape),
        "spacing_mm": [round(s, 6) for s in volume.spacing_mm],
        "affine": volume.affine.tolist(),
        "range": [float(volume.data.min()), float(volume.data.max())],
        "percentiles": {str(p): float(np.percentile(volume.data, p)) for p in (1, 50, 99)},
        "warnings": list(volume.warnings),
    }
