"""DICOM MR image series in: one folder, one series, slices in the order of their position."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from domains.mri.containers import LPS_RAS, Volume
from suite.errors import InputError
from suite.files import existing, reading


def is_dicom(path: Path) -> bool:
    """Whether a file carries the DICOM preamble."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def read_series(path: str | Path, *, series_uid: str | None = None) -> Volume:
    """A classic (single-frame) MR series as a volume; the rescale slope and intercept are applied.

    Raises:
        InputError: no MR image, several series and no `series_uid`, or slices that do not form one regular stack.
    """
    path = existing(path, folder=True)
    files = sorted(p for p in path.rglob("*") if is_dicom(p)) if path.is_dir() else [path]
    slices: dict[str, list[tuple[Path, Dataset]]] = {}
    for file in files:
        with reading(file, "is not a readable DICOM file"):
            header = pydicom.dcmread(file)
        if header.get("Modality") == "MR" and "PixelData" in header:
            slices.setdefault(str(header.get("SeriesInstanceUID", "")), []).append((file, header))
    if not slices:
        raise InputError(f"{path}: holds no MR image in DICOM format.")
    if series_uid is None and len(slices) > 1:
        raise InputError(f"{path}: holds several series, choose one with --series: {', '.join(slices)}.")
    if series_uid is not None and series_uid not in slices:
        raise InputError(f"{path}: holds no series {series_uid}; it holds {', '.join(slices)}.")
    return _volume(path, slices[series_uid or next(iter(slices))])


def _volume(path: Path, found: list[tuple[Path, Dataset]]) -> Volume:
    with reading(path, "is not a readable MR series"):
        if any(int(header.get("NumberOfFrames", 1)) > 1 for _, header in found):
            raise InputError(f"{path}: is an enhanced (multi-frame) series; convert it to NIfTI with dcm2niix.")
        axes = np.array([float(v) for v in found[0][1].ImageOrientationPatient]).reshape(2, 3)
        normal = np.cross(*axes)
        order = sorted(found, key=lambda item: float(_position(item[1]) @ normal))
        images = [_pixels(header) for _, header in order]
        affine = _affine(path, [header for _, header in order], axes, normal)
    if len({image.shape for image in images}) > 1:
        raise InputError(f"{path}: its slices differ in size; one series of equal slices is needed.")
    headers = tuple(_without_pixels(header) for _, header in order)
    return Volume(np.stack(images), affine, headers=headers, sources=tuple(file for file, _ in order))


def _position(header: Dataset) -> NDArray[np.float64]:
    return np.array([float(v) for v in header.ImagePositionPatient])


def _pixels(header: Dataset) -> NDArray[np.float32]:
    pixels: NDArray[np.float32] = header.pixel_array.astype(np.float32)
    slope = np.float32(header.get("RescaleSlope", 1) or 1)
    return pixels * slope + np.float32(header.get("RescaleIntercept", 0) or 0)


def _affine(
    path: Path, headers: list[Dataset], axes: NDArray[np.float64], normal: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Voxel (x, y, slice) -> RAS mm (PS3.3 C.7.6.2.1.1)."""
    row, column = (float(v) for v in headers[0].PixelSpacing)
    first, last = _position(headers[0]), _position(headers[-1])
    thickness = float(headers[0].get("SpacingBetweenSlices", 0) or headers[0].get("SliceThickness", 0) or 1)
    step = (last - first) / (len(headers) - 1) if len(headers) > 1 else normal * thickness
    gaps = np.diff([float(_position(header) @ normal) for header in headers])
    if len(gaps) and (gaps.min() < 1e-3 or gaps.max() - gaps.min() > 0.05 * gaps.max()):
        raise InputError(f"{path}: its slices repeat or are unevenly spaced ({gaps.min():.3g} to {gaps.max():.3g} mm).")
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2], affine[:3, 3] = axes[0] * column, axes[1] * row, step, first
    return LPS_RAS @ affine


def _without_pixels(header: Dataset) -> Dataset:
    kept = Dataset()
    for element in header:
        if element.tag.group % 2 == 0 and element.tag.group < 0x6000:
            kept.add(element)
    return kept
