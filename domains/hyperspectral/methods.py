"""The methods of `hyperspectral denoise`: from eigen-images with known noise (or the cube itself) to an estimate."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from domains.hyperspectral import hir_diff, joint_prior, restoration, untrained
from domains.hyperspectral.containers import Cube
from domains.hyperspectral.eigen_images import EigenPosterior, fill_outside, nlm
from domains.hyperspectral.noise_model import NoiseModel
from domains.hyperspectral.rebuild import Estimate, of_images
from domains.hyperspectral.self_supervised import LARGEST, dds2m
from domains.hyperspectral.subspace import Floats, coefficients
from domains.hyperspectral.training import GUIDES
from suite.config import MainConfig
from suite.denoiser import Denoiser
from suite.errors import InputError
from suite.noise import Noise
from suite.operators import Identity
from suite.prior import Prior

Clock = Callable[[str], AbstractContextManager[Any]]
TURNS, STEPS, MANY = 8, 15, 32
VALUES = 60_000_000
"""Values of a cube that finch holds in memory at most."""


class DenoiseConfig(MainConfig):
    """Settings of `hyperspectral denoise`.

    Attributes:
        method: `subspace` (default): the diffusion prior on whitened eigen-images. `hir_diff`: the same prior on representative
            bands, guided by the data and by total variation. `finch`: a joint prior of space and spectrum. `dds2m`: a network
            fitted to this cube alone. `nlm`: non-local means on the eigen-images. `svd`: the projection on the subspace alone.
        steps: network evaluations per image at most: of the mean 8 (one for each way to lay it; 4 where the rank is above
            32), of a draw the length of the reverse diffusion (15), of hir_diff and of filled pixels 20, of finch 8, of dds2m the
            steps of its fit (500).
        repair_bad: restore bands that the file flags as bad too.
        fill: give pixels without any data an estimate too.
        variation: strength of hir_diff's total variation.
        precision: of the network; `auto` is bfloat16 where the processor multiplies it natively.
    """

    method: Literal["subspace", "hir_diff", "finch", "dds2m", "nlm", "svd"] | None = None
    repair_bad: bool = False
    fill: bool = False
    variation: float = Field(default=0.05, ge=0)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    steps: int | None = Field(default=None, ge=1)


@dataclass(frozen=True)
class Task:
    """One cube and what a method needs to know of it.

    Attributes:
        cube, model: the cube and its noise.
        images, noise: eigen-images `(rank, rows, columns)` and their deviations `(rank,)`.
        outside: pixels without data.
        prior: None for methods without one.
        config, identity, clock: settings, what the random numbers hang on, and the watch.
    """

    cube: Cube
    model: NoiseModel
    images: Floats
    noise: NDArray[np.float64]
    outside: NDArray[np.bool_]
    prior: Prior | None
    config: DenoiseConfig
    identity: str
    clock: Clock

    def draw(self, what: str) -> Noise:
        return Noise.of(self.config.seed, [f"{self.identity} {what}"])

    def network(self) -> Denoiser:
        assert self.prior is not None
        return self.prior.denoiser(precision=self.config.precision, clock=lambda: self.clock("network"))

    @property
    def device(self) -> torch.device:
        assert self.prior is not None
        return next(self.prior.net.parameters()).device

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Images with every pixel filled, their noise, and which pixels were measured."""
        filled = torch.from_numpy(np.ascontiguousarray(fill_outside(self.images, self.outside)))
        arrays = filled, torch.from_numpy(self.noise).float(), torch.from_numpy(~self.outside)
        return tuple(array.to(self.device) for array in arrays)  # type: ignore[return-value]


