"""The main job: a cube in, the denoised cube with its noise model and its doubts out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from domains.hyperspectral import joint_training
from domains.hyperspectral.containers import Cube, blocks
from domains.hyperspectral.methods import METHODS, Clock, DenoiseConfig, Task
from domains.hyperspectral.noise_model import NoiseModel, estimate
from domains.hyperspectral.rebuild import Denoised, rebuild
from domains.hyperspectral.subspace import Floats, amplification, coefficients
from domains.hyperspectral.training import GUIDES, UNIT
from suite.errors import InputError
from suite.prior import Prior, load_prior

WEIGHTS = Path(__file__).parent / "weights"
SHIPPED = WEIGHTS / "hyperspectral-eigen.safetensors"
JOINT = WEIGHTS / "hyperspectral-finch.safetensors"
CLASSICAL, SAMPLING = ("nlm", "svd"), ("subspace",)
ESTIMATE_VALUES, ESTIMATE_ROWS = 6_000_000, 64


def load_hyperspectral_prior(path: Path | None, device: torch.device, method: str = "subspace") -> Prior | None:
    """The prior that a method needs: the named one, or the shipped one, checked; None for methods without one.

    Raises:
        InputError: a prior for a method that takes none, or one of another kind.
    """
    if method in (*CLASSICAL, "dds2m"):
        if path is not None:
            raise InputError(f"{method} takes no prior; leave out --prior, or use subspace")
        return None
    if method == "finch":
        return load_prior(path or JOINT, device, unit=joint_training.UNIT, channels=1, condition_channels=0)
    return load_prior(path or SHIPPED, device, unit=UNIT, channels=1, condition_channels=GUIDES)


def choose_method(config: DenoiseConfig) -> str:
    """The method of a run.

    Raises:
        InputError: several samples of a method that draws none.
    """
    method = config.method or "subspace"
    if config.samples > 1 and method not in SAMPLING:
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
    """The whole job on one cube; `identity` and the seed decide the random numbers."""
    usable = np.ones(cube.shape[2], bool) if cube.good is None or config.repair_bad else cube.good
    with clock("operator"):
        model = estimate_noise(cube, usable)
        images, noise, outside, lost = project(cube, model)
    if config.fill and method in CLASSICAL and outside.any():
        raise InputError(f"{method} fills no pixels without data; with --fill use subspace, hir_diff, finch or dds2m")
    task = Task(cube, model, images, noise, outside, prior, config, identity, clock)
    model, found = METHODS[method](task)
    with clock("operator"):
        return rebuild(cube, model, found, lost, fill=config.fill)


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
