"""DICOM CT series in: every trap of real folders is handled slice by slice or refused in one sentence.

Slices are sorted by ImagePositionPatient along the stack normal (never by file name or InstanceNumber), stored values
become HU by RescaleSlope and RescaleIntercept, padding outside the scan circle becomes air with a mask, and localizers,
reformats and foreign files in the folder are left out with a sentence. See DICOM PS3.3 C.7.6.2 and C.8.2.1.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from domains.ct.containers import Volume, checked, slice_bounds, to_lps
from domains.ct.dicom_image import (
    SliceImage,
    directions,
    hounsfield,
    is_dicom,
    numbers,
    quiet,
    read_dicom,
    slice_image,
)  # fmt: skip
from domains.ct.formats import valid_affine
from suite.errors import InputError
from suite.files import existing, reading

ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
DICOMDIR_CLASS = "1.2.840.10008.1.3.10"
_LPS_RAS = np.diag([-1.0, -1.0, 1.0])


def read_series(path: str | Path, *, series_uid: str | None = None, slices: slice | None = None) -> Volume:
    """A CT series from a folder (searched with its sub-folders), a DICOMDIR, or one image file.

    Args:
        path: the folder or file; a DICOMDIR stands for its folder.
        series_uid: which series, where a folder holds several.
        slices: which slices of the sorted stack (0 = the lowest, towards the feet).

    Returns:
        A `Volume` in HU with the headers of its slices. A tilted gantry gives a sheared affine; missing slices or a
        varying distance give `slice_offsets_mm`; both are named in `warnings`.

    Raises:
        InputError: no CT image, several series (listed), several images at one position, mixed sizes or directions,
            unknown HU scale, pixels that cannot be decoded, or a damaged file.
    """
    path = existing(path, folder=True)
    if path.is_file() and path.name.upper() == "DICOMDIR":
        path = path.parent
    with reading(path, "is a damaged DICOM series"):
        found, notes = _scan_files(path)
        images, left_out = _one_series(path, found, series_uid)
        notes += left_out
        images = _sorted_slices(path, _without_copies(images, notes), notes)
        positions = np.array([numbers(i, "ImagePositionPatient", 3) for i in images]) @ _LPS_RAS
        start, stop = slice_bounds(str(path), slices, len(images))
        return _volume(path, images[start:stop], positions[start:stop], notes)


def list_series(path: str | Path) -> list[dict[str, str | int]]:
    """The CT series below a folder: UID, number, description, slices, kernel. Holds no patient data.

    Raises:
        InputError: no CT image there.
    """
    path = existing(path, folder=True)
    if path.is_file() and path.name.upper() == "DICOMDIR":
        path = path.parent
    return _series_table(_scan_files(path)[0])


# --- finding the files -----------------------------------------------------------------------------------------------


def _scan_files(path: Path) -> tuple[list[SliceImage], list[str]]:
    """Every CT image at `path`, and sentences on what was passed over."""
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    foreign = [f for f in files if f.stat().st_size == 0 or not is_dicom(f)]
    if path.is_file() and foreign:
        raise InputError(f"{path}: is not a DICOM file.")
    images: list[SliceImage] = []
    others: Counter[str] = Counter()
    damaged: set[str] = set()
    for file in sorted(set(files) - set(foreign)):
        header = read_dicom(file)
        with reading(file, "is a damaged DICOM file"), quiet():
            kind = _refusal(header)
            if kind == "":
                images.append(slice_image(file, header, damaged))
            elif kind != "DICOMDIR":
                others[kind] += 1
    if not images:
        held = ", ".join(f"{n} {kind}" for kind, n in others.items()) or "no DICOM file"
        raise InputError(f"{path}: holds no CT image in single-frame DICOM ({held}).")
    notes = [f"{path}: {n} file(s) left out: {kind}." for kind, n in others.items()]
    if damaged:
        notes.append(f"{path}: unreadable header element(s) left out: {', '.join(sorted(damaged))}.")
    if foreign:
        names = ", ".join(f.name for f in foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        notes.append(f"{path}: {len(foreign)} file(s) left out that are not DICOM ({names}).")
    return images, notes


def _refusal(header: Dataset) -> str:
    """Why a DICOM object is not a CT slice; empty when it is one."""
    sop_class = str(header.get("SOPClassUID", header.get("MediaStorageSOPClassUID", "")))
    if sop_class == DICOMDIR_CLASS or "DirectoryRecordSequence" in header:
        return "DICOMDIR"
    if sop_class == ENHANCED_CT or str(header.get("NumberOfFrames", None) or "1").strip() not in ("0", "1"):
        return "multi-frame (Enhanced) image, which must be converted to single-frame files first"
    modality = str(header.get("Modality", "") or "no modality")
    if modality != "CT" and str(header.get("RescaleType", "")).upper() != "HU":
        return f"{modality} object where CT is needed"
    return "" if "Rows" in header and "Columns" in header else "CT object without pixels"


# --- choosing one series ---------------------------------------------------------------------------------------------


def _one_series(path: Path, images: list[SliceImage], series_uid: str | None) -> tuple[list[SliceImage], list[str]]:
    notes: list[str] = []
    if series_uid is not None:
        chosen = [i for i in images if i.series == series_uid]
        if not chosen:
            raise InputError(f"{path}: holds no series {series_uid}; it holds {_listing(images)}.")
        images = chosen
    original = {i.series for i in images if not i.derived and not i.localizer}
    for what, test in (
        ("localizer", lambda i: i.localizer),
        ("derived reformat", lambda i: i.reformat),
        ("derived image", lambda i: i.derived and i.series in original),
    ):
        out = [i for i in images if test(i)]
        if out and len(out) < len(images):
            gone = {id(i) for i in out}
            images = [i for i in images if id(i) not in gone]
            notes.append(f"{path}: {len(out)} {what}(s) left out.")
    if images[0].localizer:
        raise InputError(f"{path}: holds only localizer images; an axial CT series is needed.")
    if len({i.series for i in images}) > 1:
        raise InputError(f"{path}: holds several series, choose one with --series UID: {_listing(images)}.")
    return images, notes


def _series_table(images: Iterable[SliceImage]) -> list[dict[str, str | int]]:
    groups: dict[str, list[SliceImage]] = defaultdict(list)
    for image in images:
        groups[image.series].append(image)
    return [
        {
            "series_uid": uid,
            "number": str(group[0].header.get("SeriesNumber", "") or ""),
            "description": str(group[0].header.get("SeriesDescription", "") or ""),
            "kernel": str(group[0].header.get("ConvolutionKernel", "") or ""),
            "image_type": "\\".join(group[0].image_type),
            "slices": len(group),
        }
        for uid, group in sorted(groups.items(), key=lambda item: item[0])
    ]


def _listing(images: Iterable[SliceImage]) -> str:
    rows = _series_table(images)
    listed = [f"{r['series_uid']} ({r['description'] or 'no description'}, {r['slices']} slices)" for r in rows[:12]]
    return "; ".join(listed) + (f"; and {len(rows) - 12} more" if len(rows) > 12 else "")


def _without_copies(images: list[SliceImage], notes: list[str]) -> list[SliceImage]:
    """One file per SOP instance: the same image exported twice is no second slice."""
    unique: dict[str, SliceImage] = {}
    for image in images:
        unique.setdefault(str(image.header.get("SOPInstanceUID", "") or image.path), image)
    if len(unique) < len(images):
        notes.append(f"{images[0].path.parent}: {len(images) - len(unique)} file(s) left out that repeat another.")
    return list(unique.values())


# --- geometry --------------------------------------------------------------------------------------------------------


def _sorted_slices(path: Path, images: list[SliceImage], notes: list[str]) -> list[SliceImage]:
    """The slices from the feet up, all of one size and direction, no two at one place."""
    first = images[0]
    axes, shape = directions(first), (first.header.Rows, first.header.Columns)
    pitch = numbers(first, "PixelSpacing", 2)
    for image in images:
        same = (image.header.Rows, image.header.Columns) == shape
        same = same and np.allclose(directions(image), axes, atol=2e-3)
        if not (same and np.allclose(numbers(image, "PixelSpacing", 2), pitch, rtol=1e-4)):
            raise InputError(
                f"{path}: its series mixes image sizes, pixel spacings or directions ({first.path.name} and "
                f"{image.path.name} differ); one axial stack is needed."
            )
    normal = np.cross(axes[0], axes[1])
    if abs(normal[2]) < 0.7:
        raise InputError(f"{path}: holds coronal, sagittal or oblique images; axial slices are needed.")
    normal *= np.sign(normal[2])
    height = {id(i): float(numbers(i, "ImagePositionPatient", 3) @ normal) for i in images}
    images = sorted(images, key=lambda i: height[id(i)])
    for low, high in itertools.pairwise(images):
        if height[id(high)] - height[id(low)] < 0.01:
            raise InputError(
                f"{path}: {low.path.name} and {high.path.name} lie at the same position (two kernels, phases or times "
                f"in one series); leave one image per position."
            )
    tilt = _tilt_degrees(images, normal)
    if tilt > 0.5:
        notes.append(f"{path}: the gantry was tilted by {tilt:.1f} degrees; the slices are kept as they are.")
    if any(str(i.header.get("LossyImageCompression", "")) == "01" for i in images):
        notes.append(f"{path}: the images went through lossy compression before.")
    return images


def _tilt_degrees(images: list[SliceImage], normal: NDArray[np.float64]) -> float:
    """Angle between the stack direction and the slice normal; the header's own tilt for a single slice."""
    if len(images) == 1:
        return abs(float(images[0].header.get("GantryDetectorTilt", 0) or 0))
    step = numbers(images[-1], "ImagePositionPatient", 3) - numbers(images[0], "ImagePositionPatient", 3)
    return float(np.degrees(np.arccos(np.clip(step @ normal / np.linalg.norm(step), -1, 1))))


