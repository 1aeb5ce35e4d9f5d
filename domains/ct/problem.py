"""From a scan file to a well-posed problem: the geometry with its gaps filled, line integrals and their weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt
from torch import Tensor

from domains.ct.containers import Scan, Volume
from domains.ct.data import headers_from_json
from domains.ct.geometry import Geometry, fan, parallel
from domains.ct.physics import LogData, estimate_photons, log_data, log_weights, truncated_views
from domains.ct.projector import Projector
from domains.ct.scans import estimate_center_column
from suite.config import Config
from suite.errors import InputError


class GeometryConfig(Config):
    """What a scan file does not hold, or holds wrongly: a value given here wins. Units as in the file layout."""

    geometry: Literal["parallel", "fan", "cone"] | None = None
    detector: Literal["flat", "curved"] | None = None
    pixel_size_mm: float | None = Field(default=None, gt=0)
    detector_pitch_mm: float | None = Field(default=None, gt=0)
    source_origin_mm: float | None = Field(default=None, gt=0)
    origin_detector_mm: float | None = Field(default=None, ge=0)
    center_column: float | None = None
    row_pitch_mm: float | None = Field(default=None, gt=0)
    center_row: float | None = None
    slice_mm: float | None = Field(default=None, gt=0)
    image_slices: PositiveInt | None = None
    photons: float | None = Field(default=None, gt=0)
    electronic_sigma: float | None = Field(default=None, ge=0)
    mu_water_per_mm: float | None = Field(default=None, gt=0)
    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None


@dataclass(frozen=True)
class Problem:
    """A stack of 2D reconstructions that share one geometry.

    Attributes:
        scan: the scan with its gaps filled.
        geometry: rays and image grid.
        data: line integrals and statistical weights, each `(S, 1, V, K)`, S slices.
        photons_known: False when the weights rest on a noise estimate.
        warnings: sentences for the user.
    """

    scan: Scan
    geometry: Geometry
    data: LogData
    photons_known: bool
    warnings: tuple[str, ...]

    @property
    def slices(self) -> int:
        return int(self.data.line_integrals.shape[0])

    def projector(self) -> Projector:
        return Projector(self.geometry)

    def volume(self, values: Tensor, unit: str) -> Volume:
        """A reconstruction `(S, 1, ny, nx)` with the scan's position, orientation and headers."""
        affine = self.scan.affine if self.scan.affine is not None else default_affine(self.geometry)
        headers = None if self.scan.dicom is None else headers_from_json(self.scan.dicom)
        return Volume(values[:, 0].cpu().numpy().astype(np.float32), affine, unit=unit, headers=headers)


def default_affine(geometry: Geometry) -> NDArray[np.float64]:
    """Voxel -> RAS mm for a scan without a position: LPS order, centred in the plane, 1 mm slices."""
    ny, nx = geometry.image_shape
    p = geometry.pixel_size_mm
    affine = np.diag([-p, -p, 1.0, 1.0])
    affine[:2, 3] = (nx - 1) / 2 * p, (ny - 1) / 2 * p
    return affine


def pose(scan: Scan, given: GeometryConfig) -> Problem:
    """Fill the gaps of a scan and weigh its data.

    Raises:
        InputError: the geometry cannot be completed (the sentence names the missing key), or is a cone's.
    """
    scan = with_given(scan, given)
    if scan.geometry == "cone":
        raise InputError(f"{_name(scan)}: is a cone-beam scan, which has no slices of its own; use ct reconstruct")
    return Problem(*completed(scan))


def with_given(scan: Scan, given: GeometryConfig) -> Scan:
    """The scan with the values given over its own."""
    values: dict[str, Any] = {k: v for k, v in given.model_dump().items() if v is not None}
    if isinstance(values.get("image_size"), int):
        values["image_size"] = (values["image_size"],) * 2
    return replace(scan, **values)


def completed(scan: Scan) -> tuple[Scan, Geometry, LogData, bool, tuple[str, ...]]:
    """The fields of a `Problem`; of a cone's rows, as if each lay in the plane of the source.

    Raises:
        InputError: the geometry cannot be completed.
    """
    warnings = list(scan.warnings)
    scan = _with_lengths(scan, warnings)
    geometry = _geometry(scan, warnings)
    data, known = _weigh(scan, warnings)
    cut = truncated_views(data.line_integrals, float(data.weights[data.weights > 0].median().rsqrt()))
    if cut > 0.02:
        warnings.append(
            f"In {100 * cut:.0f} % of the views the object reaches beyond the detector, so values near the border of "
            "the field of view are not reliable."
        )
    return scan, geometry, data, known, tuple(warnings)


