"""From raw k-space to a well-posed problem: independent 2D slices with white noise of standard deviation 1, and coil maps."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from domains.mri.air import air_covariance
from domains.mri.coils import calibration_box, espirit
from domains.mri.containers import KSpace, Volume
from domains.mri.maps import calibrated_maps
from domains.mri.noise import (
    compression_matrix,
    covariance_of,
    mix_coils,
    outer_noise,
    robust_covariance,
    whitening_matrix,
)
from domains.mri.nufft import NonCartesianSense, Nufft, density_compensation, nufft
from domains.mri.null_space import null_space_covariance
from domains.mri.physics import CartesianSense, Window, centre_crop, support_box, transformed_axes
from suite.errors import InputError
from suite.linalg import conjugate_gradient
from suite.noise import generator
from suite.operators import FFT

MOST_COILS = 12
"""More coils than this are compressed to as many combinations."""

NOISE_BOX = 32
"""Width of the calibration region whose null space tells the noise, at most."""

NOISE_SLICES = 3
"""So many slices tell the noise, evenly spaced."""


@dataclass(frozen=True)
class Problem:
    """A batch of 2D reconstructions, `S` of them: slices, frames, or (3D) positions along the readout.

    Attributes:
        kspace: what was read.
        data: whitened, compressed k-space `(S, C, ny, nx)`, in image space along the axes not in `axes`.
        mask: bool `(S, 1, ny, nx)`.
        axes: the axes still to be transformed.
        fourier: the transform of data along a trajectory, `(S, C, 1, M)` with a mask of ones; None on a grid.
        maps: sensitivities `(S, C, ny, nx)`.
        box: rows and columns that hold the support of the whole scan's maps; the same for every part of it.
        mixing: `(coils of the file, C)`, from whitened compressed coils back to the file's.
        noise_known: False when the noise was estimated from the data.
        acceleration: all points over acquired points.
        warnings: sentences for the user.
    """

    kspace: KSpace
    data: Tensor
    mask: Tensor
    axes: tuple[int, ...]
    fourier: Nufft | None
    maps: Tensor
    box: tuple[slice, slice]
    mixing: Tensor
    noise_known: bool
    acceleration: float
    warnings: tuple[str, ...]

    @property
    def slices(self) -> int:
        return int(self.data.shape[0])

    def operator(self) -> CartesianSense | NonCartesianSense:
        if self.fourier is not None:
            return NonCartesianSense(self.maps, self.fourier)
        return CartesianSense(self.maps, self.mask, self.axes)

    def window(self) -> Window:
        """From the images that a network sees to whole images."""
        ny, nx = self.maps.shape[-2:]
        return Window(self.box, (int(ny), int(nx)))

    def part(self, rows: slice | list[int], device: torch.device | None = None) -> Problem:
        """Some of the 2D problems."""
        device = device or self.data.device
        chosen = (t[rows].to(device) for t in (self.data, self.mask, self.maps))
        data, mask, maps = chosen
        return replace(self, data=data, mask=mask, maps=maps, mixing=self.mixing.to(device))

    def misfit(self, image: Tensor) -> Tensor:
        """`|A x - y|^2 / (2 M)` of a whitened image `(S, 1, ny, nx)`, one value for each slice; about 1 for a good fit."""
        residual = self.operator()(image) - self.data
        points = self.mask.expand(len(self.data), *self.mask.shape[1:]).flatten(1).sum(1) * self.data.shape[1]
        return residual.abs().square().flatten(1).sum(1) / (2 * points)

    def unit(self) -> Tensor:
        """`|L s(r)|`: what turns the whitened image into the root sum of squares of the file's coils, `(S, 1, ny, nx)`."""
        size = mix_coils(self.mixing, self.maps).abs().square().sum(1, keepdim=True).sqrt()
        inside = size > 0
        return torch.where(inside, size, size[inside].mean() if bool(inside.any()) else 1.0)

    def coil_images(self) -> Tensor:
        """Zero-filled (along a trajectory: gridded, density compensated) whitened coil images `(S, C, ny, nx)`."""
        if self.fourier is not None:
            return self.fourier.adjoint(density_compensation(self.fourier) * self.data)
        return FFT(self.axes).adjoint(self.data)

    def volume(self, values: Tensor) -> Volume:
        """Images `(S, 1, ny, nx)` as a volume in the file's axes, cropped to the reconstruction matrix."""
        array = values[:, 0].cpu()
        kspace = self.kspace
        frames = kspace.data.shape[: len(kspace.extra)]
        if kspace.three_d:  # (extra, slab, x, z, y) -> (extra, z, y, x)
            array = array.reshape(*frames, -1, kspace.data.shape[-1], *array.shape[1:])
            if array.shape[len(frames)] > 1:
                raise InputError(f"{kspace.name}: holds several 3D slabs; reconstruct one at a time")
            array = array.select(len(frames), 0).movedim(len(frames), -1)
        else:
            array = array.reshape(*frames, -1, *array.shape[1:])
        if kspace.matrix is not None:
            array = centre_crop(array, kspace.matrix)
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) if kspace.affine is None else kspace.affine
        return Volume(np.ascontiguousarray(array.numpy(), dtype=np.float32), affine, sources=kspace.sources)


