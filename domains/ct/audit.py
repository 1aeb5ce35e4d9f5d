"""Lesions planted in real pictures, scanned and reconstructed: can they be seen, and are there others that nobody planted?

Every slice is scanned twice, with its lesions and without, with independent noise. The observer takes, at each place, the mean
over the lesion less the mean over a ring around it (a matched filter for a disc on a flat background); how well this number tells
the two sets of scans apart is the area under the ROC curve (AUC; Barrett and Myers 2004, chapter 13): 0.5 is chance, 1 certain.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field
from scipy import ndimage, stats

from domains.ct.containers import Volume
from domains.ct.physics import body_mask
from domains.ct.pipeline import CLASSICAL, ReconstructConfig, classical, learned
from domains.ct.problem import GeometryConfig, Problem, pose
from domains.ct.simulation import SimulationConfig, scan_of
from suite.errors import InputError
from suite.prior import Prior

Array = NDArray[np.float32]
REFERENCES = ("fbp", "tv")

_RING = (1.5, 2.5)  # inner and outer radius of the ring, of the lesion's
_APART = 6.0  # least distance of two lesions, of the radius
_TISSUE_HU = (-50.0, 150.0)
_UNEVEN_HU = 40.0  # standard deviation up to which a surrounding counts as even
_RESAMPLES = 2000


class AuditConfig(ReconstructConfig):
    """Settings of `ct audit`, beside those of the reconstruction.

    Attributes:
        views, photons: of the simulated parallel scans.
        size: side of the slices in pixels; None: as they are.
        diameter_mm, contrast_hu: of the lesions, discs in the slice.
        places: lesions of a slice at most.
    """

    views: int = Field(default=30, ge=1)
    photons: float = Field(default=1e5, gt=0)
    size: int | None = Field(default=256, ge=32)
    diameter_mm: float = Field(default=6.0, gt=0)
    contrast_hu: float = 60.0
    places: int = Field(default=4, ge=1)


@dataclass(frozen=True)
class Planted:
    """A slice, and the same with lesions at `places` (row, column)."""

    without: Array
    with_lesions: Array
    places: NDArray[np.intp]


def disc(shape: tuple[int, ...], place: ArrayLike, radius: float) -> NDArray[np.float64]:
    """A disc of `radius` pixels whose edge pixels count by about their share."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    row, column = np.asarray(place, float)
    return np.clip(radius + 0.5 - np.hypot(rows - row, columns - column), 0, 1)


def even_tissue(image: Array, radius: float) -> NDArray[np.bool_]:
    """Where a lesion would lie in even soft tissue, well inside the body."""
    window = 2 * int(np.ceil(_RING[1] * radius)) + 1
    mean = ndimage.uniform_filter(image.astype(np.float64), window)
    square = ndimage.uniform_filter(image.astype(np.float64) ** 2, window)
    even = np.sqrt(np.maximum(square - mean**2, 0)) < _UNEVEN_HU
    inside = ndimage.binary_erosion(body_mask(image), iterations=window // 2 + 1)
    found: NDArray[np.bool_] = inside & even & (mean > _TISSUE_HU[0]) & (mean < _TISSUE_HU[1])
    return found


def plant(image: Array, radius: float, contrast_hu: float, count: int, rng: np.random.Generator) -> Planted:
    """Lesions at random places in even soft tissue, apart from each other; fewer, or none, where there is no room."""
    candidates = rng.permutation(np.argwhere(even_tissue(image, radius)))
    places: list[NDArray[np.intp]] = []
    for place in candidates:
        if all(np.hypot(*(place - other)) >= _APART * radius for other in places):
            places.append(place)
        if len(places) == count:
            break
    lesions = sum((disc(image.shape, place, radius) for place in places), np.zeros(image.shape))
    return Planted(image, (image + contrast_hu * lesions).astype(np.float32), np.array(places, np.intp).reshape(-1, 2))


def visibility(image: Array, place: ArrayLike, radius: float) -> float:
    """Mean over the lesion less mean over the ring around it, in HU, such that a lesion seen whole has its contrast."""
    core = disc(image.shape, place, radius)
    ring = disc(image.shape, place, _RING[1] * radius) - disc(image.shape, place, _RING[0] * radius)
    difference = (core * image).sum() / core.sum() - (ring * image).sum() / ring.sum()
    return float(difference * core.sum() / (core**2).sum())


def false_lesions(image: Array, truth: Array, radius: float, contrast_hu: float) -> int:
    """Pieces of even soft tissue, of half a lesion's area or more, whose mean over a lesion is off by half its contrast."""
    template = disc((2 * int(np.ceil(radius)) + 1,) * 2, (np.ceil(radius),) * 2, radius)
    off = np.abs(ndimage.convolve((image - truth).astype(np.float64), template / template.sum()))
    pieces, count = ndimage.label(even_tissue(truth, radius) & (off > abs(contrast_hu) / 2))
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
    return int((sizes >= np.pi * radius**2 / 2).sum())


def auc(present: NDArray[np.float64], absent: NDArray[np.float64]) -> float:
    """Share of pairs in which the lesion scores higher than its absence; ties count half."""
    return float(stats.mannwhitneyu(present, absent).statistic / (len(present) * len(absent)))


Scores = tuple[NDArray[np.float64], NDArray[np.float64]]
"""The observer's numbers at all places, with the lesions and without, in one order."""


def auc_interval(scores: Scores, rng: np.random.Generator, against: Scores | None = None) -> tuple[float, float]:
    """The central 95 % of the AUC, or of its excess over that of `against` at the same places, when places are drawn again."""
    n = len(scores[0])
    found = []
    for i in rng.integers(n, size=(_RESAMPLES, n)):
        own = auc(*(side[i] for side in scores))
        found.append(own if against is None else own - auc(*(side[i] for side in against)))
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)


