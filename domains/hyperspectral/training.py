"""Training the spatial prior: scenes -> stacks of eigen-images -> a target and its guides -> prior with card.

The prior denoises one eigen-image of a scene, standardised to mean 0 and deviation 1, given up to three others of the same scene
as they are measured (noisy): `p(x_k | guides)`. Edges lie at the same places in all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from domains.hyperspectral.containers import Cube
from domains.hyperspectral.data import READERS, read_cube
from domains.hyperspectral.statistics import covariance, regression_noise
from suite.config import Config
from suite.errors import InputError
from suite.noise import generator
from suite.patches import PatchSource, Subject
from suite.prior import Card
from suite.training import Trainer, TrainingConfig

UNIT = "eigen-image"
"""Network units: mean 0 and standard deviation 1 over the scene."""

GUIDES = 3
DEPTH = 6
"""Eigen-images kept of each draw."""

COLOUR = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina", "immunohistochemistry")
GREY = ("camera", "brick", "grass", "gravel", "moon", "coins")
"""Pictures that ship inside scikit-image (public domain or CC0, see its data/README.txt)."""


class DataConfig(Config):
    """Which scenes, and on which side of the split.

    Attributes:
        validation: name patterns (shell wildcards) of the scenes never trained on, by which a run is judged.
        exclude: name patterns of scenes left out altogether.
        draws: random whitenings and band choices per scene, each giving one stack of eigen-images.
        natural: share of patches from the pictures that ship with scikit-image.
        zoom: patches are rescaled by up to this factor either way.
        window: bands of an example of the joint prior (`network.dims: 3`); its other examples are as above.
    """

    validation: list[str] = Field(default_factory=list)
    exclude: list[str] = Field(default_factory=list)
    draws: int = Field(default=12, ge=1)
    natural: float = Field(default=0.4, ge=0, lt=1)
    zoom: float = Field(default=1.4, ge=1)
    window: int = Field(default=32, ge=2)


class HyperspectralTrainingConfig(TrainingConfig):
    """Settings of `hyperspectral train`: the network and its training, and under `data` the split."""

    data: DataConfig = DataConfig()


# --- stacks of eigen-images -------------------------------------------------------------------------------------------


def scenes(paths: Sequence[Path], config: DataConfig) -> dict[str, Cube]:
    """Every cube below `paths` by file name.

    Raises:
        InputError: a path does not exist, or none holds a cube.
    """
    found: dict[str, Cube] = {}
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.suffix.lower() in READERS and not any(fnmatch(file.stem, p) for p in config.exclude):
                found[file.stem] = read_cube(file)
    if not found:
        raise InputError(f"no cube was found in {', '.join(map(str, paths))}; one of {', '.join(READERS)} is needed")
    return found


def eigen_stacks(cube: Cube, draws: int, seed: int) -> NDArray[np.float32]:
    """`(draws, DEPTH, rows, columns)`: leading eigen-images under random band choices and weights, each of deviation 1.

    Those less than 14 times above the noise of the scene (`regression_noise`) are zero: they are not clean enough to learn from.
    """
    rows, columns, _ = cube.shape
    values = cube.values().reshape(rows * columns, -1)
    values = values[:, np.isfinite(values).mean(0) > 0.5]
    values = np.where(np.isfinite(values), values, np.nanmean(values, axis=0))
    values = values - values.mean(0)
    values = values[:, values.std(0) > 0]
    values = values / regression_noise(values)
    rng = np.random.default_rng(seed)
    out = np.zeros((draws, DEPTH, rows, columns), np.float32)
    for stack in out:
        bands = values.shape[1]
        chosen = rng.permutation(bands)[: int(bands * rng.uniform(0.4, 1))]
        weights = np.exp(0.5 * rng.standard_normal(len(chosen)))
        weights /= math.sqrt(float(np.mean(weights**2)))
        part = values[:, chosen] * weights.astype(np.float32)
        variance, vectors = np.linalg.eigh(covariance(part))
        for slot, index in enumerate(np.argsort(variance)[::-1][:DEPTH]):
            if variance[index] > 200:
                image = part @ vectors[:, index].astype(np.float32)
                stack[slot] = (image / image.std()).reshape(rows, columns)
    return out


def picture_stacks() -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Name and `(1, DEPTH, rows, columns)` of each picture of scikit-image: principal components of its colours, or the grey."""
    import skimage.data

    for name in (*COLOUR, *GREY):
        image = getattr(skimage.data, name)().astype(np.float32)
        image = image[..., None] if image.ndim == 2 else image[..., :3]
        step = 2 if min(image.shape[:2]) >= 400 else 1  # halved: the noise of the camera and of compression goes
        h, w = image.shape[0] // step * step, image.shape[1] // step * step
        image = image[:h, :w].reshape(h // step, step, w // step, step, -1).mean((1, 3))
        pixels = image.reshape(-1, image.shape[-1])
        pixels = pixels - pixels.mean(0)
        variance, vectors = np.linalg.eigh(covariance(pixels))
        order = np.argsort(variance)[::-1]
        parts = pixels @ vectors[:, order].astype(np.float32) / np.sqrt(variance[order]).astype(np.float32)
        stack = np.zeros((1, DEPTH, *image.shape[:2]), np.float32)
        kept = 2 if len(order) == 3 else 1  # the third component of a compressed picture is mostly noise
        stack[0, :kept] = parts[:, :kept].T.reshape(kept, *image.shape[:2])
        yield f"scikit-image {name}", stack


# --- a target and its guides ------------------------------------------------------------------------------------------


class GuidedEigenImages:
    """Patches of one eigen-image, and as their condition `GUIDES` others, noisy, of deviation 1; zero where absent.

    The condition leads nowhere but to the same scene: which eigen-image, which guides, signs and noise levels are random.
    """

    channels = 1
    condition_channels = GUIDES

    def __init__(self, stacks: PatchSource) -> None:
        self.stacks = stacks

    def batch(self, size: int, patch: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        stack, _ = self.stacks.batch(size, patch, rng)
        return guided(stack, rng)

    def validation(self, patch: int) -> tuple[Tensor, Tensor]:
        stack, _ = self.stacks.validation(patch)
        return guided(stack, torch.Generator().manual_seed(1))


def guided(stack: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Targets `(B, 1, n, n)` and guides `(B, GUIDES, n, n)` out of stacks `(B, DEPTH, n, n)` ordered by strength."""
    target, guides = [], []
    for images in stack:
        there = [i for i in range(len(images)) if bool(images[i].any())]
        chosen = there[int(torch.randint(len(there), (), generator=rng))]
        others = [i for i in there if i != chosen][:GUIDES]
        signs = 2 * torch.randint(2, (1 + GUIDES, 1, 1), generator=rng) - 1
        levels = torch.exp(torch.empty(GUIDES, 1, 1).uniform_(math.log(0.02), math.log(2.0), generator=rng))
        noise = torch.randn((GUIDES, *images.shape[1:]), generator=rng)
        kept = (torch.rand((GUIDES, 1, 1), generator=rng) < 0.9) & (torch.rand((), generator=rng) < 0.85)
        guide = torch.zeros_like(noise)
        guide[: len(others)] = images[others]
        guide[: len(others)] += (levels * noise)[: len(others)]
        target.append(images[chosen][None] * signs[:1])
        guides.append(kept * signs[1:] * guide / torch.sqrt(1 + levels**2))
    return torch.stack(target), torch.stack(guides)


def patch_source(
    paths: Sequence[Path], config: DataConfig, seed: int
) -> tuple[GuidedEigenImages, list[str], list[str]]:
    """Patches of the training scenes, and the names on each side of the split.

    Raises:
        InputError: a side of the split is empty.
    """
    train: list[Subject] = []
    held_out: list[Subject] = []
    for name, cube in scenes(paths, config).items():
        stacks = torch.from_numpy(eigen_stacks(cube, config.draws, generator(seed, name).initial_seed() % 2**32))
        stacks = stacks[stacks[:, 0].flatten(1).any(1)]
        if len(stacks):
            side = held_out if any(fnmatch(name, pattern) for pattern in config.validation) else train
            side.append(Subject(name, stacks, math.sqrt(stacks[0, 0].numel())))
    if not train or not held_out:
        raise InputError(
            f"the split by scene leaves {len(train)} for training and {len(held_out)} for validation; "
            "name at least one scene on each side with data.validation"
        )
    if config.natural:
        pictures = list(picture_stacks())
        total = sum(subject.weight for subject in train) * config.natural / (1 - config.natural)
        train += [Subject(name, torch.from_numpy(stack), total / len(pictures)) for name, stack in pictures]
    source = PatchSource(train, held_out, zoom=config.zoom)
    return GuidedEigenImages(source), [s.name for s in train], [s.name for s in held_out]


# --- the card ---------------------------------------------------------------------------------------------------------


def hyperspectral_card(
    config: HyperspectralTrainingConfig, trainer: Trainer, train: Sequence[str], held_out: Sequence[str]
) -> Card:
    """The card of a finished training run."""
    last = trainer.history[-1]
    return Card(
        name=trainer.output.stem,
        domain="hyperspectral",
        description="One eigen-image of a scene, given up to three others of it (noisy); mean 0, deviation 1; any size.",
        unit=UNIT,
        scale=1.0,
        offset=0.0,
        value_range=(-20.0, 20.0),
        channels=1,
        condition_channels=GUIDES,
        data=list(train),
        validation_data=list(held_out),
        **trainer.card_fields(
            "diffsuite hyperspectral train --data DIR -o PRIOR.safetensors --config configs/hyperspectral/train.yaml"
        ),
        validation={
            "what": "RMS denoising error on patches of the held-out scenes' eigen-images, by noise level",
            "rmse": {level: round(error, 5) for level, error in last["validation_rmse"].items()},
        },
    )
