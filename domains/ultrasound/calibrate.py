"""How wide the intervals of a restoration network must be: measured on cines it was not trained on, and told in its card."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from domains.ultrasound.arrays import npz_cines
from domains.ultrasound.clutter import clutter
from domains.ultrasound.containers import Cine
from domains.ultrasound.data import read_cine
from domains.ultrasound.haze import hazed
from domains.ultrasound.metrics import HAZY
from domains.ultrasound.pipeline import dehaze
from domains.ultrasound.sector import sector_of
from domains.ultrasound.settings import DehazeConfig
from suite.config import Config
from suite.errors import InputError
from suite.noise import generator
from suite.prior import Prior
from suite.trust import conformal_scale, coverage, interval_factor

LEVEL = 0.9
Array = NDArray[np.float64]
Draws = tuple[Tensor, Tensor, Tensor, Tensor]


class CalibrationConfig(Config):
    """Settings of `ultrasound calibrate`.

    Attributes:
        cines: name patterns (shell wildcards) of the `.npz` files, none of them trained on.
        tissue: names of the arrays taken as free of haze, in order of preference; the first is the truth of `cluttered`.
        drawn: times each clean cine is used with newly drawn haze beside its own: clutter and haze of any shape in turn.
        frames: of each cine.
        samples, steps: of the intervals.
    """

    cines: list[str] = Field(default_factory=lambda: ["*"], min_length=1)
    tissue: list[str] = Field(default_factory=lambda: ["clean"], min_length=1)
    drawn: int = Field(default=0, ge=0)
    frames: int = Field(default=15, ge=1)
    samples: int = Field(default=8, ge=2)
    steps: int = Field(default=20, ge=2)


def cases(paths: Sequence[Path], config: CalibrationConfig) -> list[tuple[str, Cine, Array]]:
    """Name, hazy cine and truth (both grey 0..255) of every case.

    Raises:
        InputError: no file of such a name holds a cine without haze.
    """
    found: list[tuple[str, Cine, Array]] = []
    for path in paths:
        for file in sorted(path.rglob("*.npz")) if path.is_dir() else [path]:
            if any(fnmatch(file.stem, pattern) for pattern in config.cines):
                found += _cases_of(file, config)
    if not found:
        raise InputError(
            f"no .npz file named like {', '.join(config.cines)} has an array {' or '.join(config.tissue)}; give cines with --data"
        )
    return found


def _cases_of(file: Path, config: CalibrationConfig) -> list[tuple[str, Cine, Array]]:
    arrays, count = npz_cines(file), slice(0, config.frames)
    key = next((name for name in config.tissue if name in arrays), None)
    if key is None:
        return []
    clean = read_cine(file, key=key)
    truth = clean.data[count].astype(np.float64)
    clean, found = replace(clean, data=clean.data[count]), []
    if key == config.tissue[0] and "cluttered" in arrays:
        hazy = read_cine(file, key="cluttered")
        found.append((file.stem, replace(hazy, data=hazy.data[count]), truth))
    sector = torch.from_numpy(sector_of(clean))
    tissue = torch.from_numpy(truth / 255).float()
    for k in range(config.drawn):
        rng = generator(k, f"calibration {file.stem}")
        drawn = hazed(tissue, sector, rng) if k % 2 else tissue + clutter(sector, len(tissue), rng) / 255
        veiled = np.rint(255 * drawn.clamp(0, 1).numpy())
        found.append((f"{file.stem} {'haze' if k % 2 else 'clutter'} {k}", replace(clean, data=veiled), truth))
    return found


def draws(prior: Prior, hazy: Cine, truth: Array, config: CalibrationConfig, name: str) -> Draws:
    """Mean, standard deviation and truth of the sector's pixels, and which of them are hazy."""
    settings = DehazeConfig(method="restore", samples=config.samples, steps=config.steps)
    result = dehaze(hazy, "restore", {"restore": prior}, settings, identity=name, clock=lambda _: nullcontext())
    assert result.std is not None
    inside = np.broadcast_to(result.sector, truth.shape)
    veiled = np.abs(hazy.data - truth) > HAZY
    pixels = [np.asarray(v)[inside] for v in (result.dehazed, result.std, truth, veiled)]
    mean, std, true, where = (torch.from_numpy(np.ascontiguousarray(v)) for v in pixels)
    return mean.double(), std.double(), true.double(), where