def pose(kspace: KSpace, *, coils: int = MOST_COILS, calibration: int = 24, crop: float = 0.9) -> Problem:
    """Whiten, compress, split into 2D problems, and estimate the coil maps.

    Args:
        kspace: what was read.
        coils: combinations kept of more coils than this.
        calibration: width of the calibration region at most.
        crop: of `espirit`.

    Raises:
        InputError: a k-space without its centre.
    """
    warnings = list(kspace.warnings)
    data, mask = _slices(kspace)
    data, mixing, known = _whitened(kspace, data, mask, warnings)
    fourier, inner = None, None
    if kspace.trajectory is not None and kspace.grid is not None:
        fourier = nufft(torch.from_numpy(kspace.trajectory), kspace.grid)
        inner = _gridded_centre(data, fourier.trajectory, calibration)
    if data.shape[1] > coils:
        centre = _inner(data, mask, calibration) if inner is None else inner
        keep = compression_matrix(centre.movedim(1, 0).flatten(1), coils)
        data, mixing = mix_coils(keep, data), mixing @ keep.mH
        inner = None if inner is None else mix_coils(keep, inner)
        warnings.append(f"{kspace.coils} coils were compressed to {coils} combinations.")
    axes: tuple[int, ...] = (-2, -1)
    if inner is not None and kspace.grid is not None:
        maps = (
            espirit(inner, kspace.grid, crop=crop) if data.shape[1] > 1 else torch.ones(len(data), 1, *kspace.grid) + 0j
        )
        acceleration = math.prod(kspace.grid) / data.shape[-1]
    else:
        axes = transformed_axes(mask)
        acceleration = mask.numel() / int(mask.sum())
        raw = data
        rest = tuple(a for a in (-2, -1) if a not in axes)
        data = FFT(rest).adjoint(data).contiguous() if rest else data  # the maps and all work take this layout
        maps = calibrated_maps(raw, data, mask, axes, calibration, crop, warnings)
    if kspace.affine is None:
        warnings.append(f"{kspace.name}: holds no geometry, so voxels of 1 mm are written.")
    box = support_box(maps)
    return Problem(kspace, data, mask, axes, fourier, maps, box, mixing, known, acceleration, tuple(warnings))


