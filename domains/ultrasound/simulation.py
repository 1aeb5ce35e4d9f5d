"""Putting haze on a clean cine: multipath in the echoes, clutter on the picture, or haze of many shapes."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage

from domains.ultrasound.clutter import clutter, uniform
from domains.ultrasound.containers import Cine
from domains.ultrasound.haze import hazed, multipath_picture
from domains.ultrasound.physics import compress, decompress
from domains.ultrasound.pipeline import grey_of
from domains.ultrasound.sector import fan_shaped, scan_converted, sector_of
from suite.config import Config
from suite.noise import generator

LEVELS = {"clutter": 1.0, "multipath": 0.2, "mixed": 1.0}


class SimulationConfig(Config):
    """Settings of `ultrasound simulate`.

    Attributes:
        kind: `clutter` (grey pictures: near-field cone, reverberation bars), `multipath` (echoes), or `mixed` (any of the haze that
            the networks are trained on, `domains.ultrasound.haze`); None: clutter or multipath by the domain.
        level: of clutter and mixed, its brightness, 1 as published or drawn; of multipath, its RMS over that of the tissue.
    """

    kind: Literal["clutter", "multipath", "mixed"] | None = None
    level: float | None = Field(default=None, ge=0, le=10)
    seed: int = Field(default=0, ge=0, lt=2**63)


def simulated(cine: Cine, config: SimulationConfig) -> tuple[NDArray[Any], str, float]:
    """The hazy cine in the units of the file, the kind of haze, and its level."""
    kind = config.kind or ("clutter" if cine.domain == "grey" else "multipath")
    level = LEVELS[kind] if config.level is None else config.level
    rng = generator(config.seed, f"haze {cine.data.shape}")
    sector = sector_of(cine)
    if kind != "multipath":
        grey, _ = grey_of(cine)
        mask = torch.from_numpy(sector)
        if kind == "clutter":
            haze = np.asarray(clutter(mask, cine.frames, rng, level).numpy() / 255)
        else:
            haze = np.asarray(level * (hazed(torch.from_numpy(grey), mask, rng).numpy() - grey))
        if cine.domain == "grey":
            return cine.black + (cine.white - cine.black) * np.clip(grey + haze, 0, 1), kind, level
        share = decompress(np.clip(grey + haze, 0, 1).astype(np.float64)) / np.maximum(
            decompress(grey.astype(np.float64)), 1e-6
        )
        return (cine.data * share).astype(cine.data.dtype), kind, level
    if cine.domain in ("rf", "iq"):
        return cine.data + multipath(cine.data, rng, level), kind, level
    return _on_envelope(cine, sector, rng, level), kind, level


def _on_envelope(cine: Cine, sector: NDArray[np.bool_], rng: torch.Generator, level: float) -> NDArray[Any]:
    """Multipath of a picture or an envelope: echoes of random phase have it, so that it adds as echoes do."""
    db = cine.dynamic_range_db
    if scan_converted(cine) and fan_shaped(sector):  # there the beams diverge
        fan = multipath_picture(torch.from_numpy(cine.grey()), torch.from_numpy(sector), rng, level, db).numpy()
        return cine.black + (cine.white - cine.black) * np.where(sector, fan, cine.grey())
    seen = decompress(cine.grey().astype(np.float64), db) if cine.domain == "grey" else cine.data.astype(np.float64)
    phase = 2 * math.pi * torch.rand(seen.shape[1:], generator=rng).numpy()  # the same in all frames: haze hardly moves
    echoes = seen * np.exp(1j * phase)
    hazy = np.where(sector, np.abs(echoes + multipath(echoes, rng, level)), seen)
    if cine.domain != "grey":
        return hazy
    return cine.black + (cine.white - cine.black) * np.clip(compress(hazy, db), 0, 1)


def multipath(echoes: NDArray[Any], rng: torch.Generator, level: float) -> NDArray[Any]:
    """Haze of beamformed echoes `(frame, row, column)`, depth along the rows: delayed, attenuated, laterally smeared copies.

    A few echoes of the whole path, and the reverberation between transducer and skin (copies of the first tenth at multiples
    of a short delay, weaker each time), all fading with depth. Scaled to `level` times the RMS of the echoes.
    """
    rows, columns = echoes.shape[1:]
    depth = np.arange(rows)[:, None] / rows
    haze = np.zeros_like(echoes)
    for _ in range(3 + int(uniform(rng, 0, 4))):
        delay = max(1, round(uniform(rng, 0.03, 0.4) * rows))
        haze += uniform(rng, 0.3, 1.0) * _smeared(_delayed(echoes, delay), uniform(rng, 0.02, 0.1) * columns)
    first = echoes * (depth < 0.1)
    short, loss = max(1, round(uniform(rng, 0.03, 0.07) * rows)), uniform(rng, 0.5, 0.85)
    for k in range(1, 9):
        haze += 2 * loss**k * _smeared(_delayed(first, k * short), 0.05 * columns)
    haze *= np.exp(-depth / uniform(rng, 0.2, 0.6))
    strength = float(np.sqrt(np.mean(np.abs(haze) ** 2)))
    wanted = level * float(np.sqrt(np.mean(np.abs(echoes) ** 2)))
    out: NDArray[Any] = (haze * (wanted / strength if strength else 0.0)).astype(echoes.dtype)
    return out


def _delayed(echoes: NDArray[Any], rows: int) -> NDArray[Any]:
    out = np.zeros_like(echoes)
    if rows < echoes.shape[1]:
        out[:, rows:] = echoes[:, : echoes.shape[1] - rows]
    return out


def _smeared(echoes: NDArray[Any], pixels: float) -> NDArray[Any]:
    """Blurred along the columns, the power kept roughly."""
    if np.iscomplexobj(echoes):
        out = ndimage.gaussian_filter1d(echoes.real, pixels, axis=2) + 1j * ndimage.gaussian_filter1d(
            echoes.imag, pixels, axis=2
        )
    else:
        out = ndimage.gaussian_filter1d(echoes, pixels, axis=2)
    return np.asarray(out, echoes.dtype)
