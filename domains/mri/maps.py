"""Which coil maps a scan gets: ESPIRiT's, with the tightest support that explains the data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from domains.mri.coils import calibration_box, espirit, low_resolution, walsh
from domains.mri.physics import CartesianSense, ridge, ridge_weight
from suite.noise import generator

SETTINGS = ((6, 0.02), (6, 0.01), (6, 0.005), (5, 0.005), (4, 0.005))
"""Kernel and threshold of ESPIRiT, tried in turn. High thresholds leave out what lies at the rim of the object and beyond; small
kernels do with few calibration lines."""

EXPLAINED = 0.05
"""Chi-square of CG-SENSE, less what it leaves of pure noise, up to which maps explain the data."""

CHUNK = 8
"""Slices that are tried together."""


def calibrated_maps(
    raw: Tensor, data: Tensor, mask: Tensor, axes: Sequence[int], most: int, crop: float, warnings: list[str]
) -> Tensor:
    """Maps `(S, C, ny, nx)`: ESPIRiT, or Walsh where the calibration region is too small for it; ones for a single coil.

    Air that the maps leave out is known to be 0, which helps every method; object that they leave out can be explained by none.
    So each slice takes the first of `SETTINGS` with which CG-SENSE leaves no more than `EXPLAINED` beside noise, or else the
    best.

    Args:
        raw: white k-space `(S, C, ny, nx)`; data: the same, in image space along the axes not in `axes`.
        mask: bool `(S, 1, ny, nx)`.
        most: width of the calibration region at most.
        crop: of `espirit`.
        warnings: told where ESPIRiT could not be used.
    """
    if data.shape[1] == 1:
        return torch.ones_like(data)
    out = torch.empty_like(data)
    for rows in _alike(mask):
        box = calibration_box(mask[rows[0], 0], most)
        sides = [s.stop - s.start for s in box]
        if min(sides) < 6:
            said = (
                f"Only {sides[0]} x {sides[1]} points around the centre of k-space are fully sampled, too few for ESPIRiT; "
                "the coil maps were taken from low-resolution images (Walsh)."
            )
            if said not in warnings:
                warnings.append(said)
            out[rows] = walsh(low_resolution(raw[rows], box))
            continue
        for first in range(0, len(rows), CHUNK):
            some = rows[first : first + CHUNK]
            out[some] = _explaining(raw[some][..., box[0], box[1]], data[some], mask[some], axes, crop)
    return out


def _explaining(calibration: Tensor, data: Tensor, mask: Tensor, axes: Sequence[int], crop: float) -> Tensor:
    shape = (int(data.shape[-2]), int(data.shape[-1]))
    best = torch.full((len(data),), torch.inf)
    maps = torch.empty_like(data)
    for kernel, threshold in SETTINGS:
        left = (best > EXPLAINED).nonzero()[:, 0]
        if not len(left):
            break
        found = espirit(calibration[left], shape, kernel=kernel, crop=crop, threshold=threshold, noise=1.0)
        misfit = _misfit(found, data[left], mask[left], axes)
        better = misfit < best[left]
        maps[left[better]], best[left[better]] = found[better], misfit[better]
    return maps


def _misfit(maps: Tensor, data: Tensor, mask: Tensor, axes: Sequence[int]) -> Tensor:
    """Chi-square of CG-SENSE with these maps less what it leaves of pure noise, `(S,)`: what the maps do not explain."""
    operator = CartesianSense(maps, mask, axes)
    noise = torch.randn((2, 1, *data.shape[1:]), generator=generator(0, "maps")).to(data.device)
    white = mask * torch.complex(noise[0], noise[1])
    rhs = operator.adjoint(data)
    weight = ridge_weight(rhs, maps, mask.numel() / int(mask.sum()))

    def left(y: Tensor, rhs: Tensor, tolerance: float) -> Tensor:
        residual = operator(ridge(operator, rhs, weight, tolerance=tolerance)) - y
        return residual.abs().square().flatten(1).sum(1)

    of_noise = left(white, operator.adjoint(white), 1e-2) / white.abs().square().flatten(1).sum(1)
    points = 2 * data.shape[1] * mask.flatten(1).sum(1)
    return left(data, rhs, 1e-4) / points - of_noise


def _alike(mask: Tensor) -> list[list[int]]:
    """Slices grouped by their sampling."""
    groups: dict[bytes, list[int]] = {}
    for k, m in enumerate(mask):
        groups.setdefault(m.numpy().tobytes(), []).append(k)
    return list(groups.values())
