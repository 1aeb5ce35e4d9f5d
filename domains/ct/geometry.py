"""Scan geometry of 2D parallel- and fan-beam CT: every measured ray is one straight line `(phi, t)`.

Pixel `(i, j)` of an `ny x nx` image with pitch `p` lies at `x = (j - (nx-1)/2) p`, `y = ((ny-1)/2 - i) p`. The line
`(phi, t)` is `x cos(phi) + y sin(phi) = t`, all lengths in mm. With `u = (k - center_column) * pitch` for bin `k`:

- parallel beam at view angle `th`: `phi = th`, `t = u`;
- fan beam: the source stands at `D (sin th, -cos th)`, that is at `(0, -D)` for `th = 0`, and turns counter-clockwise.
  The detector's bins count along `(cos th, sin th)`. A ray that leaves the source at the fan angle `gamma` towards
  higher bins is the line `phi = th - gamma`, `t = D sin(gamma)`, with `gamma = atan(u / S)` on a flat detector and
  `gamma = u / S` on one curved about the source (`D` source to origin, `S` source to detector).

So a fan whose source recedes to infinity becomes the parallel beam of the same view angle and the same bins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from suite.errors import InputError

Kind = Literal["parallel", "fan"]
Detector = Literal["flat", "curved"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Geometry:
    """A 2D scan: which line each detector bin sees at each view angle, and the image grid.

    Attributes:
        kind: "parallel" or "fan".
        angles_deg: view angles in degrees, any order, any spacing.
        n_bins: detector bins per view.
        detector_pitch_mm: distance of two bins at the detector (an arc length when it is curved).
        center_column: bin (0-based bin centre, may be fractional) whose ray meets the rotation axis.
        image_shape: `(ny, nx)`.
        pixel_size_mm: pixel pitch in x and y.
        source_origin_mm: source to rotation axis (fan beam only).
        origin_detector_mm: rotation axis to detector (fan beam only).
        detector: "flat" or "curved" (an arc about the source; fan beam only).

    Raises:
        InputError: when a value is impossible, or the fan's source lies inside the image.
    """

    kind: Kind
    angles_deg: tuple[float, ...]
    n_bins: int
    detector_pitch_mm: float
    center_column: float
    image_shape: tuple[int, int]
    pixel_size_mm: float
    source_origin_mm: float = math.inf
    origin_detector_mm: float = 0.0
    detector: Detector = "flat"

    def __post_init__(self) -> None:
        object.__setattr__(self, "angles_deg", tuple(float(a) for a in np.ravel(np.asarray(self.angles_deg))))
        object.__setattr__(self, "image_shape", tuple(int(n) for n in self.image_shape))
        _require(self.kind in ("parallel", "fan"), f"geometry {self.kind!r} is unknown; it is 'parallel' or 'fan'")
        _require(self.detector in ("flat", "curved"), f"detector {self.detector!r} is neither 'flat' nor 'curved'")
        _require(len(self.angles_deg) > 0, "the scan has no view angles; at least one is needed")
        _require(bool(np.isfinite(self.angles_deg).all()), "the view angles hold NaN or infinity; degrees are needed")
        _require(self.n_bins >= 1, f"n_bins is {self.n_bins}; at least one detector bin is needed")
        _require(
            len(self.image_shape) == 2 and min(self.image_shape) >= 1,
            f"image_shape is {self.image_shape}; two positive numbers (rows, columns) are needed",
        )
        for name in ("detector_pitch_mm", "pixel_size_mm"):
            value = getattr(self, name)
            _require(0 < value < math.inf, f"{name} is {value}; a positive number of mm is needed")
        _require(math.isfinite(self.center_column), f"center_column is {self.center_column}; a bin number is needed")
        if self.kind == "parallel":
            _require(self.detector == "flat", "a curved detector needs fan beam; in parallel beam it is 'flat'")
        else:
            self._check_fan()

    def _check_fan(self) -> None:
        _require(
            self.image_radius_mm < self.source_origin_mm < math.inf,
            f"source_origin_mm is {self.source_origin_mm}; the source must stand outside the image, "
            f"more than {self.image_radius_mm:.1f} mm from the axis",
        )
        _require(
            0 <= self.origin_detector_mm < math.inf,
            f"origin_detector_mm is {self.origin_detector_mm}; zero or a positive number of mm is needed",
        )
        widest = float(np.abs(self.fan_angles).max())
        _require(widest < math.pi / 2, f"the fan opens to {math.degrees(widest):.0f} degrees; less than 90 are needed")

    @property
    def n_views(self) -> int:
        return len(self.angles_deg)

    @property
    def sinogram_shape(self) -> tuple[int, int]:
        """`(V, K)`: views, bins."""
        return self.n_views, self.n_bins

    @property
    def angles(self) -> Floats:
        """View angles in radians, `(V,)`."""
        return np.asarray(np.deg2rad(self.angles_deg), dtype=np.float64)

    @property
    def source_detector_mm(self) -> float:
        return self.source_origin_mm + self.origin_detector_mm

    @property
    def image_radius_mm(self) -> float:
        """Distance of the image's corners from the rotation axis."""
        return 0.5 * self.pixel_size_mm * math.hypot(*self.image_shape)

    @property
    def bin_positions(self) -> Floats:
        """`u = (k - center_column) * pitch` in mm, `(K,)`."""
        return (np.arange(self.n_bins, dtype=np.float64) - self.center_column) * self.detector_pitch_mm

    @property
    def fan_angles(self) -> Floats:
        """Fan angle gamma of each bin in radians, `(K,)`; zero in parallel beam."""
        if self.kind == "parallel":
            return np.zeros(self.n_bins)
        u = self.bin_positions / self.source_detector_mm
        return np.asarray(np.arctan(u)) if self.detector == "flat" else u

    @property
    def ray_offsets(self) -> Floats:
        """Signed distance `t` of each bin's ray from the rotation axis in mm, `(K,)`."""
        if self.kind == "parallel":
            return self.bin_positions
        return np.asarray(self.source_origin_mm * np.sin(self.fan_angles))

    @property
    def fov_radius_mm(self) -> float:
        """Radius about the rotation axis that both ends of the detector see in every view."""
        edges = replace(self, n_bins=self.n_bins + 1, center_column=self.center_column + 0.5).ray_offsets
        return max(0.0, float(min(-edges[0], edges[-1])))

    def lines(self) -> tuple[Floats, Floats]:
        """`phi` (radians) and `t` (mm) of every ray, each `(V, K)`: the line `x cos(phi) + y sin(phi) = t`."""
        phi = self.angles[:, None] - self.fan_angles
        return phi, np.broadcast_to(self.ray_offsets, phi.shape)

    def pixel_centers(self) -> tuple[Floats, Floats]:
        """`x` of the columns `(nx,)` and `y` of the rows `(ny,)` in mm."""
        ny, nx = self.image_shape
        x = (np.arange(nx, dtype=np.float64) - (nx - 1) / 2) * self.pixel_size_mm
        y = ((ny - 1) / 2 - np.arange(ny, dtype=np.float64)) * self.pixel_size_mm
        return x, y

    def subset(self, views: slice | Sequence[int] | NDArray[np.integer]) -> Geometry:
        """The same scan with only these views (a slice, or view numbers in any order)."""
        angles = np.asarray(self.angles_deg)[views if isinstance(views, slice) else np.asarray(views, dtype=int)]
        return replace(self, angles_deg=tuple(angles))


