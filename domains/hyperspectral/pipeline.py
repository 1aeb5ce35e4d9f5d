"""The main job: a cube in, the denoised cube with its noise model and its doubts out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from domains.hyperspectral.containers import Cube, blocks
from domains.hyperspectral.data import fit
from domains.hyperspectral.eigen_images import EigenPosterior, fill_outside, nlm
from domains.hyperspectral.noise_model import NoiseModel, estimate
from domains.hyperspectral.subspace import Floats, amplification, coefficients
from domains.hyperspectral.training import GUIDES, UNIT
from suite.config import MainConfig
from suite.errors import InputError
from suite.noise import Noise
from suite.prior import Prior, load_prior

WEIGHTS = Path(__file__).parent / "weights"
SHIPPED = WEIGHTS / "hyperspectral-eigen.safetensors"
TURNS, STEPS, MANY = 8, 15, 32
CLASSICAL = ("nlm", "svd")
ESTIMATE_VALUES, ESTIMATE_ROWS = 6_000_000, 64

Clock = Callable[[str], AbstractContextManager[Any]]


class DenoiseConfig(MainConfig):
    """Settings of `hyperspectral denoise`.

    Attributes:
        method: `subspace` (default): the diffusion prior on whitened eigen-images. `nlm`: non-local means on them. `svd`: the
            projection on the subspace alone.
        steps: evaluations per image: of the mean at most 8 (one for each way to lay it; 4 where the rank is above 32), of
            a draw the length of the reverse diffusion (15).
        repair_bad: restore bands that the file flags as bad too.
        precision: of the network; `auto` is bfloat16 where the processor multiplies it natively.
    """

    method: Literal["subspace", "nlm", "svd"] | None = None
    repair_bad: bool = False
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    steps: int | None = Field(default=None, ge=1)


@dataclass(frozen=True)
class Denoised:
    """A result.

    Attributes:
        data: `(rows, columns, bands)` in the type and units of the cube; bands and pixels outside the model as they were.
        std: posterior standard deviation, float32, NaN outside the model; None with one sample.
        model: the noise model.
        lost: share of the values of each used band that told nothing (missing, dead, outliers).
        repaired: single NaN values that were filled.
        chi2: mean square of the residual over the noise, of the values that counted.
        whiteness: correlation of neighbouring residuals along rows and columns; 0 for white noise.
        evaluations: network evaluations per image.
    """

    data: NDArray[Any]
    std: Floats | None
    model: NoiseModel
    lost: NDArray[np.float64]
    repaired: int
    chi2: float
    whiteness: tuple[float, float]
    evaluations: int


def load_hyperspectral_prior(path: Path | None, device: torch.device) -> Prior:
    """The named prior, or the shipped one, checked for what this domain needs."""
    return load_prior(path or SHIPPED, device, unit=UNIT, channels=1, condition_channels=GUIDES)


def choose_method(config: DenoiseConfig) -> str:
    """The method of a run.

    Raises:
        InputError: several samples of a method that draws none.
    """
    method = config.method or "subspace"
    if config.samples > 1 and method in CLASSICAL:
        raise InputError(f"{method} draws no samples; with --samples {config.samples} use subspace")
    return method


def estimate_noise(cube: Cube, usable: NDArray[np.bool_]) -> NoiseModel:
    """The noise model, of the whole scene or of evenly spread rows of a large one.

    Raises:
        InputError: fewer than two bands with values that vary, or too few pixels for so many bands.
    """
    rows, columns, bands = cube.shape
    wanted = max(ESTIMATE_ROWS, ESTIMATE_VALUES // (columns * bands))
    chosen = np.unique(np.linspace(0, rows - 1, min(rows, wanted)).round().astype(int))
    values = (
        np.concatenate([cube.values(slice(row, row + 1)) for row in chosen]) if len(chosen) < rows else cube.values()
    )
    varying = usable & (np.nanstd(np.where(np.isfinite(values), values, np.nan), axis=(0, 1)) > 0)
    if varying.sum() < 2:
        raise InputError(
            f"{cube.name}: has {int(varying.sum())} usable band(s) whose values vary; at least two are needed."
        )
    pixels = int(np.isfinite(values[..., varying]).any(2).sum())
    if pixels < 1.5 * varying.sum():
        raise InputError(
            f"{cube.name}: has {pixels} pixels and {int(varying.sum())} bands; the noise of the bands can be told from "
            "at least one and a half times as many pixels as bands."
        )
    return estimate(values, usable)


def denoise(
    cube: Cube,
    method: str,
    prior: Prior | None,
    config: DenoiseConfig,
    identity: str,
    clock: Clock,
) -> Denoised:
    """The whole job on one cube; `identity` and the seed decide the random numbers of the samples."""
    usable = np.ones(cube.shape[2], bool) if cube.good is None or config.repair_bad else cube.good
    with clock("operator"):
        model = estimate_noise(cube, usable)
        images, noise, outside, lost = project(cube, model)
    images = fill_outside(images, outside)
    draws: list[Floats] = []
    evaluations = 0
    if prior is None:
        found = nlm(images, noise) if method == "nlm" else images
    else:
        posterior = EigenPosterior(prior, images, noise, precision=config.precision, clock=lambda: clock("network"))
        turns = min(config.steps or TURNS, TURNS if model.rank <= MANY else TURNS // 2)
        found = posterior.mean(turns)
        for number in range(config.samples if config.samples > 1 else 0):
            draws.append(posterior.draw(Noise.of(config.seed, [f"{identity} sample {number}"]), config.steps or STEPS))
        evaluations = max(turns, (config.steps or STEPS) if draws else 0)
    with clock("operator"):
        return _rebuild(cube, model, found, draws, lost, evaluations)


def project(
    cube: Cube, model: NoiseModel
) -> tuple[Floats, NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
    """Eigen-images `(rank, rows, columns)`, their noise `(rank,)`, the pixels without data, and what is lost of each band."""
    rows, columns, _ = cube.shape
    images = np.empty((model.rank, rows, columns), np.float32)
    outside = np.zeros((rows, columns), bool)
    factors, kept, pixels = [], np.zeros(int(model.used.sum())), 0
    for block in blocks(*cube.shape, numbers=1 << 22):
        whitened, known = model.whiten(cube.values(block)[..., model.used])
        shape = whitened.shape[:2]
        flat, mask = whitened.reshape(-1, whitened.shape[2]), known.reshape(-1, whitened.shape[2])
        outside[block] = ~known.any(2)
        images[:, block] = coefficients(flat, mask, model.basis).T.reshape(-1, *shape)
        if not outside[block].all():
            factors.append(amplification(mask, model.basis, model.excess))
            kept, pixels = kept + mask.sum(0), pixels + int(mask.any(1).sum())
    noise = np.sqrt(np.mean(factors, axis=0))
    return images, noise, outside, 1 - kept / max(1, pixels)


def _rebuild(
    cube: Cube, model: NoiseModel, images: Floats, draws: list[Floats], lost: NDArray[np.float64], evaluations: int
) -> Denoised:
    """Eigen-images to spectra, rows by rows; values outside the model stay as they are."""
    out = np.array(cube.data, copy=True, order="C")
    std = np.full(cube.shape, np.nan, np.float32) if draws else None
    bands = np.flatnonzero(model.used)
    total = square = along = across = 0.0
    repaired = 0
    for block in blocks(*cube.shape, numbers=1 << 22):
        stored = cube.values(block)[..., model.used]
        there = np.isfinite(stored)
        gaps = ~np.isfinite(np.asarray(cube.data[block])[..., model.used]) & there.any(2, keepdims=True)
        clean = _spectra(images[:, block], model)
        values = model.mean + model.unit * clean
        fitted = fit(values, cube.data.dtype)
        repaired += int(gaps.sum())
        out[block][..., bands] = np.where(there | gaps, fitted, np.asarray(cube.data[block])[..., model.used])
        whitened, mask = model.whiten(stored)
        left = np.where(mask, (whitened - clean) / model.excess, 0)
        total, square = total + float(mask.sum()), square + float(np.square(left).sum(dtype=np.float64))
        along += float((left[:, 1:] * left[:, :-1]).sum(dtype=np.float64))
        across += float((left[1:] * left[:-1]).sum(dtype=np.float64))
        if std is not None:
            spread = np.std([_spectra(draw[:, block], model) for draw in draws], axis=0, ddof=1) * model.unit
            std[block][..., bands] = np.where(there | gaps, spread, np.nan)
    correlation = (along / max(square, 1e-12), across / max(square, 1e-12))
    return Denoised(out, std, model, lost, repaired, square / max(total, 1), correlation, evaluations)


def _spectra(images: Floats, model: NoiseModel) -> Floats:
    """Whitened spectra `(rows, columns, used)` of eigen-images `(rank, rows, columns)`."""
    out: Floats = np.tensordot(images, model.basis, axes=(0, 1))
    return out
