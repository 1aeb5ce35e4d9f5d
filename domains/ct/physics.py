"""X-ray CT physics: Hounsfield units, photon and electronic noise, statistical weights, field of view, truncation."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from domains.ct.geometry import Geometry
from domains.ct.projector import Projector
from suite.errors import InputError

MU_WATER_PER_MM = 0.0206
"""Linear attenuation of water in 1/mm at 60 keV (NIST XCOM: 0.02059), about the mean energy of a 120 kVp beam."""

BODY_THRESHOLD_HU = -400.0
_MAD_TO_SIGMA = 1.4826
_TRUSTED_COUNT = 300.0  # photons above which a single count is a good weight


def hu_to_mu(hu: Tensor, mu_water_per_mm: float = MU_WATER_PER_MM) -> Tensor:
    """Hounsfield units to linear attenuation in 1/mm: `mu = mu_water (1 + HU / 1000)`."""
    return mu_water_per_mm * (1 + hu / 1000)


def mu_to_hu(mu: Tensor, mu_water_per_mm: float = MU_WATER_PER_MM) -> Tensor:
    """Linear attenuation in 1/mm to Hounsfield units: `HU = 1000 (mu / mu_water - 1)`."""
    return 1000 * (mu / mu_water_per_mm - 1)


class LogData(NamedTuple):
    """Line integrals and the inverse variance of their noise, of one shape; weight 0: no information."""

    line_integrals: Tensor
    weights: Tensor


def photon_counts(
    line_integrals: Tensor, photons: float | Tensor, electronic_sigma: float, generator: torch.Generator
) -> Tensor:
    """Draw `I = Poisson(I0 exp(-y)) + N(0, sigma_e^2)`, in photons.

    Args:
        line_integrals: `y`, any shape.
        photons: `I0` per ray without an object: a number, or broadcastable (a bowtie filter, tube-current modulation).
        electronic_sigma: read-out noise in photons.
    """
    blank = torch.as_tensor(photons, dtype=line_integrals.dtype, device=line_integrals.device)
    if not bool((blank > 0).all() & torch.isfinite(blank).all()):
        raise InputError("the number of photons per ray must be positive and finite")
    if not electronic_sigma >= 0:
        raise InputError(f"the electronic noise must be zero or more photons, not {electronic_sigma}")
    mean = (blank * torch.exp(-line_integrals)).to(generator.device)
    noise = torch.randn(mean.shape, generator=generator, device=generator.device, dtype=mean.dtype)
    return (torch.poisson(mean, generator=generator) + electronic_sigma * noise).to(line_integrals.device)


def log_data(counts: Tensor, photons: float | Tensor, electronic_sigma: float = 0.0) -> LogData:
    """Line integrals and statistical weights from counts `(..., views, bins)`, nearly unbiased at low counts.

    With `l` the mean count of a ray, `-log(I / I0)` has variance `(l + s^2) / l^2` (s: electronic noise) and, to second
    order, a mean too high by `(l + s^2) / (2 l^2)`. Weights `l^2 / (l + s^2)` from the same noisy count act the other
    way, by `1 / l`: a high count gives a low line integral and a high weight. So `l` mixes the count, its share `h`
    growing from 0 to 1 with its size, with the mean of its neighbours (which is wrong at edges), and
    `y = -log((I + c) / I0)`, `c = (1 + s^2 / l) / 2 - h`, balances both effects.

    Args:
        counts: photons per ray, offset corrected; may be zero or negative.
        photons: `I0`, a number or broadcastable.
        electronic_sigma: read-out noise in photons.
    """
    blank = torch.as_tensor(photons, dtype=counts.dtype, device=counts.device)
    variance = electronic_sigma**2
    known = torch.isfinite(counts) & torch.isfinite(blank) & (blank > 0)
    counts, blank = torch.where(known, counts, 0.0), torch.where(known, blank, 1.0)
    around = blank * _neighbours(torch.where(known, counts / blank, 0.0)).clamp_min(0)
    own = around / (around + _TRUSTED_COUNT)
    mean = torch.lerp(around, counts, own).clamp_min(0.5 * (1 + variance) ** 0.5)  # less says nothing but "few"
    shifted = counts + 0.5 * (1 + variance / mean) - own
    y = torch.log(blank / torch.maximum(shifted, 0.25 * mean))
    return LogData(torch.where(known, y, 0.0), torch.where(known, mean**2 / (mean + variance), 0.0))


def log_weights(line_integrals: Tensor, photons: float | Tensor, electronic_sigma: float = 0.0) -> Tensor:
    """Statistical weights of data that are already line integrals `(..., views, bins)`: `l^2 / (l + s^2)`,
    `l = I0 exp(-y)` with `y` smoothed over a few bins."""
    blank = torch.as_tensor(photons, dtype=line_integrals.dtype, device=line_integrals.device)
    known = torch.isfinite(line_integrals)
    mean = blank * torch.exp(-_neighbours(torch.where(known, line_integrals, 0.0)))
    return torch.where(known, mean**2 / (mean + electronic_sigma**2), 0.0)


def _neighbours(values: Tensor) -> Tensor:
    """Weighted mean of the three bins on either side, without the bin itself; ends repeated."""
    kernel = torch.tensor([1.0, 2.0, 3.0, 0.0, 3.0, 2.0, 1.0], dtype=values.dtype, device=values.device) / 12
    rows = functional.pad(values.reshape(-1, 1, values.shape[-1]), (3, 3), mode="replicate")
    return functional.conv1d(rows, kernel.reshape(1, 1, 7)).reshape(values.shape)


def estimate_photons(line_integrals: Tensor) -> Tensor:
    """Effective photons per ray of scans `(S, ..., views, bins)` whose noise is not known: `(S,)`.

    Photon noise has the variance `exp(y) / I0`. Sixth differences along the detector remove what is smooth; their
    median size, in units of `exp(y / 2)`, gives `I0` (the median is robust to edges; Donoho and Johnstone 1994). What
    fine structure the object has counts as noise too, so high counts are underestimated (on chest scans with bins of
    1.6 mm by a factor of 2 at 1e5 photons), and even noise-free data have a finite number. Noise that is correlated
    between bins is underestimated.
    """
    if line_integrals.shape[-1] < 8:
        raise InputError(f"a noise estimate needs at least 8 detector bins, not {line_integrals.shape[-1]}")
    y = torch.nan_to_num(line_integrals).flatten(1, -2)
    difference = torch.diff(y, n=6).abs() / math.comb(12, 6) ** 0.5
    middle = y[..., 3:-3]
    scaled = (difference * torch.exp(-0.5 * middle)).flatten(1)
    inside = (middle > 0.1).flatten(1)  # air can be exactly zero, clipped or calibrated away
    sigma = torch.stack(
        [_MAD_TO_SIGMA * (s[m] if bool(m.any()) else s).median() for s, m in zip(scaled, inside, strict=True)]
    )
    return 1 / sigma.clamp_min(1e-5) ** 2


def simulate(
    volume_hu: Tensor,
    pixel_size_mm: float,
    geometry: Geometry,
    *,
    photons: float | Tensor | None,
    electronic_sigma: float = 0.0,
    generator: torch.Generator | None = None,
    mu_water_per_mm: float = MU_WATER_PER_MM,
    rays_per_bin: int = 1,
) -> Tensor:
    """Scan slices `(S, ny, nx)` in HU: counts in photons `(S, 1, V, K)`, or line integrals when `photons` is None.

    The slices keep their own grid, about the same centre as the geometry's. A grid finer than the one to reconstruct on
    and several rays per bin avoid the inverse crime (data made by the very matrix that is to be inverted).

    Args:
        volume_hu: slices; what lies below -1000 HU counts as air.
        pixel_size_mm: their pixel pitch.
        geometry: the scan; its image grid is not used.
        photons, electronic_sigma, generator: see `photon_counts`.
        rays_per_bin: rays across each bin, whose intensities are averaged.
    """
    if rays_per_bin < 1:
        raise InputError(f"rays_per_bin is {rays_per_bin}; one or more are needed")
    fine = replace(
        geometry,
        image_shape=(volume_hu.shape[-2], volume_hu.shape[-1]),
        pixel_size_mm=pixel_size_mm,
        n_bins=geometry.n_bins * rays_per_bin,
        detector_pitch_mm=geometry.detector_pitch_mm / rays_per_bin,
        center_column=(geometry.center_column + 0.5) * rays_per_bin - 0.5,
    )
    y = Projector(fine)(hu_to_mu(volume_hu.to(torch.float32), mu_water_per_mm).clamp_min(0)[:, None])
    if rays_per_bin > 1:
        y = -torch.log(torch.exp(-y).unflatten(-1, (geometry.n_bins, rays_per_bin)).mean(-1))
    if photons is None:
        return y
    if generator is None:
        raise InputError("noise needs a random generator")
    return photon_counts(y, photons, electronic_sigma, generator)


def body_mask(image_hu: NDArray[Any], threshold_hu: float = BODY_THRESHOLD_HU) -> NDArray[np.bool_]:
    """The body in one slice `(ny, nx)`: above the threshold, opened, the largest piece, its holes filled."""
    above = ndimage.binary_opening(np.nan_to_num(image_hu, nan=-1e4) > threshold_hu, iterations=2)
    pieces, count = ndimage.label(above)
    if count == 0:
        return np.zeros(image_hu.shape, dtype=np.bool_)
    largest = 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
    return np.asarray(ndimage.binary_fill_holes(pieces == largest), dtype=np.bool_)


def field_of_view_mask(geometry: Geometry) -> NDArray[np.bool_]:
    """Pixels `(ny, nx)` whose centre every view sees."""
    x, y = geometry.pixel_centers()
    return np.asarray(x**2 + y[:, None] ** 2 <= geometry.fov_radius_mm**2)


def truncated_views(line_integrals: Tensor, noise_sigma: float = 0.0) -> float:
    """Share of the views of `(..., V, K)` in which the object reaches the detector's first or last bins.

    Outside the object the line integrals are zero up to noise; the ends count as covered when the mean of three bins
    exceeds 2 % of the largest line integral and four standard deviations of its noise.
    """
    y = torch.nan_to_num(line_integrals)
    limit = max(0.02 * float(y.amax()), 4 * noise_sigma / 3**0.5)
    ends = torch.maximum(y[..., :3].mean(-1), y[..., -3:].mean(-1))
    return float((ends > limit).to(torch.float32).mean())


def leaves_field_of_view(volume_hu: NDArray[Any], geometry: Geometry, pixel_size_mm: float | None = None) -> bool:
    """Whether the body in any slice `(S, ny, nx)` reaches beyond what every view sees."""
    grid = replace(
        geometry,
        image_shape=(volume_hu.shape[-2], volume_hu.shape[-1]),
        pixel_size_mm=geometry.pixel_size_mm if pixel_size_mm is None else pixel_size_mm,
    )
    outside = ~field_of_view_mask(grid)
    return any(bool((body_mask(image) & outside).any()) for image in volume_hu)