def parallel(
    angles_deg: Sequence[float] | Floats,
    image_shape: tuple[int, int],
    pixel_size_mm: float = 1.0,
    *,
    n_bins: int | None = None,
    detector_pitch_mm: float | None = None,
    center_column: float | None = None,
) -> Geometry:
    """Parallel beam; by default a centred detector with the pixels' pitch, as wide as the image's diagonal."""
    pitch = pixel_size_mm if detector_pitch_mm is None else detector_pitch_mm
    if n_bins is None:
        n_bins = _bins_for(0.5 * pixel_size_mm * math.hypot(*image_shape), pitch)
    center = (n_bins - 1) / 2 if center_column is None else center_column
    return Geometry("parallel", tuple(angles_deg), n_bins, pitch, center, image_shape, pixel_size_mm)


def fan(
    angles_deg: Sequence[float] | Floats,
    image_shape: tuple[int, int],
    pixel_size_mm: float = 1.0,
    *,
    source_origin_mm: float,
    origin_detector_mm: float,
    detector: Detector = "flat",
    n_bins: int | None = None,
    detector_pitch_mm: float | None = None,
    center_column: float | None = None,
) -> Geometry:
    """Fan beam; by default a centred detector that sees the whole image at the pixels' pitch on the rotation axis."""
    pitch = detector_pitch_mm
    if pitch is None:
        pitch = pixel_size_mm * (source_origin_mm + origin_detector_mm) / source_origin_mm
    if n_bins is None:
        radius = 0.5 * pixel_size_mm * math.hypot(*image_shape)
        gamma = math.asin(min(radius / source_origin_mm, 1.0))
        reach = (math.tan(gamma) if detector == "flat" else gamma) * (source_origin_mm + origin_detector_mm)
        n_bins = _bins_for(reach, pitch)
    center = (n_bins - 1) / 2 if center_column is None else center_column
    return Geometry(
        "fan",
        tuple(angles_deg),
        n_bins,
        pitch,
        center,
        image_shape,
        pixel_size_mm,
        source_origin_mm,
        origin_detector_mm,
        detector,
    )


def equal_angles(views: int, arc_deg: float = 180.0, start_deg: float = 0.0) -> Floats:
    """`views` angles that divide the arc evenly, its end left out (the end of a full arc repeats its start)."""
    return start_deg + arc_deg * np.arange(views) / views


def _bins_for(half_width: float, pitch: float) -> int:
    if not (0 < half_width < math.inf and 0 < pitch < math.inf):
        raise InputError("the image size, pixel size and detector pitch must be positive numbers")
    return max(1, math.ceil(2 * half_width / pitch - 1e-9))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)
