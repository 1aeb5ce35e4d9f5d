"""From single readouts with counters (ISMRMRD, twix) to k-space on a grid, or to samples along a trajectory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from domains.mri.containers import LPS_RAS, KSpace, checked
from suite.errors import InputError

Array = NDArray[np.complex64]
EXTRA = ("repetition", "phase", "set", "contrast")
"""Counters that become leading axes where they take more than one value, in this order."""


@dataclass(frozen=True, eq=False)
class Readout:
    """One imaging readout.

    Attributes:
        samples: complex64 `(coil, sample)`.
        center: index of the sample at k = 0.
        ky, kz: line and partition, counted as the scanner does.
        slice, contrast, phase, repetition, set: counters.
        dwell_us: time between samples, 0 where unknown.
        position: centre of the slice, LPS mm; directions: `(3, 3)` rows read, phase, slice in LPS. None where unknown.
        trajectory: `(sample, 2)`, (ky, kx), or None.
    """

    samples: Array
    center: int
    ky: int = 0
    kz: int = 0
    slice: int = 0
    contrast: int = 0
    phase: int = 0
    repetition: int = 0
    set: int = 0
    dwell_us: float = 0.0
    position: NDArray[np.float64] | None = None
    directions: NDArray[np.float64] | None = None
    trajectory: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Encoding:
    """What was encoded, and what is to be reconstructed; axes (x, y, z) with x the readout.

    Attributes:
        matrix, fov_mm: of the encoded space; recon_matrix, recon_fov_mm: of the image.
        center: (line, partition) at k = 0.
    """

    matrix: tuple[int, int, int]
    fov_mm: tuple[float, float, float]
    recon_matrix: tuple[int, int, int]
    recon_fov_mm: tuple[float, float, float]
    center: tuple[int, int]

    def kept(self, axis: int) -> int:
        """Pixels of the image along an axis at the encoded resolution."""
        share = self.recon_fov_mm[axis] / self.fov_mm[axis]
        return max(1, min(self.matrix[axis], round(self.matrix[axis] * share)))


def gridded(
    path: Path,
    readouts: Sequence[Readout],
    encoding: Encoding,
    noise: Array | None,
    noise_dwell_us: float,
    **facts: Any,
) -> KSpace:
    """The k-space of a Cartesian scan.

    Lines go to `ky - center + n // 2` and samples to `sample - center_sample + n // 2`, so that lines or echo parts that were
    not acquired (partial Fourier, asymmetric echo) stay zero; repeated lines are averaged. The readout's oversampling is
    cut in the image domain where the echo is whole; where it is not, the image is cropped at the end instead.

    Raises:
        InputError: no readout, or counters outside the encoded matrix.
    """
    coils = _coils(path, readouts)
    nx, ny, nz = (max(1, n) for n in encoding.matrix)
    sizes = {name: 1 + max(getattr(r, name) for r in readouts) for name in (*EXTRA, "slice")}
    extra = tuple(name for name in EXTRA if sizes[name] > 1)
    shape = (*(sizes[name] for name in extra), sizes["slice"], coils, nz, ny, nx)
    if math.prod(shape) > 1 << 31:
        raise InputError(f"{path}: its counters ask for a k-space of {shape} values, which no scan has.")
    total = np.zeros(shape, np.complex64)
    count = np.zeros((*shape[: len(extra) + 1], nz, ny), np.int32)
    whole = True
    for r in readouts:
        where = (*(getattr(r, name) for name in extra), r.slice)
        z, y = r.kz - encoding.center[1] + nz // 2, r.ky - encoding.center[0] + ny // 2
        first = nx // 2 - r.center
        if not (0 <= z < nz and 0 <= y < ny) or first < 0 or first + r.samples.shape[1] > nx:
            raise InputError(
                f"{path}: a readout (line {r.ky}, partition {r.kz}, {r.samples.shape[1]} samples around {r.center}) lies "
                f"outside the encoded matrix {encoding.matrix} with its centre at {encoding.center}."
            )
        whole = whole and r.samples.shape[1] == nx
        total[(*where, slice(None), z, y, slice(first, first + r.samples.shape[1]))] += r.samples
        count[(*where, z, y)] += 1
    total /= np.maximum(count, 1)[..., None, :, :, None]
    kept = encoding.kept(0)
    if whole and kept < nx:
        total, noise = without_oversampling(total, kept), noise
    data = total if nz > 1 else total[..., 0, :, :]
    repeats = int(np.median(count[count > 0]))
    kspace = KSpace(
        data,
        extra=extra,
        three_d=nz > 1,
        matrix=(encoding.kept(1), kept),
        affine=affine_of(readouts, encoding, nz > 1),
        noise=_scaled_noise(noise, noise_dwell_us, readouts, repeats),
        facts={**facts, "averages": repeats, "readouts": len(readouts)},
        sources=(path,),
    )
    return checked(kspace)


def along_trajectory(
    path: Path,
    readouts: Sequence[Readout],
    encoding: Encoding,
    noise: Array | None,
    noise_dwell_us: float,
    **facts: Any,
) -> KSpace:
    """The samples of a 2D non-Cartesian scan, the same trajectory in every slice and frame.

    Raises:
        InputError: no trajectory in the file, one of other than two dimensions, or one that differs between slices.
    """
    coils = _coils(path, readouts)
    sizes = {name: 1 + max(getattr(r, name) for r in readouts) for name in (*EXTRA, "slice")}
    extra = tuple(name for name in EXTRA if sizes[name] > 1)
    groups: dict[tuple[int, ...], list[Readout]] = {}
    for r in readouts:
        if r.trajectory is None or r.trajectory.shape != (r.samples.shape[1], 2):
            raise InputError(f"{path}: a readout has no two-dimensional trajectory, without which it cannot be placed.")
        groups.setdefault((*(getattr(r, name) for name in extra), r.slice), []).append(r)
    paths = [np.concatenate([r.trajectory for r in group if r.trajectory is not None]) for group in groups.values()]
    if any(p.shape != paths[0].shape or not np.allclose(p, paths[0], atol=1e-3 * np.abs(p).max()) for p in paths):
        raise InputError(f"{path}: the trajectory differs between slices or frames, which is not supported.")
    data = np.zeros((*(sizes[name] for name in extra), sizes["slice"], coils, len(paths[0])), np.complex64)
    for where, group in groups.items():
        data[where] = np.concatenate([r.samples for r in group], axis=1)
    ny, nx = encoding.matrix[1], encoding.matrix[0]
    trajectory = in_cycles_per_fov(path, paths[0], (ny, nx))
    kspace = KSpace(
        data,
        extra=extra,
        trajectory=trajectory,
        grid=(ny, nx),
        matrix=(encoding.kept(1), encoding.kept(0)),
        affine=affine_of(readouts, encoding, False),
        noise=_scaled_noise(noise, noise_dwell_us, readouts, 1),
        facts={**facts, "readouts": len(readouts)},
        sources=(path,),
    )
    return checked(kspace)


def in_cycles_per_fov(path: Path, trajectory: NDArray[np.float32], grid: tuple[int, int]) -> NDArray[np.float32]:
    """A trajectory in cycles per pixel (at most 0.5) or per field of view (at most n/2), in cycles per field of view.

    Raises:
        InputError: neither fits.
    """
    reach = float(np.abs(trajectory).max())
    if reach <= 0.51:
        return (trajectory * np.asarray(grid, np.float32)).astype(np.float32)
    if 0.25 * min(grid) <= reach <= 0.51 * max(grid) + 1:
        return trajectory.astype(np.float32)
    raise InputError(
        f"{path}: the trajectory reaches {reach:g}, which is neither cycles per pixel (0.5) nor per field of view "
        f"({max(grid) / 2:g})."
    )


def without_oversampling(data: Array, kept: int) -> Array:
    """The k-space of the central `kept` pixels along the last axis (orthonormal, so white noise keeps its variance)."""
    image = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(data, axes=-1), norm="ortho", axis=-1), axes=-1)
    first = data.shape[-1] // 2 - kept // 2
    image = image[..., first : first + kept]
    out = np.fft.fftshift(np.fft.fft(np.fft.ifftshift(image, axes=-1), norm="ortho", axis=-1), axes=-1)
    acquired = (data != 0).any(axis=-1, keepdims=True)
    return np.where(acquired, out, 0).astype(np.complex64)


def _coils(path: Path, readouts: Sequence[Readout]) -> int:
    if not readouts:
        raise InputError(f"{path}: holds no imaging readout.")
    coils = {r.samples.shape[0] for r in readouts}
    if len(coils) > 1:
        raise InputError(
            f"{path}: its readouts have {' and '.join(map(str, sorted(coils)))} coils; one number is needed."
        )
    return coils.pop()


def _scaled_noise(noise: Array | None, dwell_us: float, readouts: Sequence[Readout], repeats: int) -> Array | None:
    """The noise as it is in the data: its variance falls with a longer dwell time, and with averages."""
    if noise is None or noise.shape[0] != readouts[0].samples.shape[0]:
        return None
    dwell = readouts[0].dwell_us
    ratio = dwell_us / dwell if dwell_us > 0 and dwell > 0 else 1.0
    return (noise * np.float32(math.sqrt(ratio / max(1, repeats)))).astype(np.complex64)


def affine_of(readouts: Sequence[Readout], encoding: Encoding, three_d: bool) -> NDArray[np.float64] | None:
    """Voxel (x, y, slice) -> RAS mm of the image to reconstruct, from positions and directions of the slices."""
    first: dict[int, Readout] = {}
    for r in readouts:
        if r.position is not None and r.directions is not None:
            first.setdefault(r.slice, r)
    if not first or min(*encoding.fov_mm[:2]) <= 0:
        return None
    low, high = first[min(first)], first[max(first)]
    assert low.position is not None and low.directions is not None and high.position is not None
    if np.abs(np.linalg.norm(low.directions, axis=1) - 1).max() > 0.01:
        return None
    nx, ny = encoding.kept(0), encoding.kept(1)
    px, py = encoding.fov_mm[0] / encoding.matrix[0], encoding.fov_mm[1] / encoding.matrix[1]
    thickness = encoding.fov_mm[2] / max(1, encoding.matrix[2]) or 1.0
    step = low.directions[2] * thickness
    if len(first) > 1 and not three_d and np.linalg.norm(high.position - low.position) > 1e-3:
        step = (high.position - low.position) / (max(first) - min(first))
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = low.directions[0] * px, low.directions[1] * py, step
    middle = np.array([nx // 2, ny // 2, max(1, encoding.matrix[2]) // 2 if three_d else 0])
    affine[:3, 3] = low.position - affine[:3, :3] @ middle
    return np.asarray(LPS_RAS @ affine)


def renumbered(readouts: Sequence[Readout]) -> list[Readout]:
    """The readouts with slices and extra counters numbered without gaps."""
    names = (*EXTRA, "slice")
    places = {name: {v: i for i, v in enumerate(sorted({getattr(r, name) for r in readouts}))} for name in names}

    def place(readout: Readout, name: str) -> int:
        return places[name][getattr(readout, name)]

    return [
        replace(
            r,
            slice=place(r, "slice"),
            contrast=place(r, "contrast"),
            phase=place(r, "phase"),
            repetition=place(r, "repetition"),
            set=place(r, "set"),
        )
        for r in readouts
    ]