def fitted(parts: Sequence[Draws], samples: int) -> tuple[float, float]:
    """Scale and floor of the intervals with which three of four cases hold what is promised.

    Pixels of a case err together, so that over a pool of all pixels easy cases would make up for those of an unknown vendor.
    """
    scales, floors = zip(*(fitted_case(part, samples) for part in parts), strict=True)
    return float(np.quantile(scales, 0.75)), float(np.quantile(floors, 0.75))


def fitted_case(part: Draws, samples: int) -> tuple[float, float]:
    """The floor makes the intervals hold 90 % of the pixels without haze, the scale of those with it.

    Half of an interval is `t sqrt((scale std)^2 + floor^2)`; the two are found in turn.
    """
    mean, std, truth, veiled = part
    error, clear = (truth - mean).abs() / interval_factor(samples, LEVEL), ~veiled
    scale, floor = 1.0, 0.0
    for _ in range(5):
        if bool(clear.any()):
            wanted = (error[clear].square() - (scale * std[clear]).square()).clamp_min(0)
            floor = float(wanted.kthvalue(math.ceil(LEVEL * wanted.numel())).values.sqrt())
        if bool(veiled.any()):
            rest = (error[veiled].square() - floor**2).clamp_min(0).sqrt() * interval_factor(samples, LEVEL)
            scale = conformal_scale(mean[veiled], std[veiled], mean[veiled] + rest, samples, LEVEL)
    return scale, floor


def covered(part: Draws, samples: int, scale: float, floor: float) -> dict[str, float]:
    """Share of true values within the intervals: of the sector, of its hazy pixels, of the others."""
    mean, std, truth, veiled = part
    both = torch.hypot(scale * std, torch.tensor(floor, dtype=std.dtype))
    sides = {"sector": torch.ones_like(veiled), "hazy": veiled, "clear": ~veiled}
    return {
        name: round(coverage(mean[m], both[m], truth[m], samples, LEVEL), 4)
        for name, m in sides.items()
        if bool(m.any())
    }


def calibrated(
    prior: Prior, paths: Sequence[Path], config: CalibrationConfig, tell: Callable[[int], None] = lambda _: None
) -> Prior:
    """The prior with what these cines tell of its intervals in its card.

    Raises:
        InputError: a cine was trained on, or there is none.
    """
    parts: dict[str, Draws] = {}
    for number, (name, hazy, truth) in enumerate(cases(paths, config), 1):
        if name.split()[0] in prior.card.data:
            raise InputError(f"{name} was trained on; intervals are measured on others (name them with cines)")
        parts[name] = draws(prior, hazy, truth, config, name)
        tell(number)
    scale, floor = fitted(list(parts.values()), config.samples)
    told: dict[str, Any] = {
        "what": "half of a 90 % interval is t sqrt((scale std)^2 + floor^2), grey levels of 255, t of Student for so many samples",
        "level": LEVEL,
        "scale": round(scale, 4),
        "floor": round(floor, 3),
        "coverage": {name: covered(part, config.samples, scale, floor) for name, part in parts.items()},
        "coverage_before": {name: covered(part, config.samples, 1.0, 0.0) for name, part in parts.items()},
        "data": list(parts),
        **config.model_dump(include={"samples", "steps", "frames"}),
    }
    card = prior.card.model_copy(update={"calibration": {**prior.card.calibration, "intervals": told}})
    return Prior(prior.net, card, statistics=prior.statistics)  # type: ignore[arg-type]
