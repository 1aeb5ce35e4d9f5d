"""How wide the intervals of a prior's draws must be: simulated noise on scenes that the prior never saw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from domains.hyperspectral.containers import Cube
from domains.hyperspectral.methods import DenoiseConfig
from domains.hyperspectral.pipeline import denoise
from domains.hyperspectral.simulation import Case, SimulationConfig, band_range, degrade
from domains.hyperspectral.training import DataConfig, scenes
from suite.config import Config
from suite.errors import InputError
from suite.prior import Prior
from suite.trust import conformal_scale, coverage

LEVEL = 0.9


class CalibrationConfig(Config):
    """Settings of `hyperspectral calibrate`.

    Attributes:
        data: the split of the training, from its own config file; only scenes held out there are used.
        cases: noise cases, and for `gaussian` its sigma in 1/255 of a band's range.
        sigmas: one for each case.
        crop: rows and columns of each scene that are used.
        samples, steps: of the draws.
        seed: of noise and draws.
    """

    data: DataConfig = DataConfig()
    cases: list[Case] = Field(default_factory=lambda: list[Case](["gaussian", "noniid"]))
    sigmas: list[float] = Field(default_factory=lambda: [50.0, 50.0])
    crop: int = Field(default=64, ge=16)
    samples: int = Field(default=8, ge=2)
    steps: int = Field(default=15, ge=1)
    seed: int = Field(default=0, ge=0)


def draws(
    prior: Prior, held_out: dict[str, Cube], config: CalibrationConfig, tell: Callable[[int], None]
) -> dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Mean, std and truth of the values by scene and case, bands scaled to 0..1 by the truth."""
    parts: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
    for name, scene in held_out.items():
        clean = scene.values()[: config.crop, : config.crop]
        low, extent = band_range(clean)
        for case, sigma in zip(config.cases, config.sigmas, strict=True):
            noisy = degrade(clean, SimulationConfig(case=case, sigma=sigma, seed=config.seed))
            settings = DenoiseConfig(samples=config.samples, steps=config.steps, seed=config.seed)
            cube = Cube(noisy, good=scene.good, source=scene.source)
            out = denoise(cube, "subspace", prior, settings, f"{name} {case}", lambda _: nullcontext())
            assert out.std is not None
            used = np.isfinite(out.std) & np.isfinite(clean)
            values = ((out.data - low) / extent, out.std / extent, (clean - low) / extent)
            mean, std, truth = (torch.from_numpy(np.asarray(v)[used].astype(np.float32)) for v in values)
            parts[f"{name} {case} {sigma:g}"] = mean, std, truth
            tell(len(parts))
    return parts


def calibrated(
    prior: Prior, paths: Sequence[Path], config: CalibrationConfig, tell: Callable[[int], None] = lambda _: None
) -> Prior:
    """The prior with the conformal scale of its 90 % intervals in its card: the mean of what each scene and case needs.

    The values of one scene err together, so a scene and case counts once, however many values it has.

    Raises:
        InputError: no scene is held out, or the lists of cases and sigmas differ in length.
    """
    if len(config.cases) != len(config.sigmas):
        raise InputError(f"there are {len(config.cases)} cases and {len(config.sigmas)} sigmas; give one for each case")
    every = scenes(paths, config.data)
    held_out = {n: c for n, c in every.items() if any(fnmatch(n, pattern) for pattern in config.data.validation)}
    if not held_out or set(held_out) & set(prior.card.data):
        raise InputError("name scenes the prior was not trained on with data.validation; intervals are fitted on those")
    found = draws(prior, held_out, config, tell)
    scales = {name: round(conformal_scale(*values, config.samples, LEVEL), 4) for name, values in found.items()}
    before = [coverage(*values, config.samples, LEVEL) for values in found.values()]
    told: dict[str, Any] = {
        "what": "mean of the factors with which the 90 % intervals of subspace hold 90 % of the values of these scenes and cases",
        "scale": round(float(np.mean(list(scales.values()))), 4),
        "scales": scales,
        "coverage_before": round(float(np.mean(before)), 4),
        "level": LEVEL,
        **config.model_dump(include={"cases", "sigmas", "crop", "samples", "steps"}),
        "data": sorted(held_out),
    }
    card = prior.card.model_copy(update={"calibration": {**prior.card.calibration, "intervals": told}})
    return Prior(prior.net, card, statistics=prior.statistics)  # type: ignore[arg-type]
