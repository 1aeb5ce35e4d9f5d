"""DICOM-CT-PD: a folder with one DICOM file per view (Chen et al., Med. Phys. 42, 6964, 2015; Moen et al., Med. Phys.
48, 902, 2021, Table IV of the LDCT-and-Projection-data collection).

Private little-endian elements hold the geometry. The focal centre lies at `(-rho sin phi, rho cos phi)`, so this
package's angle (source at `(0, -rho)` at 0, counter-clockwise) is `phi + 180` degrees. Only an axial fan scan without a
flying focal spot is a `Scan`; anything else is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from domains.ct.containers import Array, Scan
from domains.ct.dicom_image import is_dicom, quiet, read_dicom
from domains.ct.scans import geometry_number, repaired
from suite.errors import InputError
from suite.files import existing, reading

ROWS, COLUMNS = 0x70291010, 0x70291011
TRANSVERSE_SPACING, DETECTOR_SHAPE = 0x70291002, 0x7029100B
ANGLE, AXIAL_POSITION, RADIAL_DISTANCE = 0x70311001, 0x70311002, 0x70311003
SOURCE_DETECTOR, CENTRAL_ELEMENT = 0x70311031, 0x70311033
SHIFTS = (0x7033100B, 0x7033100C, 0x7033100D)
FOCAL_SPOT_MODE, SPECTRA, PHOTONS = 0x7033100E, 0x70331061, 0x70331065
SCAN_TYPE, WATER, WATER_V1 = 0x70371009, 0x70411001, 0x00180061
_SIZES = {"f": 4, "H": 2}


def is_projection_folder(path: Path) -> bool:
    """Whether a folder's first DICOM file carries the projection-data groups."""
    for file in sorted(f for f in path.iterdir() if f.is_file() and f.stat().st_size):
        if is_dicom(file):
            return ANGLE in read_dicom(file)
    return False


def read_ct_pd(path: str | Path) -> Scan:
    """A folder of DICOM-CT-PD views of one axial rotation.

    Raises:
        InputError: helical scan, flying focal spot, several spectra, views that disagree, damaged file.
    """
    path = existing(path, folder=True)
    files = sorted(f for f in path.iterdir() if f.is_file() and f.stat().st_size and is_dicom(f))
    views = [(f, read_dicom(f, pixels=True)) for f in files]
    lacking = next((f for f, d in views if ANGLE not in d), None)
    if not views or lacking is not None:
        raise InputError(f"{lacking or path}: is no DICOM-CT-PD view (it lacks the focal spot angle (7031,1001)).")
    with reading(path, "is not a readable DICOM-CT-PD folder"):
        views.sort(key=lambda v: int(v[1].get("InstanceNumber", 0) or 0))
        _require_axial_fan(path, views)
        file, first = views[0]
        values = np.stack([_view(f, d) for f, d in views])
        lines, notes = repaired(path, values, "the projections")
        if values.shape[1] > 1:
            notes.append(f"{path}: the {values.shape[1]} detector rows are treated as parallel fans (no cone angle).")
        scan_geometry = _geometry(file, first)
        phi = np.array([_number(f, d, ANGLE, "focal spot angle") for f, d in views])
    photons = _photons(views)
    return Scan(
        lines,
        np.degrees(np.unwrap(phi)) + 180.0,
        geometry="fan",
        photons=photons,
        sources=tuple(files),
        warnings=tuple(notes),
        **scan_geometry,
    )


def _require_axial_fan(path: Path, views: list[tuple[Path, Dataset]]) -> None:
    heights = np.array([_number(f, d, AXIAL_POSITION, "axial position") for f, d in views])
    first = views[0][1]
    kind = _word(first, SCAN_TYPE)
    if "HELI" in kind or "SPIRAL" in kind or np.ptp(heights) > 0.01:
        raise InputError(f"{path}: is a helical (moving-table) scan, and an axial scan at one position is needed.")
    shifts = [_values(d[tag].value, "f") for _, d in views for tag in SHIFTS if tag in d]
    if _word(first, FOCAL_SPOT_MODE) not in ("", "FFSNONE") or any(np.abs(s).max(initial=0) > 1e-6 for s in shifts):
        raise InputError(f"{path}: was measured with a flying focal spot, and a still one is needed.")
    if SPECTRA in first and _values(first[SPECTRA].value, "H")[0] > 1:
        raise InputError(f"{path}: holds several sources or spectra, and one is needed.")