def _with_lengths(scan: Scan, warnings: list[str]) -> Scan:
    """Pixel size and detector pitch, each from the other where one is missing."""
    if scan.geometry != "parallel":
        for name in ("source_origin_mm", "origin_detector_mm", "detector_pitch_mm"):
            if getattr(scan, name) is None:
                raise InputError(
                    f"{_name(scan)}: a {scan.geometry}-beam scan needs {name}; give it with --set geometry.{name}=VALUE"
                )
    pitch = scan.detector_pitch_mm
    if pitch is None:
        pitch = scan.pixel_size_mm
    if pitch is None:
        pitch = 1.0
        warnings.append(
            "The file holds no lengths: one detector bin is taken as 1 mm, so values are per bin; "
            "give --set geometry.detector_pitch_mm=VALUE for values per mm."
        )
    pixel = scan.pixel_size_mm
    if pixel is None:
        pixel = pitch
        if scan.geometry != "parallel":
            assert scan.source_origin_mm is not None and scan.origin_detector_mm is not None
            pixel = pitch * scan.source_origin_mm / (scan.source_origin_mm + scan.origin_detector_mm)
    return replace(scan, detector_pitch_mm=pitch, pixel_size_mm=pixel)


def _geometry(scan: Scan, warnings: list[str]) -> Geometry:
    bins = scan.shape[2]
    center = scan.center_column
    if center is None:
        center = estimate_center_column(scan)
        if center is None:
            center = (bins - 1) / 2
            warnings.append("The file does not tell the rotation axis; the middle of the detector is taken.")
        else:
            warnings.append(f"The file does not tell the rotation axis; bin {center:.2f} was estimated from the data.")
    assert scan.detector_pitch_mm is not None and scan.pixel_size_mm is not None
    shape = scan.image_size or (bins, bins)
    common: dict[str, Any] = {
        "n_bins": bins,
        "detector_pitch_mm": scan.detector_pitch_mm,
        "center_column": center,
    }
    if scan.geometry == "parallel":
        return parallel(scan.theta_deg, shape, scan.pixel_size_mm, **common)
    assert scan.source_origin_mm is not None and scan.origin_detector_mm is not None
    return fan(
        scan.theta_deg,
        shape,
        scan.pixel_size_mm,
        source_origin_mm=scan.source_origin_mm,
        origin_detector_mm=scan.origin_detector_mm,
        detector=scan.detector,
        **common,
    )


def _weigh(scan: Scan, warnings: list[str]) -> tuple[LogData, bool]:
    """Line integrals and weights `(S, 1, V, K)`: from photon counts, else from a noise estimate."""
    lines = _slices_first(scan.line_integrals)
    electronic = scan.electronic_sigma or 0.0
    if scan.photons is not None and scan.counts is not None and scan.white is not None:
        dark = np.float32(0) if scan.dark is None else scan.dark
        blank = scan.white - dark  # (row, column), in units of the counts
        gain = scan.photons / float(np.mean(blank))
        counts = _slices_first((scan.counts - dark) * np.float32(gain))
        photons = torch.from_numpy(np.ascontiguousarray(blank * np.float32(gain)))[:, None, None, :]
        return log_data(counts, photons, electronic), True
    if scan.photons is not None:
        return LogData(lines, log_weights(lines, scan.photons, electronic)), True
    photons = estimate_photons(lines).reshape(-1, 1, 1, 1)
    warnings.append(
        "The file does not tell the photons per ray; the noise was estimated from the data "
        f"({float(photons.mean()):.3g} effective photons), so the misfit is relative to that estimate."
    )
    return LogData(lines, log_weights(lines, photons, electronic)), False


def _slices_first(values: NDArray[np.float32]) -> Tensor:
    """`(view, row, column)` to `(row, 1, view, column)`."""
    return torch.from_numpy(np.ascontiguousarray(values.transpose(1, 0, 2)))[:, None]


def _name(scan: Scan) -> str:
    return str(scan.sources[0].name) if scan.sources else "the scan"