def subspace(task: Task) -> tuple[NoiseModel, Estimate]:
    """The posterior mean of every eigen-image, and draws; DDRM where pixels are to be filled."""
    config, model = task.config, task.model
    if config.fill and task.outside.any():
        if config.samples > 1:
            raise InputError("pixels without data are filled by a point estimate; leave out --samples or --fill")
        images, noise, seen = task.tensors()
        steps = config.steps or restoration.STEPS
        found = restoration.restore_images(
            task.network(), images, noise, Identity(), seen, images, GUIDES, draw=task.draw("fill"), steps=steps
        )
        return model, Estimate(of_images(found.cpu().numpy(), model), evaluations=steps)
    assert task.prior is not None
    posterior = EigenPosterior(
        task.prior,
        fill_outside(task.images, task.outside),
        task.noise,
        precision=config.precision,
        clock=lambda: task.clock("network"),
    )
    turns = min(config.steps or TURNS, TURNS if model.rank <= MANY else TURNS // 2)
    mean = of_images(posterior.mean(turns), model)
    numbers = range(config.samples if config.samples > 1 else 0)
    draws = [of_images(posterior.draw(task.draw(f"sample {n}"), config.steps or STEPS), model) for n in numbers]
    return model, Estimate(mean, draws, max(turns, (config.steps or STEPS) if draws else 0), "mean")


def representative(task: Task) -> tuple[NoiseModel, Estimate]:
    """HIR-Diff."""
    images, noise, seen = task.tensors()
    if images[0].numel() > LARGEST:
        raise InputError(
            f"{task.cube.name}: has {images[0].numel()} pixels, and hir_diff differentiates through at most {LARGEST}; cut the "
            "scene, or use subspace."
        )
    steps = task.config.steps or hir_diff.HIRDiff.steps
    found = hir_diff.hir_diff(
        task.network(),
        images,
        noise,
        task.model.basis,
        Identity(),
        seen if task.config.fill else torch.ones_like(seen),
        images,
        GUIDES,
        variation=task.config.variation,
        draw=task.draw("hir_diff"),
        steps=steps,
    )
    return task.model, Estimate(of_images(found.cpu().numpy(), task.model), evaluations=steps)


def self_supervised(task: Task) -> tuple[NoiseModel, Estimate]:
    """DDS2M."""
    steps = task.config.steps or untrained.STEPS
    with task.clock("network"):
        images, model, fit = dds2m(
            task.cube, task.model, factor=1, seed=task.config.seed, identity=task.identity, steps=steps
        )
    told = {"rank": task.model.rank, "heldout_error": fit.heldout, "chosen_step": fit.chosen}
    return model, Estimate(of_images(images, model), evaluations=fit.evaluations, told=told)


def joint(task: Task) -> tuple[NoiseModel, Estimate]:
    """The joint prior, on the standardised cube."""
    cube, model = task.cube, task.model
    rows, columns, _ = cube.shape
    bands = len(model.mean)
    if rows * columns * bands > VALUES:
        raise InputError(
            f"{cube.name}: has {rows * columns * bands} values, and finch holds at most {VALUES}; cut the scene, or use subspace."
        )
    whitened, known = model.whiten(cube.values()[..., model.used])
    guess = coefficients(whitened.reshape(-1, bands), known.reshape(-1, bands), model.basis) @ model.basis.T
    whitened = np.where(known, whitened, guess.reshape(whitened.shape))
    scale = np.maximum(model.signal / model.unit, 0.1 * model.excess).astype(np.float32)
    centre = whitened.reshape(-1, bands).mean(0)
    y = torch.from_numpy(np.ascontiguousarray(((whitened - centre) / scale).transpose(2, 0, 1))).to(task.device)
    noise = torch.from_numpy(model.excess / scale).to(task.device)
    seen = torch.from_numpy(np.ascontiguousarray(known.transpose(2, 0, 1))).to(task.device)
    steps = task.config.steps or joint_prior.STEPS
    found, evaluations = joint_prior.joint_posterior(
        task.network(), y, noise, seen, draw=task.draw("finch"), steps=steps
    )
    clean = found.permute(1, 2, 0).float().cpu().numpy() * scale + centre

    def spectra(block: slice) -> Floats:
        part: Floats = clean[block]
        return part

    return model, Estimate(spectra, evaluations=evaluations)


def classical(task: Task) -> tuple[NoiseModel, Estimate]:
    """Non-local means on the eigen-images."""
    filled = fill_outside(task.images, task.outside)
    return task.model, Estimate(of_images(nlm(filled, task.noise), task.model))


def projection(task: Task) -> tuple[NoiseModel, Estimate]:
    """The projection on the subspace."""
    return task.model, Estimate(of_images(fill_outside(task.images, task.outside), task.model))


METHODS: dict[str, Callable[[Task], tuple[NoiseModel, Estimate]]] = {
    "subspace": subspace,
    "hir_diff": representative,
    "finch": joint,
    "dds2m": self_supervised,
    "nlm": classical,
    "svd": projection,
}