def _gridded_centre(data: Tensor, trajectory: Tensor, width: int) -> Tensor:
    """The centre of k-space on a grid, `(S, C, width, width)`, by least squares from the samples around it."""
    size = 4 * -(-width // 3)
    near = (trajectory.abs() < size / 2).all(1)
    fourier = nufft(trajectory[near], (size, size))
    samples = data[..., near]
    level = len(trajectory[near]) / size**2
    flat = fourier.adjoint(samples)
    images = conjugate_gradient(lambda x: fourier.adjoint(fourier.forward(x)) + 1e-3 * level * x, flat, iterations=30)
    first = size // 2 - width // 2
    return FFT()(images)[..., first : first + width, first : first + width]


def _slices(kspace: KSpace) -> tuple[Tensor, Tensor]:
    """`(S, C, ny, nx)` and bool `(S, 1, ny, nx)`; in 3D the readout is transformed and its positions become the slices.

    A slice without any sample (nothing but background, without noise) counts as sampled where the others are.
    """
    data = torch.from_numpy(np.ascontiguousarray(kspace.data))
    if kspace.trajectory is not None:
        image = data.flatten(0, -3)[:, :, None]
        return image, torch.ones(len(image), 1, 1, image.shape[-1], dtype=torch.bool)
    if kspace.three_d:
        data = data.flatten(0, -5)  # (frame, coil, kz, ky, kx)
        mask = (data != 0).any(1).any(-1)
        count = data.shape[-1]
        image = FFT((-1,)).adjoint(data).movedim(-1, 1).flatten(0, 1)
        mask = mask.repeat_interleave(count, 0)[:, None]
    else:
        image = data.flatten(0, -4)
        mask = (image != 0).any(1, keepdim=True)
    empty = ~mask.flatten(1).any(1)
    if bool(empty.any()):
        mask[empty] = mask.any(0, keepdim=True)
    return image, mask


def _whitened(kspace: KSpace, data: Tensor, mask: Tensor, warnings: list[str]) -> tuple[Tensor, Tensor, bool]:
    """White data, the matrix back, and whether the noise was known rather than estimated."""
    coils = data.shape[1]
    if kspace.noise is not None:
        covariance, known = covariance_of(torch.from_numpy(kspace.noise)), True
    elif kspace.noise_sigma is not None:
        covariance, known = kspace.noise_sigma**2 * torch.eye(coils, dtype=torch.complex128), True
    else:
        covariance, known = estimated_noise(kspace, data, mask), False
        level = math.sqrt(float(covariance.diagonal().real.mean()))
        warnings.append(
            f"{kspace.name}: holds no noise scan; the noise was estimated from the data (standard deviation {level:.3g}), so "
            "the misfit is relative to that estimate."
        )
    white = whitening_matrix(covariance)
    return mix_coils(white, data), torch.linalg.inv(white), known


def estimated_noise(kspace: KSpace, data: Tensor, mask: Tensor) -> Tensor:
    """The noise covariance where no noise was measured: of the outer k-space, or of the calibration's null space, or of air.

    All hold a rest of signal where the image is sharp, or the coils and the object leave no null space, or the object no air,
    and so err upwards: the lowest counts. Air is asked where there is no null space, as with a single coil.
    """
    outer = robust_covariance(_outer(kspace, data, mask))
    if kspace.trajectory is not None:
        return outer
    rows = torch.linspace(0, len(data) - 1, min(len(data), NOISE_SLICES)).round().long().unique().tolist()
    rng = generator(0, "null space")
    found = []
    for row in rows:
        y, x = calibration_box(mask[row, 0], NOISE_BOX)
        inner = null_space_covariance(data[row, :, y, x], outer, rng)
        found += [] if inner is None else [inner]
    second = torch.stack(found).mean(0) if found else air_covariance(data[rows], mask[rows])
    if second is None:
        return outer
    return min(outer, second, key=lambda c: float(c.diagonal().real.sum()))


def _outer(kspace: KSpace, data: Tensor, mask: Tensor) -> Tensor:
    """The samples farthest out in k-space, `(coil, sample)`."""
    if kspace.trajectory is None:
        return outer_noise(data, mask)
    radius = torch.from_numpy(np.abs(kspace.trajectory).max(1))
    return data[..., 0, radius > 0.9 * radius.max()].movedim(1, 0).flatten(1)


def _inner(data: Tensor, mask: Tensor, most: int) -> Tensor:
    box = calibration_box(mask.all(0)[0], most)
    return data[..., box[0], box[1]]


def to_numpy(values: Tensor) -> NDArray[np.float32]:
    """An image as an array; a reconstruction that is not finite is a fault, not a result."""
    if not bool(torch.isfinite(values).all()):
        raise RuntimeError("the reconstruction is not finite")
    return np.asarray(values.cpu().numpy())
