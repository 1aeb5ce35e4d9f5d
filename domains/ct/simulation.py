"""A measurement simulated from a reference volume, for studies with a known truth."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from domains.ct.cone import ConeGeometry, ConeProjector, cone
from domains.ct.containers import AIR_HU, Scan, Volume
from domains.ct.data import headers_to_json
from domains.ct.geometry import Geometry, equal_angles, fan, parallel
from domains.ct.physics import MU_WATER_PER_MM, hu_to_mu, photon_counts, simulate
from suite.config import Config
from suite.errors import InputError
from suite.noise import generator

SOURCE_ORIGIN_MM, ORIGIN_DETECTOR_MM = 595.0, 490.6
"""Distances of a common clinical gantry; the source moves out when the image would not fit."""


class SimulationConfig(Config):
    """Settings of `ct simulate`; arc None: 180 degrees in parallel beam, 360 in fan and cone beam."""

    views: int
    arc: float | None = None
    geometry: str = "parallel"
    photons: float = 1e5
    electronic: float = 0.0
    size: int | None = None
    seed: int = 0


def resized(volume: Volume, size: int | None) -> Volume:
    """The volume on a `size` x `size` grid over the same field of view: mean over the source pixels (area average).

    Raises:
        InputError: the slices are not square, or finer pixels are asked for than the volume has.
    """
    data = volume.data if volume.valid is None else np.where(volume.valid, volume.data, np.float32(AIR_HU))
    ny, nx = data.shape[1:]
    if size is None or (ny, nx) == (size, size):
        return replace(volume, data=data, valid=None)
    if ny != nx:
        side = max(ny, nx)
        top, left = (side - ny) // 2, (side - nx) // 2
        widths = ((0, 0), (top, side - ny - top), (left, side - nx - left))
        affine = volume.affine.copy()
        affine[:3, 3] -= left * affine[:3, 0] + top * affine[:3, 1]
        squared = np.pad(data, widths, constant_values=AIR_HU)
        return resized(replace(volume, data=squared, valid=None, affine=affine), size)
    if size > nx:
        raise InputError(f"{volume.name}: the slices have {nx} x {nx} pixels, and --size {size} asks for finer ones.")
    stack = torch.from_numpy(np.ascontiguousarray(data))[:, None]
    small = functional.adaptive_avg_pool2d(stack, size) if nx % size == 0 else _area(stack, size)
    factor = nx / size
    affine = volume.affine.copy()
    affine[:3, :2] *= factor
    affine[:3, 3] += (factor - 1) / 2 * (volume.affine[:3, 0] + volume.affine[:3, 1])
    return replace(volume, data=small[:, 0].numpy(), valid=None, affine=affine)


def _area(stack: torch.Tensor, size: int) -> torch.Tensor:
    return functional.interpolate(stack, (size, size), mode="bilinear", antialias=True, align_corners=False)


def scan_of(volume: Volume, config: SimulationConfig) -> Scan:
    """Simulate a scan of every slice, or of the volume in a cone.

    Raises:
        InputError: no views, a volume that is not in HU, irregular slices, or impossible noise.
    """
    if volume.unit != "HU":
        raise InputError(f"{volume.name}: the values are in {volume.unit}, and HU are needed.")
    if volume.slice_offsets_mm is not None:
        raise InputError(f"{volume.name}: the slice distance varies; choose a regular part with --slices A:B.")
    volume = resized(volume, config.size)
    geometry = _geometry(config, volume)
    digest = hashlib.sha256(np.ascontiguousarray(volume.data).tobytes()).hexdigest()
    counts = _counts(volume, geometry, config, generator(config.seed, digest))
    _, rows, bins = counts.shape
    white = np.full((rows, bins), config.photons, dtype=np.float32)
    lines = -torch.log((counts / config.photons).clamp_min(0.5 / config.photons))
    return Scan(
        line_integrals=lines.numpy(),
        counts=counts.numpy(),
        white=white,
        dark=np.zeros_like(white),
        **_facts(geometry),
        photons=config.photons,
        electronic_sigma=config.electronic,
        mu_water_per_mm=MU_WATER_PER_MM,
        image_size=(volume.data.shape[1], volume.data.shape[2]),
        affine=volume.affine,
        dicom=None if volume.headers is None else headers_to_json(volume.headers),
        sources=volume.sources,
        warnings=volume.warnings,
    )


def _counts(
    volume: Volume, geometry: Geometry | ConeGeometry, config: SimulationConfig, random: torch.Generator
) -> torch.Tensor:
    """Photons `(view, row, column)`."""
    hu = torch.from_numpy(volume.data)
    if isinstance(geometry, ConeGeometry):
        y = ConeProjector(geometry)(hu_to_mu(hu).clamp_min(0)[None, None])[0, 0]
        return photon_counts(y, config.photons, config.electronic, random)
    counts = simulate(
        hu,
        volume.pixel_size_mm,
        geometry,
        photons=config.photons,
        electronic_sigma=config.electronic,
        generator=random,
    )
    return counts[:, 0].transpose(0, 1).contiguous()


def _facts(geometry: Geometry | ConeGeometry) -> dict[str, Any]:
    """The geometry as a `Scan` holds it."""
    plane = geometry.plane if isinstance(geometry, ConeGeometry) else geometry
    facts: dict[str, Any] = {
        "geometry": geometry.kind,
        "theta_deg": np.asarray(plane.angles_deg),
        "pixel_size_mm": plane.pixel_size_mm,
        "detector_pitch_mm": plane.detector_pitch_mm,
        "center_column": plane.center_column,
    }
    if plane.kind == "fan":
        facts |= {"source_origin_mm": plane.source_origin_mm, "origin_detector_mm": plane.origin_detector_mm}
    if isinstance(geometry, ConeGeometry):
        facts |= {"row_pitch_mm": geometry.row_pitch_mm, "center_row": geometry.center_row}
        facts |= {"slice_mm": geometry.slice_mm, "image_slices": geometry.n_slices}
    return facts


def _geometry(config: SimulationConfig, volume: Volume) -> Geometry | ConeGeometry:
    if config.views < 1:
        raise InputError(f"--views {config.views}: at least one view is needed")
    shape, pixel = (volume.data.shape[1], volume.data.shape[2]), volume.pixel_size_mm
    if config.geometry == "parallel":
        return parallel(equal_angles(config.views, config.arc or 180.0), shape, pixel)
    source = max(SOURCE_ORIGIN_MM, 1.5 * pixel * math.hypot(*shape))
    angles = equal_angles(config.views, config.arc or 360.0)
    gantry: dict[str, Any] = {"source_origin_mm": source, "origin_detector_mm": ORIGIN_DETECTOR_MM}
    if config.geometry == "fan":
        return fan(angles, shape, pixel, **gantry)
    return cone(angles, (len(volume.data), *shape), pixel, volume.spacing_mm[2], **gantry)
