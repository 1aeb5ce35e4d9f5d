"""A circular cone-beam scan made ready: the geometry with its gaps filled, line integrals and their weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from domains.ct.cone import ConeGeometry, ConeProjector
from domains.ct.containers import Scan, Volume
from domains.ct.data import headers_from_json
from domains.ct.physics import LogData
from domains.ct.problem import completed, default_affine
from suite.errors import InputError


@dataclass(frozen=True)
class ConeProblem:
    """One volume seen by a circular cone-beam scan; the fields are those of `domains.ct.problem.Problem`.

    Attributes:
        data: line integrals and weights, each `(1, 1, V, R, K)`.
    """

    scan: Scan
    geometry: ConeGeometry
    data: LogData
    photons_known: bool
    warnings: tuple[str, ...]

    @property
    def slices(self) -> int:
        return self.geometry.n_slices

    def projector(self) -> ConeProjector:
        return ConeProjector(self.geometry)

    def volume(self, values: Tensor, unit: str) -> Volume:
        """A reconstruction `(S, 1, ny, nx)` with the scan's position, orientation and headers."""
        affine = self.scan.affine
        if affine is None:
            affine = default_affine(self.geometry.plane) @ np.diag([1.0, 1.0, self.geometry.slice_mm, 1.0])
        headers = None if self.scan.dicom is None else headers_from_json(self.scan.dicom)
        return Volume(values[:, 0].cpu().numpy().astype(np.float32), affine, unit=unit, headers=headers)


def pose_cone(scan: Scan) -> ConeProblem:
    """Fill the gaps of a cone-beam scan and weigh its data.

    What the file does not tell: the rows are as far apart as the columns, the plane of the source meets the middle row, the
    slices are as far apart as the pixels and as many as the rows see on the axis.

    Raises:
        InputError: a curved detector, or the geometry cannot be completed; the sentence names the missing key.
    """
    if scan.detector != "flat":
        raise InputError(f"{scan.sources[0] if scan.sources else 'the scan'}: a cone-beam scan needs a flat detector")
    scan, plane, data, known, warnings = completed(scan)
    rows = scan.shape[1]
    pitch = plane.detector_pitch_mm if scan.row_pitch_mm is None else scan.row_pitch_mm
    center = (rows - 1) / 2 if scan.center_row is None else scan.center_row
    height = plane.pixel_size_mm if scan.slice_mm is None else scan.slice_mm
    seen = rows * pitch * plane.source_origin_mm / plane.source_detector_mm
    slices = max(1, int(seen / height)) if scan.image_slices is None else scan.image_slices
    missing = [n for n in ("row_pitch_mm", "center_row", "slice_mm", "image_slices") if getattr(scan, n) is None]
    if missing:
        warnings += (
            f"The file does not tell {', '.join(missing)}; rows {pitch:.4g} mm apart about row {center:g} and {slices} slices "
            f"{height:.4g} mm apart are taken; give --set geometry.NAME=VALUE.",
        )
    geometry = ConeGeometry(plane, rows, pitch, center, slices, height)
    lines, weights = (v[:, 0].transpose(0, 1)[None, None].contiguous() for v in data)
    return ConeProblem(scan, geometry, LogData(lines, weights), known, warnings)
