"""`hyperspectral superresolve`: a cube at a finer pixel, from its own noise and spectra and a spatial prior.

    y_b = H x_b + c_b + sigma_b n,      H = blur and decimation by a whole factor, the same for every band

so that every eigen-image obeys `z_hat = H z + n`, see `restoration`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np
import torch
from pydantic import Field
from torch.nn import functional as F

from domains.hyperspectral import hir_diff, restoration, untrained
from domains.hyperspectral.containers import Cube, blocks
from domains.hyperspectral.data import NEW, fit, input_files, read_cube, write_new
from domains.hyperspectral.eigen_images import fill_outside
from domains.hyperspectral.noise_model import NoiseModel
from domains.hyperspectral.pipeline import estimate_noise, load_hyperspectral_prior, project
from domains.hyperspectral.self_supervised import LARGEST, dds2m
from domains.hyperspectral.subspace import Floats
from domains.hyperspectral.training import GUIDES
from suite.config import MainConfig, load_config
from suite.errors import InputError
from suite.noise import Noise
from suite.options import MainOptions
from suite.prior import Prior
from suite.records import emit
from suite.run import Run, resolve_device, sha256_file

Clock = Callable[[str], AbstractContextManager[Any]]


class SuperresolveConfig(MainConfig):
    """Settings of `hyperspectral superresolve`.

    Attributes:
        method: `subspace` (default): DDRM with the prior of eigen-images. `hir_diff`: the same prior on representative bands.
            `dds2m`: a network fitted to this cube alone. `bicubic`: interpolation of the eigen-images.
        factor: how many new pixels one old pixel becomes in either direction.
        variation: strength of hir_diff's total variation.
        steps: network evaluations (20; of dds2m 500).
    """

    method: Literal["subspace", "hir_diff", "dds2m", "bicubic"] = "subspace"
    factor: int = Field(default=2, ge=2, le=8)
    variation: float = Field(default=0.05, ge=0)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"


@dataclass(frozen=True)
class Finer:
    """A result: the cube `(rows * factor, columns * factor, bands)` in stored units, its noise model, and what the record tells."""

    data: np.ndarray
    model: NoiseModel
    evaluations: int
    told: dict[str, Any]


def finer(cube: Cube, prior: Prior | None, config: SuperresolveConfig, identity: str, clock: Clock) -> Finer:
    """The cube at a finer pixel. Bands outside the noise model, and the edge of no-data, are interpolated.

    Raises:
        InputError: the finer scene has too many pixels.
    """
    rows, columns, _ = cube.shape
    if rows * columns * config.factor**2 > LARGEST:
        raise InputError(
            f"{cube.name}: would have more than {LARGEST} pixels; cut the scene or choose a smaller --factor"
        )
    usable = np.ones(cube.shape[2], bool) if cube.good is None else cube.good
    with clock("operator"):
        model = estimate_noise(cube, usable)
        images, noise, outside, _ = project(cube, model)
    told: dict[str, Any] = {"rank": model.rank, "factor": config.factor}
    if config.method == "dds2m":
        steps = config.steps or untrained.STEPS
        with clock("network"):
            found, model, result = dds2m(
                cube, model, factor=config.factor, seed=config.seed, identity=identity, steps=steps
            )
        told |= {"heldout_error": result.heldout, "chosen_step": result.chosen}
        evaluations = result.evaluations
    else:
        filled = torch.from_numpy(np.ascontiguousarray(fill_outside(images, outside)))
        found, evaluations = _images(filled, torch.from_numpy(noise).float(), model, prior, config, identity, clock)
    return Finer(_assemble(cube, model, found, config.factor), model, evaluations, told)


def _images(
    images: torch.Tensor,
    noise: torch.Tensor,
    model: NoiseModel,
    prior: Prior | None,
    config: SuperresolveConfig,
    identity: str,
    clock: Clock,
) -> tuple[Floats, int]:
    """The finer eigen-images `(R, rows, columns)` and the evaluations."""
    start = F.interpolate(images[None], scale_factor=config.factor, mode="bicubic")[0]
    if prior is None:
        return start.numpy(), 0
    steps = config.steps or restoration.STEPS
    device = next(prior.net.parameters()).device
    images, noise, start = images.to(device), noise.to(device), start.to(device)
    operator = restoration.reduction((start.shape[1], start.shape[2]), config.factor)
    network = prior.denoiser(precision=config.precision, clock=lambda: clock("network"))
    seen = torch.ones(images.shape[1:], dtype=torch.bool)
    draw = Noise.of(config.seed, [f"{identity} finer"])
    if config.method == "hir_diff":
        found = hir_diff.hir_diff(
            network, images, noise, model.basis, operator, seen, start, GUIDES, variation=config.variation, draw=draw, steps=steps
        )  # fmt: skip
    else:
        found = restoration.restore_images(
            network, images, noise, operator, seen, start, GUIDES, draw=draw, steps=steps
        )
    return found.cpu().numpy(), steps


def _assemble(cube: Cube, model: NoiseModel, images: Floats, factor: int) -> np.ndarray:
    """Spectra of the finer images in stored units; other bands by nearest neighbour, no-data where the old pixel had none."""
    rows, columns, bands = cube.shape
    out = np.empty((rows * factor, columns * factor, bands), cube.data.dtype)
    used = np.flatnonzero(model.used)
    for block in blocks(rows * factor, columns * factor, bands, numbers=1 << 22):
        old = np.arange(block.start, block.stop) // factor
        raw = np.repeat(np.asarray(cube.data)[old], factor, axis=1)
        there = np.isfinite(np.repeat(cube.values()[old], factor, axis=1)).any(2, keepdims=True)
        clean = model.mean + model.unit * np.tensordot(images[:, block], model.basis, axes=(0, 1))
        raw[..., used] = np.where(there, fit(clean, cube.data.dtype), raw[..., used])
        out[block] = raw
    return out


def superresolve_verb(path: Path, factor: int | None, options: MainOptions) -> None:
    """`hyperspectral superresolve`: cube -> result folder with `superresolved.*`."""
    given = options.given() | ({} if factor is None else {"factor": factor})
    config = load_config(SuperresolveConfig, options.config, options.overrides, given)
    if config.samples > 1:
        raise InputError("superresolve gives a point estimate and draws no samples; leave out --samples")
    device = resolve_device(config.device)
    cube = read_cube(path, config.key)
    with Run(
        options.output,
        domain="hyperspectral",
        config=config,
        inputs=input_files(cube),
        command=options.command,
        device=device,
        seed=config.seed,
        method=config.method,
        overwrite=options.overwrite,
    ) as run:
        for sentence in cube.warnings:
            run.warn(sentence)
        prior = None if config.method == "bicubic" else load_hyperspectral_prior(config.prior, device, config.method)
        if prior is not None:
            run.prior = {"name": prior.card.name, "sha256": prior.sha256}
        result = finer(cube, prior, config, sha256_file(run.input_files[0][0]), run.clock)
        assert cube.source is not None
        suffix = cube.source.suffix.lower() if cube.source.suffix.lower() in NEW else ".npz"
        bare = replace(cube, data=result.data, outside=None, kind="new")
        write_new(bare, result.data, run.output(f"superresolved{suffix}"))
        run.warn("Only numbers and bands are carried over to the finer grid: georeference and other variables are not.")
        run.estimator, run.nfe = "point", result.evaluations
        run.extra |= result.told
    if not emit(run.record, options.json_to) and not options.quiet:
        click.echo(
            f"{options.output}: {config.method}, {' x '.join(map(str, result.data.shape))}, rank {result.told['rank']}"
        )
