"""How wide the intervals of an MRI prior must be, from simulated scans of persons it was not trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from fnmatch import fnmatch
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from domains.mri.containers import KSpace, Volume
from domains.mri.pipeline import ReconstructConfig, load_mri_prior, reconstruct
from domains.mri.problem import pose
from domains.mri.simulation import SimulationConfig, kspace_of
from domains.mri.training import DataConfig, person, subject_images
from suite.config import Config, load_config
from suite.errors import InputError
from suite.prior import Prior
from suite.progress import progress
from suite.records import emit
from suite.train_verb import new_prior
from suite.trust import conformal_scale, coverage

OBJECT = 0.05
"""Pixels whose true magnitude exceeds this share of the largest belong to the object; air has no interval to miss."""


class CalibrationConfig(Config):
    """Settings of `mri calibrate`.

    Attributes:
        data: the split of the training, from its own config file.
        files: name patterns of the validation files used (others stay unseen, for a check).
        slices: of each file, evenly spaced over its middle half.
        scans: of every slice, a mask and its acceleration.
        coils, snr, samples, steps: of these scans, and of their reconstruction by daps.
    """

    data: DataConfig = DataConfig()
    files: list[str] = Field(default_factory=lambda: ["*"])
    slices: int = Field(default=1, ge=1)
    scans: dict[str, float] = Field(default_factory=lambda: {"random1d": 4.0, "poisson": 8.0})
    coils: int = Field(default=8, ge=1)
    snr: float = 30.0
    samples: int = Field(default=8, ge=2)
    steps: int = Field(default=20, ge=1)


def pictures(paths: Sequence[Path], config: CalibrationConfig) -> dict[str, list[Any]]:
    """The axial slices to scan, by file.

    Raises:
        InputError: no file of a validation person fits.
    """
    found = {}
    for name, images in subject_images(paths, config.data).items():
        held_out = any(fnmatch(person(name, config.data), pattern) for pattern in config.data.validation)
        if "+" in name or not held_out or not any(fnmatch(name, pattern) for pattern in config.files):
            continue
        places = np.linspace(0.25, 0.75, config.slices + 2)[1:-1] * len(images)
        found[name] = [images[int(place)] for place in places]
    if not found:
        raise InputError("no file of a person of data.validation fits `files`; name validation persons as in training")
    return found


def draws(
    prior: Prior, chosen: dict[str, list[Any]], config: CalibrationConfig, tell: Callable[[int], None] = lambda _: None
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Mean, std and true magnitude of the object's pixels of every scan."""
    settings = ReconstructConfig(method="daps", samples=config.samples, steps=config.steps)
    parts = []
    for name, images in chosen.items():
        for k, image in enumerate(images):
            for number, (mask, acceleration) in enumerate(config.scans.items()):
                simulation = SimulationConfig.model_validate(
                    {"acceleration": acceleration, "mask": mask, "coils": config.coils, "snr": config.snr, "seed": k}
                )
                scan = kspace_of(Volume(np.maximum(image[None], 0), np.eye(4)), simulation)
                problem = pose(KSpace(scan.kspace, noise_sigma=scan.noise_sigma))
                out = reconstruct("daps", problem, prior, settings, [f"{name} {k} {number}"], lambda _: nullcontext())
                assert out.std is not None
                truth = torch.from_numpy(scan.target[0])
                inside = truth > OBJECT * truth.max()
                parts.append((out.image[0, 0].abs()[inside], out.std[0, 0][inside], truth[inside]))
                tell(len(parts))
    return parts


def intervals(
    prior: Prior, chosen: dict[str, list[Any]], config: CalibrationConfig, tell: Callable[[int], None]
) -> dict[str, Any]:
    """The conformal scale of 90 % intervals, and what it was measured on.

    The median of the scans' own scales: scans differ more than pixels do, and large slices should not count for more.
    """
    parts = draws(prior, chosen, config, tell)
    mean, std, truth = (torch.cat([part[i] for part in parts]) for i in range(3))
    scales = [round(conformal_scale(*part, config.samples), 4) for part in parts]
    return {
        "what": "factor on 90 % intervals of daps: the median of what makes them hold 90 % in each scan of these files",
        "scale": round(median(scales), 4),
        "scale_by_scan": scales,
        "coverage_before": round(coverage(mean, std, truth, config.samples), 4),
        "coverage_before_by_scan": [round(coverage(*part, config.samples), 4) for part in parts],
        "level": 0.9,
        **config.model_dump(include={"scans", "coils", "snr", "samples", "steps"}),
        "slices": len(parts),
        "data": sorted(chosen),
    }


def calibrate_verb(prior: Path, data: tuple[Path, ...], given: dict[str, Any]) -> None:
    """`mri calibrate`: prior and validation images -> prior with calibrated intervals."""
    output = new_prior(given)
    config = load_config(CalibrationConfig, given["config"], given["overrides"], {})
    source = load_mri_prior(prior, torch.device("cpu"))
    chosen = pictures(data, config)
    total = len(config.scans) * sum(map(len, chosen.values()))
    with progress("Reconstructing", total, quiet=given["quiet"]) as update:
        told = intervals(source, chosen, config, update)
    card = source.card.model_copy(update={"calibration": {**source.card.calibration, "intervals": told}})
    output.parent.mkdir(parents=True, exist_ok=True)
    Prior(source.net, card, statistics=source.statistics).save(output)  # type: ignore[arg-type]
    if not emit({"prior": str(output), "calibration": card.calibration}, given["json_to"]) and not given["quiet"]:
        click.echo(f"{output}: intervals scaled by {told['scale']}, coverage before {told['coverage_before']}")