def images_of(
    method: str,
    volume: Volume,
    config: AuditConfig,
    prior: Prior | None,
    clock: Callable[[str], AbstractContextManager[Any]],
) -> Array:
    """The slices of the volume, scanned and reconstructed, in HU."""
    simulation = SimulationConfig(views=config.views, photons=config.photons, seed=config.seed)
    problem: Problem = pose(scan_of(volume, simulation), GeometryConfig())
    mu_water = problem.scan.mu_water_per_mm or 0.0
    if method in CLASSICAL or prior is None:
        mu = classical(method, problem)
    else:
        identities = [f"audit {k}" for k in range(len(volume.data))]
        mu = learned(method, problem, classical("tv", problem), prior, mu_water, config, identities, clock).image
    hu: Array = (1000 * (mu[:, 0] / mu_water - 1)).numpy()
    return hu


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        rows: FBP, TV and the method: AUC with its interval, contrast left, false lesions.
        planted: the slices with places for lesions.
        images: each method's slices without and with lesions, in HU.
        over_tv: AUC of the method less that of TV at the same places, and its interval; None for TV and FBP themselves.
    """

    rows: list[dict[str, Any]]
    planted: list[Planted]
    images: dict[str, tuple[Array, Array]]
    over_tv: tuple[float, float, float] | None


def audit(
    volume: Volume,
    method: str,
    config: AuditConfig,
    prior: Prior | None,
    rng: np.random.Generator,
    clock: Callable[[str], AbstractContextManager[Any]],
) -> Audit:
    """Plant, scan, reconstruct and look.

    Raises:
        InputError: no slice has even soft tissue for a lesion.
    """
    radius = config.diameter_mm / 2 / volume.pixel_size_mm
    if radius < 1:
        raise InputError(
            f"lesions of {config.diameter_mm:g} mm are smaller than two pixels of {volume.pixel_size_mm:.3g} mm; "
            "raise diameter_mm or size"
        )
    planted = [plant(image, radius, config.contrast_hu, config.places, rng) for image in volume.data]
    planted = [slice_ for slice_ in planted if len(slice_.places)]
    if not planted:
        raise InputError(f"{volume.name}: no slice has even soft tissue for lesions of {config.diameter_mm:g} mm")
    images: dict[str, tuple[Array, Array]] = {}
    for name in dict.fromkeys((*REFERENCES, method)):
        without, with_lesions = (
            images_of(
                name,
                replace(volume, data=np.stack(slices), valid=None, headers=None, slice_offsets_mm=None),
                config,
                prior,
                clock,
            )
            for slices in ([p.without for p in planted], [p.with_lesions for p in planted])
        )
        images[name] = (without, with_lesions)
    scores = {name: scores_of(pair, planted, radius, config.contrast_hu) for name, pair in images.items()}
    rows = [
        _row(name, scores[name], pair[0], planted, radius, config.contrast_hu, rng) for name, pair in images.items()
    ]
    over_tv = None
    if method not in REFERENCES:
        excess = auc(*scores[method]) - auc(*scores["tv"])
        over_tv = (excess, *auc_interval(scores[method], rng, scores["tv"]))
    return Audit(rows, planted, images, over_tv)


def scores_of(pair: tuple[Array, Array], planted: list[Planted], radius: float, contrast_hu: float) -> Scores:
    """What the observer makes of every place."""
    absent, present = (
        np.sign(contrast_hu)
        * np.array([visibility(x, place, radius) for x, p in zip(stack, planted, strict=True) for place in p.places])
        for stack in pair
    )
    return present, absent


def _row(
    name: str,
    scores: Scores,
    without: Array,
    planted: list[Planted],
    radius: float,
    contrast_hu: float,
    rng: np.random.Generator,
) -> dict[str, Any]:
    present, absent = scores
    low, high = auc_interval(scores, rng)
    false = [false_lesions(x, p.without, radius, contrast_hu) for x, p in zip(without, planted, strict=True)]
    return {
        "method": name,
        "auc": round(auc(present, absent), 4),
        "auc_low": round(low, 4),
        "auc_high": round(high, 4),
        "contrast_recovered": round(float(np.mean(present - absent)) / abs(contrast_hu), 4),
        "false_lesions_per_slice": round(float(np.mean(false)), 3),
        "lesions": len(present),
        "slices": len(planted),
    }
