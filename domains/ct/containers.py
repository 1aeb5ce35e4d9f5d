"""What the CT files hold, in memory: an image `Volume` and a measured `Scan`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from scipy import ndimage

from suite.errors import InputError

AIR_HU = -1024.0
ORIENTATION = "LPS"
"""Voxel order in memory: x to the patient's left, y to the back (row 0 is anterior, the top), z to the head."""

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Volume:
    """A stack of axial slices.

    Attributes:
        data: float32 `(z, y, x)`, row 0 at the top (anterior), in LPS order whatever the file's order was.
        affine: 4x4, voxel `(x, y, z)` -> RAS mm. Sheared for a tilted gantry.
        unit: "HU" or "1/mm".
        valid: bool `(z, y, x)`; False where the file had padding or NaN (`data` is -1024 there).
        headers: the DICOM header of each slice, in the order of `data`, without pixels, private groups and overlays.
        slice_offsets_mm: `(z, 3)` RAS offset of each slice from slice 0 where the slice distance is irregular, so that
            the third column of `affine` is only a mean; None for a regular stack.
        orientation: axis codes of the file the data came from (`"RAS"`, ...): writers return to it.
        sources: files read.
        warnings: sentences a user should see.
    """

    data: Array
    affine: NDArray[np.float64]
    unit: str = "HU"
    valid: NDArray[np.bool_] | None = None
    headers: tuple[Dataset, ...] | None = None
    slice_offsets_mm: NDArray[np.float64] | None = None
    orientation: str = ORIENTATION
    sources: tuple[Path, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel pitch along (x, y, z)."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def pixel_size_mm(self) -> float:
        """In-plane pitch; raises `InputError` when the two directions differ by more than 0.1 %."""
        x, y, _ = self.spacing_mm
        if abs(x - y) > 1e-3 * max(x, y):
            raise InputError(f"{self.name}: the pixels are {x:g} x {y:g} mm, and square pixels are needed here.")
        return 0.5 * (x + y)

    @property
    def name(self) -> str:
        """The file or folder the volume came from, for messages."""
        if not self.sources:
            return "volume"
        return str(self.sources[0] if len(self.sources) == 1 else self.sources[0].parent)

    def select(self, slices: slice | None) -> Volume:
        """The slices `slices` of the stack, geometry and headers with them."""
        if slices is None:
            return self
        n = len(self.data)
        start, stop = slice_bounds(self.name, slices, n)
        affine, offsets = self.affine.copy(), self.slice_offsets_mm
        affine[:3, 3] += offsets[start] if offsets is not None else start * affine[:3, 2]
        part = replace(
            self,
            data=self.data[start:stop],
            affine=affine,
            valid=None if self.valid is None else self.valid[start:stop],
            headers=None if self.headers is None else self.headers[start:stop],
            sources=self.sources[start:stop] if len(self.sources) == n > 1 else self.sources,
        )
        return part if offsets is None else part.with_offsets(offsets[start:stop] - offsets[start])

    def with_offsets(self, offsets: NDArray[np.float64]) -> Volume:
        """The volume with its slices at `offsets` (`(z, 3)` RAS mm from slice 0), regular or not."""
        affine, n = self.affine.copy(), len(offsets)
        if n == 1:
            return replace(self, slice_offsets_mm=None)
        affine[:3, 2] = offsets[-1] / (n - 1)
        line = np.arange(n)[:, None] * affine[:3, 2]
        regular = np.abs(offsets - line).max() < max(0.02, 0.01 * float(np.linalg.norm(affine[:3, 2])))
        return replace(self, affine=affine, slice_offsets_mm=None if regular else offsets)


@dataclass(frozen=True, eq=False)
class Scan:
    """A measured (or simulated) stack of sinograms in one 2D geometry; the conventions are those of docs and CLI:

    bin `k` at angle `th` sees `x cos th + y sin th = (k - center_column) * pitch`; in fan beam the source is at
    `(0, -source_origin_mm)` at `th = 0` and turns counter-clockwise; pixel `(i, j)` of an n x n image lies at
    `x = (j - (n-1)/2) p`, `y = ((n-1)/2 - i) p`.

    Attributes:
        line_integrals: float32 `(view, row, column)`; `row` is the slice of the stack.
        theta_deg: float64 `(view,)`.
        counts, white, dark: raw counts `(view, row, column)` and the mean open-beam and dark images `(row, column)`,
            when the file has them: `line_integrals = -log((counts - dark) / (white - dark))`.
        geometry: "parallel", "fan" or "cone"; detector: "flat" or "curved" (equal angles, centred on the source). In a cone
            `row` is a detector row, at `(row - center_row) * row_pitch_mm` along z (domains/ct/cone.py), and the image
            has `image_slices` slices `slice_mm` apart, centred on the plane of the source.
        detector_pitch_mm: bin width at the detector; pixel_size_mm: pitch of the image to reconstruct.
        photons: mean open-beam photons per ray; electronic_sigma: read-out noise in photons.
        image_size: (rows, columns) of the image to reconstruct.
        affine: 4x4, voxel (x, y, z) of that image -> RAS mm.
        dicom: JSON of the per-slice DICOM headers of the source.
        Geometry a file does not hold is None.
    """

    line_integrals: Array
    theta_deg: NDArray[np.float64]
    counts: Array | None = None
    white: Array | None = None
    dark: Array | None = None
    geometry: Literal["parallel", "fan", "cone"] = "parallel"
    detector: Literal["flat", "curved"] = "flat"
    pixel_size_mm: float | None = None
    detector_pitch_mm: float | None = None
    source_origin_mm: float | None = None
    origin_detector_mm: float | None = None
    center_column: float | None = None
    photons: float | None = None
    electronic_sigma: float | None = None
    mu_water_per_mm: float | None = None
    row_pitch_mm: float | None = None
    center_row: float | None = None
    slice_mm: float | None = None
    image_slices: int | None = None
    image_size: tuple[int, int] | None = None
    affine: NDArray[np.float64] | None = None
    dicom: str | None = None
    sources: tuple[Path, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        views, rows, columns = self.line_integrals.shape
        return views, rows, columns


def slice_bounds(name: str, slices: slice | None, count: int) -> tuple[int, int]:
    """First and last-plus-one slice of `slices` out of `count`.

    Raises:
        InputError: an empty range, one that reaches past the stack, or a step.
    """
    if slices is None:
        return 0, count
    start, stop, step = slices.indices(count)
    if step != 1 or not start < stop or (slices.stop is not None and slices.stop > count):
        asked = f"{'' if slices.start is None else slices.start}:{'' if slices.stop is None else slices.stop}"
        raise InputError(f"{name}: slices {asked} are not within the {count} slices 0:{count}.")
    return start, stop


def to_lps(data: Array, affine: NDArray[np.float64]) -> tuple[Array, NDArray[np.float64], str]:
    """`(z, y, x)` data of any voxel order -> LPS order, its affine, and the axis codes it had."""
    codes = nib.orientations.aff2axcodes(affine)
    data, affine = _reorient(data, affine, "".join(codes), ORIENTATION)
    return data, affine, "".join(codes)


def from_lps(data: Array, affine: NDArray[np.float64], orientation: str) -> tuple[Array, NDArray[np.float64]]:
    """The inverse of `to_lps`."""
    return _reorient(data, affine, ORIENTATION, orientation)


def _reorient(data: Array, affine: NDArray[np.float64], source: str, target: str) -> tuple[Array, NDArray[np.float64]]:
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt(tuple(source)), nib.orientations.axcodes2ornt(tuple(target))
    )
    xyz = data.transpose(2, 1, 0)
    turned = nib.orientations.apply_orientation(xyz, turn).transpose(2, 1, 0)
    # ascontiguousarray, because torch refuses the negative strides that a flip leaves
    return np.ascontiguousarray(turned), affine @ nib.orientations.inv_ornt_aff(turn, xyz.shape)


def checked(volume: Volume) -> Volume:
    """The volume with NaN and padding turned to air, or an `InputError` when its values cannot be what it says.

    Raises:
        InputError: no voxel, no finite value, one constant value, or values that cannot be Hounsfield units.
    """
    if volume.data.size == 0:
        raise InputError(f"{volume.name}: the image is empty.")
    volume = _repair_nonfinite(volume)
    if volume.unit != "HU":
        return volume
    volume = _mask_padding(volume)
    inside = volume.data if volume.valid is None else volume.data[volume.valid]
    if inside.size == 0:
        raise InputError(f"{volume.name}: every pixel is padding; an image in HU is needed.")
    low, high = float(inside.min()), float(inside.max())
    if max(abs(low), abs(high)) <= 20 or low < -33000 or high > 66000:
        raise InputError(f"{volume.name}: the values lie in {low:g} .. {high:g}, which cannot be HU; rescale to HU.")
    if low > -200 and inside.size > 4096:
        said = f"{volume.name}: no value lies below -200 HU (lowest {low:g}), so these may not be Hounsfield units."
        volume = replace(volume, warnings=(*volume.warnings, said))
    return volume


def _repair_nonfinite(volume: Volume) -> Volume:
    """Single NaN pixels take their nearest finite neighbour in the slice; NaN regions (over 1 %) become padding."""
    bad = ~np.isfinite(volume.data)
    count = int(bad.sum())
    if count == 0:
        return volume
    if count == bad.size:
        raise InputError(f"{volume.name}: every value is NaN or infinite.")
    data, valid = volume.data.copy(), volume.valid
    if count > 0.01 * bad.size:
        data[bad] = AIR_HU if volume.unit == "HU" else 0.0
        valid = ~bad if valid is None else valid & ~bad
        said = f"{volume.name}: {100 * count / bad.size:.1f} % of the pixels were NaN and are taken as padding (air)."
    else:
        for k in np.flatnonzero(bad.any(axis=(1, 2))):
            if bad[k].all():
                raise InputError(f"{volume.name}: slice {k} holds only NaN.")
            nearest = ndimage.distance_transform_edt(bad[k], return_distances=False, return_indices=True)
            data[k] = data[k][tuple(nearest)]
        said = f"{volume.name}: {count} NaN or infinite pixel(s) were replaced by their nearest neighbour."
    return replace(volume, data=data, valid=valid, warnings=(*volume.warnings, said))


def _mask_padding(volume: Volume) -> Volume:
    """One value below -1024 HU that fills over 0.5 % of the image is padding outside the scan circle, not tissue."""
    low = float(volume.data.min())
    if low >= AIR_HU:
        return volume
    padding = volume.data == low
    if padding.mean() < 0.005:
        return volume
    data = np.where(padding, np.float32(AIR_HU), volume.data)
    valid = ~padding if volume.valid is None else volume.valid & ~padding
    return replace(volume, data=data, valid=valid)
