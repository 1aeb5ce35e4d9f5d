"""CT files in and out: which reader a path needs, and the public names of this layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from domains.ct.containers import AIR_HU, Scan, Volume
from domains.ct.dicom import list_series, read_series
from domains.ct.dicom_image import headers_from_json, headers_to_json, is_dicom
from domains.ct.dicom_write import Derivation, write_series
from domains.ct.formats import read_mha, read_nifti, write_mha, write_nifti
from domains.ct.hdf5 import read_hdf5, write_scan
from domains.ct.matlab import read_mat
from domains.ct.projections import is_projection_folder, read_ct_pd
from domains.ct.scans import GEOMETRY_NUMBERS, estimate_center_column
from suite.errors import InputError
from suite.files import existing

__all__ = [
    "AIR_HU",
    "Derivation",
    "Scan",
    "Volume",
    "describe",
    "estimate_center_column",
    "headers_from_json",
    "headers_to_json",
    "list_series",
    "read_scan",
    "read_volume",
    "write_mha",
    "write_nifti",
    "write_scan",
    "write_series",
]

_VOLUMES = "NIfTI (.nii, .nii.gz), MetaImage (.mha, .mhd) or DICOM (a folder or file)"
_SCANS = "HDF5 (.h5, .hdf5, .nxs), MATLAB (.mat) or a DICOM-CT-PD folder"


def format_of(path: str | Path) -> str:
    """`"nifti" | "metaimage" | "hdf5" | "matlab" | "dicom" | "dicom-ct-pd"`, by a folder's content or a file's name.

    Raises:
        InputError: missing, empty, or none of these.
    """
    path = existing(path, folder=True)
    name = path.name.lower()
    if path.is_dir():
        if not any(path.iterdir()):
            raise InputError(f"{path}: the folder is empty.")
        return "dicom-ct-pd" if is_projection_folder(path) else "dicom"
    if name.endswith((".nii", ".nii.gz")):
        return "nifti"
    if name.endswith((".mha", ".mhd")):
        return "metaimage"
    if name.endswith(".mat"):
        return "matlab"
    if h5py.is_hdf5(path) or name.endswith((".h5", ".hdf5", ".hdf", ".nxs", ".nx")):
        return "hdf5"
    if is_dicom(path) or name == "dicomdir" or name.endswith((".dcm", ".ima")):
        return "dicom"
    raise InputError(f"{path}: is of no known kind; images are {_VOLUMES}, scans {_SCANS}.")


def read_volume(
    path: str | Path, *, series_uid: str | None = None, slices: slice | None = None, key: str | None = None
) -> Volume:
    """An image volume from NIfTI, MetaImage, a DICOM folder, file or DICOMDIR.

    Args:
        path: file or folder.
        series_uid: which DICOM series, where a folder holds several.
        slices: which slices of the stack, counted from the feet.
        key: no image format here holds several arrays; giving one is an error.

    Raises:
        InputError: one sentence that names the file, the fault and what would be right.
    """
    path, kind = Path(path), format_of(path)
    if key is not None:
        raise InputError(f"{path}: holds one image, so --key {key} has no meaning for it.")
    if kind == "dicom":
        return read_series(path, series_uid=series_uid, slices=slices)
    if kind not in ("nifti", "metaimage"):
        raise InputError(f"{path}: is a scan ({kind}), and an image volume is needed: {_VOLUMES}.")
    if series_uid is not None:
        raise InputError(f"{path}: is no DICOM folder, so a series UID has no meaning for it.")
    return (read_nifti if kind == "nifti" else read_mha)(path).select(slices)


def read_scan(path: str | Path, *, key: str | None = None) -> Scan:
    """A measured or simulated scan from Data Exchange or NXtomo HDF5, FIPS/HTC2022 MATLAB, or a DICOM-CT-PD folder.

    Args:
        path: file or folder.
        key: which array or struct of a file that holds several.

    Raises:
        InputError: one sentence that names the file, the fault and what would be right.
    """
    path, kind = Path(path), format_of(path)
    if kind == "hdf5":
        return read_hdf5(path, key=key)
    if kind == "matlab":
        return read_mat(path, key=key)
    if kind == "dicom-ct-pd":
        return read_ct_pd(path)
    raise InputError(f"{path}: is an image ({kind}), and a scan is needed: {_SCANS}.")


def describe(path: str | Path) -> dict[str, Any]:
    """What `ct info` tells: kind, shape, geometry, range, warnings; JSON-ready and without patient data.

    A DICOM folder with several series gives their list under `series`.

    Raises:
        InputError: as the readers.
    """
    path, kind = Path(path), format_of(path)
    base: dict[str, Any] = {"file": str(path), "format": kind}
    if kind in ("hdf5", "matlab", "dicom-ct-pd"):
        return {**base, **_scan_summary(read_scan(path))}
    if kind == "dicom":
        series = list_series(path)
        usable = [s for s in series if "LOCALIZER" not in str(s["image_type"])]
        base["series"] = series
        if len(usable) > 1:
            return {**base, "kind": "volume", "warnings": ["Several series; the other commands need --series UID."]}
    return {**base, **_volume_summary(read_volume(path))}


def _scan_summary(scan: Scan) -> dict[str, Any]:
    views, rows, columns = scan.shape
    order = np.sort(scan.theta_deg)
    names = [
        n for n in GEOMETRY_NUMBERS if scan.geometry == "cone" or n not in ("row_pitch_mm", "center_row", "slice_mm")
    ]
    known = {name: getattr(scan, name) for name in names}
    return {
        "kind": "scan",
        "views": views, "rows": rows, "columns": columns,
        "theta_deg": [float(order[0]), float(order[-1])],
        "geometry": scan.geometry, "detector": scan.detector,
        **known,
        "missing": [name for name, value in known.items() if value is None],
        "image_size": None if scan.image_size is None else list(scan.image_size),
        **({"image_slices": scan.image_slices} if scan.geometry == "cone" else {}),
        "affine": None if scan.affine is None else scan.affine.tolist(),
        "counts": scan.counts is not None,
        "dicom_header": scan.dicom is not None,
        "line_integral_range": [float(scan.line_integrals.min()), float(scan.line_integrals.max())],
        "warnings": list(scan.warnings),
    }  # fmt: skip


_HEADER_FACTS = {
    "Manufacturer": "manufacturer",
    "ManufacturerModelName": "model",
    "ConvolutionKernel": "kernel",
    "KVP": "kvp",
    "XRayTubeCurrent": "tube_current_ma",
    "Exposure": "exposure_mas",
    "SliceThickness": "slice_thickness_mm",
    "GantryDetectorTilt": "gantry_tilt_deg",
    "ReconstructionDiameter": "reconstruction_diameter_mm",
}


def _volume_summary(volume: Volume) -> dict[str, Any]:
    inside = volume.data if volume.valid is None else volume.data[volume.valid]
    facts: dict[str, Any] = {}
    if volume.headers:
        for keyword, name in _HEADER_FACTS.items():
            value = volume.headers[0].get(keyword, None)
            if value not in (None, ""):
                facts[name] = float(value) if isinstance(value, (int, float)) else str(value)
    return {
        "kind": "volume",
        "shape": list(volume.data.shape),
        "spacing_mm": [round(s, 6) for s in volume.spacing_mm],
        "unit": volume.unit,
        "orientation": volume.orientation,
        "affine": volume.affine.tolist(),
        "regular_slices": volume.slice_offsets_mm is None,
        "range": [float(inside.min()), float(inside.max())],
        "percentiles": {str(p): float(np.percentile(inside, p)) for p in (1, 50, 99)},
        "padding_share": 0.0 if volume.valid is None else float(1 - volume.valid.mean()),
        **facts,
        "warnings": list(volume.warnings),
    }