def _spacing_notes(path: Path, offsets: NDArray[np.float64]) -> list[str]:
    """Sentences on missing slices and on a varying slice distance."""
    gaps = np.linalg.norm(np.diff(offsets, axis=0), axis=1)
    usual = float(np.median(gaps))
    wide = np.flatnonzero(gaps > 1.5 * usual)
    if wide.size and np.allclose(np.delete(gaps, wide), usual, rtol=0.02):
        k = int(wide[0])
        return [
            f"{path}: slices seem to be missing, the first between slices {k} and {k + 1} ({gaps[k]:.2f} mm apart, "
            f"where {usual:.2f} mm is usual); slices are kept at their own positions."
        ]
    return [f"{path}: the slice distance varies from {gaps.min():.2f} to {gaps.max():.2f} mm; positions are kept."]


def _volume(path: Path, images: Sequence[SliceImage], positions: NDArray[np.float64], notes: list[str]) -> Volume:
    first = images[0]
    axes, pitch = directions(first) @ _LPS_RAS, numbers(first, "PixelSpacing", 2)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = axes[0] * pitch[1], axes[1] * pitch[0]
    normal = np.cross(axes[0], axes[1])
    thickness = next((float(v) for n in ("SliceThickness", "SpacingBetweenSlices") if (v := first.header.get(n))), 1.0)
    affine[:3, 2] = normal * np.sign(normal[2]) * thickness
    affine[:3, 3] = positions[0]
    if not valid_affine(affine):
        raise InputError(f"{first.path}: its PixelSpacing and orientation give no usable geometry.")
    data = np.empty((len(images), int(first.header.Rows), int(first.header.Columns)), np.float32)
    valid = np.ones(data.shape, bool)
    for k, image in enumerate(images):
        data[k], valid[k] = hounsfield(image, notes)
    lps, affine_lps, orientation = to_lps(data, affine)
    volume = Volume(
        lps,
        affine_lps,
        valid=None if valid.all() else to_lps(valid, affine)[0].astype(bool),
        headers=tuple(i.header for i in images),
        orientation=orientation,
        sources=tuple(i.path for i in images),
    ).with_offsets(positions - positions[0])
    if volume.slice_offsets_mm is not None:
        notes += _spacing_notes(path, volume.slice_offsets_mm)
    volume = checked(volume)
    return replace(volume, warnings=tuple(dict.fromkeys((*notes, *volume.warnings))))