def _view(file: Path, view: Dataset) -> Array:
    """Line integrals of one view: `(row, column)`."""
    with reading(file, "is a damaged DICOM-CT-PD view"), quiet():
        rows, columns = (int(_values(view[tag].value, "H")[0]) for tag in (ROWS, COLUMNS))
        stored = np.asarray(view.pixel_array, dtype=np.float32)
        if stored.shape == (columns, rows):  # the format's own order: one image row per detector column
            stored = stored.T
        if stored.shape != (rows, columns):
            raise InputError(f"{file}: has {stored.shape} pixels for {rows} detector rows of {columns} columns.")
        return stored * np.float32(view.RescaleSlope) + np.float32(view.RescaleIntercept)


def _geometry(file: Path, first: Dataset) -> dict[str, Any]:
    source = _number(file, first, RADIAL_DISTANCE, "source to isocentre distance")
    detector = _number(file, first, SOURCE_DETECTOR, "source to detector distance")
    pitch = _number(file, first, TRANSVERSE_SPACING, "detector element spacing")
    if detector <= source:
        raise InputError(f"{file}: has its detector ({detector:g} mm) nearer to the source than the isocentre.")
    water_tag = next((tag for tag in (WATER, WATER_V1) if tag in first), None)
    water = None if water_tag is None else _number(file, first, water_tag, "water attenuation")
    return {
        "detector": "flat" if _word(first, DETECTOR_SHAPE) == "FLAT" else "curved",
        "source_origin_mm": source,
        "origin_detector_mm": detector - source,
        "detector_pitch_mm": pitch,
        "pixel_size_mm": pitch * source / detector,
        "center_column": float(_values(first[CENTRAL_ELEMENT].value, "f")[0]) - 1.0,  # the format counts from 1
        "mu_water_per_mm": water if water is not None and 0.01 < water < 0.06 else None,
    }


def _photons(views: list[tuple[Path, Dataset]]) -> float | None:
    """Median open-beam photons per ray over the scan (the format gives them per view and column)."""
    counts = [_values(d[PHOTONS].value, "f") for _, d in views if PHOTONS in d]
    usable = [c[np.isfinite(c) & (c > 0)] for c in counts]
    return float(np.median(np.concatenate(usable))) if usable and any(len(c) for c in usable) else None


def _values(value: Any, kind: str) -> NDArray[Any]:
    """An element's numbers, whether its reader knew the VR or left bytes (UN, OB) or text (DS)."""
    if isinstance(value, bytes):
        return np.frombuffer(value[: len(value) // _SIZES[kind] * _SIZES[kind]], "<f4" if kind == "f" else "<u2")
    return np.atleast_1d(np.array(value, dtype=np.float64))


def _number(file: Path, view: Dataset, tag: int, what: str) -> float:
    if tag not in view:
        raise InputError(f"{file}: lacks the {what} ({tag >> 16:04X},{tag & 0xFFFF:04X}).")
    value = view[tag].value
    if isinstance(value, bytes) and len(value) != 4:  # WaterAttenuationCoefficient is text in some files
        value = value.decode("ascii").strip("\0 ")
    number = float(_values(value, "f")[0])
    return number if tag in (ANGLE, AXIAL_POSITION) and np.isfinite(number) else geometry_number(file, what, number)


def _word(view: Dataset, tag: int) -> str:
    if tag not in view:
        return ""
    value = view[tag].value
    return (value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)).strip("\0 ").upper()
