"""Filtered back-projection for parallel and fan beam.

`mu(x) = sum_v dbeta_v (D / L)^2 [h * (w p cos gamma)](u(x, v))` (Kak and Slaney 1988, sections 3.3 and 3.4): `h` is the
ramp filter, `L` the source distance along the central ray (flat detector) or to the pixel (curved), both weights 1
in parallel beam, and `w` shares rays that were measured twice between the two measurements.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import fft
from torch import Tensor

from domains.ct.geometry import Geometry
from suite.errors import InputError

Filter = Literal["ramp", "shepp-logan", "hann"]
_TAPER = math.radians(10.0)  # Noo et al. 2002, section 3.3


def fbp(geometry: Geometry, sinogram: Tensor, filter: Filter = "ramp") -> Tensor:
    """Reconstruct `mu` in 1/mm, `(B, C, ny, nx)`, from line integrals `(B, C, V, K)`.

    View angles may be uneven, in any order, and cover any arc; what an arc leaves out stays out.

    Args:
        geometry: the scan.
        sinogram: line integrals.
        filter: "ramp" (Ram-Lak), "shepp-logan" or "hann", from sharp to smooth.

    Raises:
        InputError: an unknown filter, or a sinogram that does not fit the geometry.
    """
    if tuple(sinogram.shape[2:]) != geometry.sinogram_shape or sinogram.ndim != 4:
        raise InputError(f"the sinogram has shape {tuple(sinogram.shape)}, not (B, C, *{geometry.sinogram_shape})")
    gamma = geometry.fan_angles
    weight = view_weights(geometry)[:, None] * redundancy_weights(geometry) * np.cos(gamma)
    weighted = sinogram * torch.as_tensor(weight, dtype=sinogram.dtype, device=sinogram.device)
    filtered = _filter_rows(geometry, weighted, filter)
    image = _back_project(geometry, filtered.flatten(0, 1))
    return image.reshape(*sinogram.shape[:2], *geometry.image_shape)


def view_weights(geometry: Geometry) -> NDArray[np.float64]:
    """Angle in radians that each view stands for: half the way to its neighbours, `(V,)`; open ends count as even."""
    order, gaps, opening, usual = _gaps(geometry)
    if opening is not None:
        gaps[opening] = usual
    weights = np.empty_like(gaps)
    weights[order] = 0.5 * (gaps + np.roll(gaps, 1))
    return weights


def redundancy_weights(geometry: Geometry) -> NDArray[np.float64]:
    """Share of each ray `(V, K)`, so that a ray and its opposite `(beta + pi - 2 gamma, -gamma)` count once in all.

    `w = c(beta) / (c(beta) + c(beta + pi - 2 gamma))` with a taper `c` at the ends of an open arc (Noo, Defrise,
    Clackdoyle and Kudo, Phys. Med. Biol. 47, 2002, eq. 36), 1/2 on a full circle and 1 on a half one.
    """
    beta = geometry.angles[:, None]
    opposite = beta + np.pi - 2 * geometry.fan_angles
    start, length = _arc(geometry)
    own, other = (_taper(np.mod(b - start, 2 * np.pi), length) for b in (beta, opposite))
    return np.asarray(own / (own + other))


def _gaps(geometry: Geometry) -> tuple[NDArray[np.intp], NDArray[np.float64], int | None, float]:
    """The views by angle, the gap behind each, the number of the gap that opens the circle (if any), the usual gap."""
    angles = np.mod(geometry.angles, 2 * np.pi)
    order = np.argsort(angles, kind="stable")
    gaps = np.diff(angles[order], append=angles[order[0]] + 2 * np.pi)
    if len(gaps) < 3:
        return order, gaps, int(np.argmax(gaps)), np.pi / len(gaps)
    usual, (second, largest) = float(np.median(gaps)), np.sort(gaps)[-2:]
    opens = largest > 3 * usual and largest > 2 * second
    return order, gaps, int(np.argmax(gaps)) if opens else None, usual


def _arc(geometry: Geometry) -> tuple[float, float]:
    """Start and length in radians of the arc that the views cover."""
    order, gaps, opening, usual = _gaps(geometry)
    if opening is None:
        return 0.0, 2 * np.pi
    first = order[(opening + 1) % len(order)]
    return float(geometry.angles[first] - usual / 2), float(2 * np.pi - gaps[opening] + usual)


def _taper(angle: NDArray[np.float64], length: float) -> NDArray[np.float64]:
    if length >= 2 * np.pi:
        return np.ones_like(angle)
    ramp = min(_TAPER, length / 4)
    edge = np.minimum(angle, length - angle).clip(0, ramp)
    return np.asarray(np.sin(0.5 * np.pi * edge / ramp) ** 2)


def _filter_rows(geometry: Geometry, rows: Tensor, filter: Filter) -> Tensor:
    """Convolve each view with the band-limited ramp (Kak and Slaney, eq. 61, 124), sampled in space."""
    bins = geometry.n_bins
    n = np.arange(-(bins - 1), bins, dtype=np.float64)
    if geometry.detector == "curved":
        step = geometry.detector_pitch_mm / geometry.source_detector_mm
        distance = np.sin(n * step)
        # per radian; t = D sin gamma makes a factor D on the lengths
        scale = 1.0 / geometry.source_origin_mm
    else:
        magnification = geometry.source_detector_mm / geometry.source_origin_mm if geometry.kind == "fan" else 1.0
        step = geometry.detector_pitch_mm / magnification
        distance = n * step
        scale = 1.0
    odd = n.astype(int) % 2 == 1
    kernel = np.zeros_like(n)
    kernel[odd] = -1 / (np.pi * distance[odd]) ** 2
    kernel[bins - 1] = 1 / (4 * step**2)
    size = fft.next_fast_len(3 * bins, real=True)
    response = np.fft.rfft(kernel, size) * np.exp(2j * np.pi * np.fft.rfftfreq(size) * (bins - 1))
    frequency = np.fft.rfftfreq(size)  # cycles per bin
    if filter == "shepp-logan":
        response *= np.sinc(frequency)
    elif filter == "hann":
        response *= 0.5 * (1 + np.cos(2 * np.pi * frequency))
    elif filter != "ramp":
        raise InputError(f"filter {filter!r} is unknown; it is 'ramp', 'shepp-logan' or 'hann'")
    gain = torch.as_tensor(response.real * step * scale, dtype=rows.dtype, device=rows.device)
    return torch.fft.irfft(torch.fft.rfft(rows, n=size) * gain, n=size)[..., :bins]


def _back_project(geometry: Geometry, rows: Tensor) -> Tensor:
    """Sum over views of linearly interpolated rows `(S, V, K)` at each pixel: `(S, ny, nx)`."""
    x, y = (torch.as_tensor(v, device=rows.device) for v in geometry.pixel_centers())
    padded = torch.nn.functional.pad(rows, (1, 1)).permute(1, 2, 0).contiguous()  # zero beyond the detector
    total = rows.new_zeros(geometry.image_shape[0] * geometry.image_shape[1], rows.shape[0])
    for view, angle in enumerate(geometry.angles.tolist()):
        across = x * math.cos(angle) + y[:, None] * math.sin(angle)
        along = y[:, None] * math.cos(angle) - x * math.sin(angle)
        position, weight = _detector_position(geometry, across, along)
        position = (position + 1).clamp(0, geometry.n_bins + 1).flatten()
        left = position.floor().clamp(max=geometry.n_bins).to(torch.int64)
        fraction = (position - left).to(rows.dtype)[:, None]
        values = torch.lerp(padded[view][left], padded[view][left + 1], fraction)
        total += values if weight is None else values * weight.to(rows.dtype).reshape(-1, 1)
    return total.T.reshape(-1, *geometry.image_shape)


def _detector_position(geometry: Geometry, across: Tensor, along: Tensor) -> tuple[Tensor, Tensor | None]:
    """Bin (fractional) that sees a point, and its distance weight `(D / L)^2`.

    The point lies `across` along the bins' direction and `along` from the axis towards the detector, in mm.
    """
    if geometry.kind == "parallel":
        return across / geometry.detector_pitch_mm + geometry.center_column, None
    depth = geometry.source_origin_mm + along
    if geometry.detector == "flat":
        u = across / depth * geometry.source_detector_mm
        weight = (geometry.source_origin_mm / depth) ** 2
    else:
        u = torch.atan2(across, depth) * geometry.source_detector_mm
        weight = geometry.source_origin_mm**2 / (across**2 + depth**2)
    return u / geometry.detector_pitch_mm + geometry.center_column, weight
