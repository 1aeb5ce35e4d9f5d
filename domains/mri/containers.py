"""What the MRI files hold, in memory: an image `Volume` and raw `KSpace`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from suite.errors import InputError

LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""DICOM's patient axes (left, posterior, superior) to NIfTI's (right, anterior, superior), and back."""


@dataclass(frozen=True, eq=False)
class Volume:
    """A stack of magnitude (or phase, or standard deviation) images.

    Attributes:
        data: float32 `(..., slice, y, x)`; leading axes are contrasts, phases, repetitions. The voxel order is the file's.
        affine: 4x4, voxel `(x, y, slice)` -> RAS mm.
        headers: DICOM header of each slice, without pixels, where the images came from DICOM.
        sources: files read.
        warnings: sentences a user should see.
    """

    data: NDArray[np.float32]
    affine: NDArray[np.float64]
    headers: tuple[Dataset, ...] | None = None
    sources: tuple[Path, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel pitch along (x, y, slice)."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def name(self) -> str:
        return str(self.sources[0]) if self.sources else "volume"

    def select(self, slices: slice | None) -> Volume:
        """The slices `slices` of the stack, their position with them."""
        if slices is None:
            return self
        start, stop = slice_bounds(self.name, slices, self.data.shape[-3])
        affine = self.affine.copy()
        affine[:3, 3] += start * affine[:3, 2]
        headers = None if self.headers is None else self.headers[start:stop]
        return replace(self, data=self.data[..., start:stop, :, :], affine=affine, headers=headers)


@dataclass(frozen=True, eq=False)
class KSpace:
    """Raw k-space of one scan, on a Cartesian grid, or along a trajectory.

    Attributes:
        data: complex64. Cartesian 2D `(..., slice, coil, ky, kx)`; Cartesian 3D `(..., slab, coil, kz, ky, kx)`, kx the
            readout; along a trajectory `(..., slice, coil, sample)`. Zero where nothing was acquired; k = 0 at `n // 2`.
        extra: names of the leading axes before the slice or slab (contrast, phase, repetition, ...).
        three_d: True for Cartesian 3D.
        trajectory: `(sample, 2)`, (ky, kx) in cycles per field of view, or None.
        grid: (y, x) of the field of view in pixels, for data along a trajectory.
        matrix: (y, x) of the image to reconstruct; smaller than the grid where the readout is oversampled.
        affine: 4x4, voxel (x, y, slice) of that image -> RAS mm, or None where the file holds no geometry.
        noise: a noise scan `(coil, sample)`, in units of `data`, or None.
        noise_sigma: standard deviation of the noise in each real and each imaginary part where the file tells it.
        target: reference image `(slice, y, x)` of the file, or None.
        facts: what else the header says, for `info`.
        sources: files read.
        warnings: sentences a user should see.
    """

    data: NDArray[np.complex64]
    extra: tuple[str, ...] = ()
    three_d: bool = False
    trajectory: NDArray[np.float32] | None = None
    grid: tuple[int, int] | None = None
    matrix: tuple[int, int] | None = None
    affine: NDArray[np.float64] | None = None
    noise: NDArray[np.complex64] | None = None
    noise_sigma: float | None = None
    target: NDArray[np.float32] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    sources: tuple[Path, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return str(self.sources[0]) if self.sources else "the k-space"

    @property
    def grid_axes(self) -> int:
        """How many of the last axes are k-space positions."""
        return 1 if self.trajectory is not None else 3 if self.three_d else 2

    @property
    def coils(self) -> int:
        return int(self.data.shape[-1 - self.grid_axes])

    @property
    def acquired(self) -> NDArray[np.bool_]:
        """Where any coil of any slice holds a value: `(*grid)`."""
        axes = tuple(range(self.data.ndim - self.grid_axes))
        found: NDArray[np.bool_] = (self.data != 0).any(axis=axes)
        return found


def slice_bounds(name: str, slices: slice, count: int) -> tuple[int, int]:
    """First and last-plus-one slice of `slices` out of `count`.

    Raises:
        InputError: an empty range, or one that reaches past the stack.
    """
    start, stop, _ = slices.indices(count)
    if not start < stop or (slices.stop is not None and slices.stop > count):
        asked = f"{'' if slices.start is None else slices.start}:{'' if slices.stop is None else slices.stop}"
        raise InputError(f"{name}: slices {asked} are not within the {count} slices 0:{count}")
    return start, stop


def checked(kspace: KSpace) -> KSpace:
    """The k-space with single values that are not finite taken as not acquired.

    Raises:
        InputError: no sample, every value NaN, or every value zero.
    """
    data = kspace.data
    if data.size == 0:
        raise InputError(f"{kspace.name}: holds no k-space sample (shape {data.shape}).")
    bad = ~np.isfinite(data)
    count = int(bad.sum())
    if count == data.size:
        raise InputError(f"{kspace.name}: every k-space value is NaN or infinite.")
    if count:
        if count > 0.01 * data.size:
            raise InputError(
                f"{kspace.name}: {100 * count / data.size:.1f} % of the k-space values are NaN or infinite; "
                "finite values, or zeros where nothing was acquired, are needed."
            )
        coil = data.ndim - 1 - kspace.grid_axes
        data = np.where(bad.any(axis=coil, keepdims=True), np.complex64(0), data)
        said = f"{kspace.name}: {count} k-space value(s) were NaN or infinite; those points count as not acquired."
        kspace = replace(kspace, data=data, warnings=(*kspace.warnings, said))
    if not data.any():
        raise InputError(f"{kspace.name}: every k-space value is zero, so nothing was acquired.")
    return kspace
