"""What validation data tell of a CT prior after its training: which pictures it knows, and how wide its intervals must be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from domains.ct.containers import Volume
from domains.ct.physics import body_mask
from domains.ct.pipeline import ReconstructConfig, classical, learned
from domains.ct.problem import GeometryConfig, pose
from domains.ct.simulation import SimulationConfig, scan_of
from domains.ct.training import DataConfig, subject_images
from suite.config import Config
from suite.errors import InputError
from suite.prior import Prior
from suite.trust import Familiarity, calibration, describe

Array = NDArray[np.float32]
_OBJECT_HU = -500.0
_LEAST = 0.08  # share of a picture that is object; emptier ones say little


class CalibrationConfig(Config):
    """Settings of `ct calibrate`.

    Attributes:
        data: the split of the training, from its own config file.
        pictures: at most so many of each subject describe what the prior knows.
        slices: of each validation subject that are scanned and reconstructed for the intervals; 0: none.
        intervals: name patterns of the validation subjects used for them (others stay unseen, for a check).
        views, photons, samples, steps: of these scans and reconstructions, by daps.
    """

    data: DataConfig = DataConfig()
    pictures: int = Field(default=24, ge=1)
    slices: int = Field(default=2, ge=0)
    intervals: list[str] = Field(default_factory=lambda: ["*"])
    views: int = Field(default=30, ge=1)
    photons: float = Field(default=1e5, gt=0)
    samples: int = Field(default=8, ge=2)
    steps: int = Field(default=20, ge=1)


@dataclass(frozen=True)
class Sides:
    """Slices in HU by subject, trained on and not."""

    known: dict[str, list[Array]]
    held_out: dict[str, list[Array]]


def sides(paths: Sequence[Path], config: CalibrationConfig) -> Sides:
    """The axial slices of both sides of the split, those with enough object, evenly picked."""
    known: dict[str, list[Array]] = {}
    held_out: dict[str, list[Array]] = {}
    for name, images in subject_images(paths, config.data).items():
        full = [image for image in images if (image > _OBJECT_HU).mean() > _LEAST]
        if "+" in name or not full:  # slabs and reformats
            continue
        picked = np.unique(np.linspace(0, len(full) - 1, min(len(full), config.pictures)).round().astype(int))
        side = held_out if any(fnmatch(name, pattern) for pattern in config.data.validation) else known
        side[name] = [full[i] for i in picked]
    if not known or not held_out:
        raise InputError("the data hold no subject on one side of the split; name validation subjects as in training")
    return Sides(known, held_out)


def description(prior: Prior, image: Array) -> Tensor:
    """The numbers of one slice in HU, `(1, D)`."""
    whole = torch.from_numpy(np.ascontiguousarray(image))[None, None]
    return describe(prior, prior.to_network(whole), whole > _OBJECT_HU)


def familiarity(prior: Prior, found: Sides, tell: Callable[[int], None] = lambda _: None) -> Familiarity:
    """From all slices of both sides."""
    told = 0
    rows: dict[str, list[Tensor]] = {}
    for side in ("known", "held_out"):
        rows[side] = []
        for images in getattr(found, side).values():
            for image in images:
                rows[side].append(description(prior, image))
                told += 1
                tell(told)
    known, held_out = (
        [name for name, images in side.items() for _ in images] for side in (found.known, found.held_out)
    )
    return Familiarity.fit(torch.cat(rows["known"]), torch.cat(rows["held_out"]), held_out, known)


def draws(
    prior: Prior, found: Sides, config: CalibrationConfig
) -> tuple[list[str], list[tuple[Tensor, Tensor, Tensor]]]:
    """Subjects, and mean, std and truth in HU of the body's pixels of each reconstructed slice of theirs."""
    names = [n for n in found.held_out if any(fnmatch(n, p) for p in config.intervals)]
    settings = ReconstructConfig(method="daps", samples=config.samples, steps=config.steps)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for name in names:
        images = found.held_out[name]
        for k in np.unique(np.linspace(0, len(images) - 1, config.slices + 2).round().astype(int)[1:-1]):
            side = min(images[k].shape)
            truth = images[k][:side, :side]
            volume = Volume(truth[None], np.diag([-1.5, -1.5, 1.0, 1.0]))
            problem = pose(
                scan_of(volume, SimulationConfig(views=config.views, photons=config.photons)), GeometryConfig()
            )
            mu_water = problem.scan.mu_water_per_mm or 0.0
            out = learned(
                "daps",
                problem,
                classical("tv", problem),
                prior,
                mu_water,
                settings,
                [f"{name} {k}"],
                lambda _: nullcontext(),
            )
            assert out.std is not None
            body = torch.from_numpy(body_mask(truth))
            hu = 1000 / mu_water
            parts.append(
                ((out.image[0, 0] * hu - 1000)[body], (out.std[0, 0] * hu)[body], torch.from_numpy(truth)[body])
            )
    return names, parts


def intervals(prior: Prior, found: Sides, config: CalibrationConfig) -> dict[str, Any]:
    """The conformal scale of 90 % intervals on simulated scans of the held-out subjects, and what it was measured on."""
    names, parts = draws(prior, found, config)
    mean, std, truth = (torch.cat([part[i] for part in parts]) for i in range(3))
    return {
        "what": "factor on 90 % intervals of daps so that they hold 90 % of the body's pixels of these subjects",
        **calibration(mean, std, truth, config.samples),
        **config.model_dump(include={"views", "photons", "samples", "steps"}),
        "slices": len(parts),
        "data": names,
    }


def calibrated(prior: Prior, paths: Sequence[Path], config: CalibrationConfig, tell: Callable[[int], None]) -> Prior:
    """The prior with what the data tell of it, in its statistics and its card."""
    found = sides(paths, config)
    usual = familiarity(prior, found, tell)
    told: dict[str, Any] = {
        "familiarity": {
            "what": "score 1 is the 95th percentile of a held-out subject's pictures, the median over these subjects",
            "data": sorted(found.known),
            "held_out": sorted(found.held_out),
            "pictures": [sum(map(len, side.values())) for side in (found.known, found.held_out)],
        }
    }
    if config.slices:
        told["intervals"] = intervals(prior, found, config)
    card = prior.card.model_copy(update={"calibration": told})
    return Prior(prior.net, card, statistics=usual.tensors())  # type: ignore[arg-type]
