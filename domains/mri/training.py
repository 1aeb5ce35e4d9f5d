"""Training an MRI prior on magnitude images: files -> subjects -> complex patches with synthetic phase -> prior with card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from domains.mri.containers import Volume
from domains.mri.data import is_image, read_volume
from domains.mri.phase import smooth_phase
from suite.config import Config
from suite.errors import InputError
from suite.patches import PatchSource, Subject
from suite.prior import Card
from suite.training import Trainer, TrainingConfig

UNIT = "p99"
"""Network units: the 99th percentile of a slice's magnitude is 1. Two channels, real and imaginary part."""

PERCENTILE = 0.99


class DataConfig(Config):
    """Which subjects, and on which side of the split.

    Attributes:
        subjects: file name pattern (shell wildcards) -> person; files that match none are a person each.
        validation: name patterns of the persons never trained on.
        exclude: name patterns of files or persons left out altogether.
        weights: name pattern of a file, `+coronal` or `+sagittal` behind it for its reformats -> relative share (default 1).
        side: slices of more pixels a side are averaged in blocks until they fit.
        zoom: patches are rescaled by up to this factor either way.
        jitter: the scale of a patch varies by up to this factor either way.
        background: patches whose mean magnitude lies below this value are mostly drawn again.
    """

    subjects: dict[str, str] = Field(default_factory=dict)
    validation: list[str] = Field(default_factory=list)
    exclude: list[str] = Field(default_factory=list)
    weights: dict[str, float] = Field(default_factory=dict)
    side: int = Field(default=400, ge=8)
    zoom: float = Field(default=1.25, ge=1)
    jitter: float = Field(default=1.25, ge=1)
    background: float = 0.05


class MRITrainingConfig(TrainingConfig):
    """Settings of `mri train`: the network and its training, and under `data` the split."""

    data: DataConfig = DataConfig()
    limits: list[str] = Field(default=["Not a medical device; not for primary diagnosis."])


# --- images -----------------------------------------------------------------------------------------------------------


def subject_images(paths: Sequence[Path], config: DataConfig) -> dict[str, list[NDArray[np.float32]]]:
    """Magnitude slices by file name, 99th percentile 1, of every NIfTI file or DICOM folder below `paths`.

    Slices that show less than a tenth of the volume's fullest one are left out. Volumes with slices as thin as their
    pixels also give their two reformats, under the name with `+coronal` and `+sagittal`.

    Raises:
        InputError: a path does not exist, or none holds an image.
    """
    found: dict[str, list[NDArray[np.float32]]] = {}
    for path, label in _files(paths):
        if any(fnmatch(name, pattern) for pattern in config.exclude for name in (label, person(label, config))):
            continue
        for suffix, stack in _views(read_volume(path)):
            images = [_block_mean(image, config.side) for image in normalised(stack)]
            found.setdefault(label + suffix, []).extend(images)
    if not found:
        raise InputError(f"no MR image was found in {', '.join(map(str, paths))}; NIfTI files or DICOM are needed")
    return found


def person(label: str, config: DataConfig) -> str:
    """Who a file shows: by `subjects`, else the file's own name."""
    return next((who for pattern, who in config.subjects.items() if fnmatch(label, pattern)), label)


def _files(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        folders = set()
        for file in filter(is_image, files):
            if file.name.lower().endswith((".nii", ".nii.gz")):
                yield file, file.name.split(".nii")[0]
            elif file.parent not in folders:  # a DICOM series is read folder by folder
                folders.add(file.parent)
                yield file.parent, file.parent.name


def _views(volume: Volume) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The slices, and of thin-sliced volumes the two reformats on square pixels."""
    data = np.abs(volume.data.reshape(-1, *volume.data.shape[-3:]))
    x, y, z = volume.spacing_mm
    for stack in data:
        yield "", _square(stack, y, x)
        if max(x, y, z) < 1.3 * min(x, y, z) and min(stack.shape) >= 64:
            yield "+coronal", _square(stack.transpose(1, 0, 2), z, x)
            yield "+sagittal", _square(stack.transpose(2, 0, 1), z, y)


def _square(stack: NDArray[np.float32], row: float, column: float) -> NDArray[np.float32]:
    """The slices on square pixels of the finer of the two pitches."""
    if abs(row - column) < 0.02 * max(row, column):
        return stack
    fine = min(row, column)
    size = round(stack.shape[1] * row / fine), round(stack.shape[2] * column / fine)
    images = torch.from_numpy(np.ascontiguousarray(stack))[:, None]
    out: NDArray[np.float32] = F.interpolate(images, size, mode="bilinear", align_corners=False)[:, 0].numpy()
    return out


def normalised(stack: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """The slices that show something, each divided by the 99th percentile of its magnitude."""
    high = float(np.quantile(stack, PERCENTILE))
    shown = (stack > 0.05 * high).mean(axis=(1, 2))
    kept = stack[shown > max(0.02, 0.1 * float(shown.max()))]
    levels = np.quantile(kept, PERCENTILE, axis=(1, 2)) if len(kept) else []
    return [image / np.float32(level) for image, level in zip(kept, levels, strict=True) if level > 0]


def _block_mean(image: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    block = -(-max(image.shape) // side)
    h, w = (n // block for n in image.shape)
    return image[: h * block, : w * block].reshape(h, block, w, block).mean((1, 3), dtype=np.float32)


def split_subjects(
    images: Mapping[str, Sequence[NDArray[np.float32]]], config: DataConfig
) -> tuple[list[Subject], list[Subject]]:
    """Training and validation subjects; all files of a person are on one side.

    Raises:
        InputError: a side of the split is empty.
    """
    people: dict[str, list[str]] = {}
    for name in images:
        people.setdefault(person(name.split("+")[0], config), []).append(name)
    train: list[Subject] = []
    held_out: list[Subject] = []
    for who, names in people.items():
        side = held_out if any(fnmatch(who, pattern) for pattern in config.validation) else train
        for name in names:
            share = next((w for pattern, w in config.weights.items() if fnmatch(name, pattern)), 1.0)
            for size in sorted({image.shape for image in images[name]}):
                stack = np.stack([image for image in images[name] if image.shape == size])[:, None]
                side.append(Subject(who, torch.from_numpy(stack), share * len(stack) / len(images[name])))
    if not train or not held_out:
        raise InputError(
            f"the split by person leaves {len(train)} file(s) for training and {len(held_out)} for validation of "
            f"{', '.join(people)}; name at least one person on each side with data.validation"
        )
    return train, held_out


# --- complex patches --------------------------------------------------------------------------------------------------


class ComplexPatches:
    """Patches of magnitude images with a synthetic phase: two channels, real and imaginary part.

    The phase is a random constant (so that the prior knows no preferred phase), a random quadratic polynomial as of shim and
    echo shift, and a smooth random field as of the coils.
    """

    channels = 2
    condition_channels = 0

    def __init__(self, magnitude: PatchSource, jitter: float) -> None:
        self.magnitude, self.jitter = magnitude, jitter

    def batch(self, size: int, patch: int, rng: torch.Generator) -> tuple[Tensor, None]:
        x, _ = self.magnitude.batch(size, patch, rng)
        scale = self.jitter ** (2 * torch.rand((size, 1, 1, 1), generator=rng) - 1)
        return with_phase(x.clamp_min(0) * scale, rng), None

    def validation(self, patch: int) -> tuple[Tensor, None]:
        x, _ = self.magnitude.validation(patch)
        return with_phase(x.clamp_min(0), torch.Generator().manual_seed(1)), None


def with_phase(magnitude: Tensor, rng: torch.Generator) -> Tensor:
    """`(B, 1, n, n)` magnitudes to `(B, 2, n, n)` with a smooth random phase each."""
    angle = smooth_phase(len(magnitude), (magnitude.shape[-2], magnitude.shape[-1]), rng)
    return torch.cat([magnitude * angle.cos(), magnitude * angle.sin()], 1)


def patch_source(paths: Sequence[Path], config: DataConfig) -> tuple[ComplexPatches, list[str], list[str]]:
    """Patches of the training subjects, and the names on each side of the split."""
    train, held_out = split_subjects(subject_images(paths, config), config)
    patches = PatchSource(train, held_out, zoom=config.zoom, background=config.background)
    return ComplexPatches(patches, config.jitter), sorted({s.name for s in train}), sorted({s.name for s in held_out})


# --- the card ---------------------------------------------------------------------------------------------------------


def mri_card(config: MRITrainingConfig, trainer: Trainer, train: Sequence[str], held_out: Sequence[str]) -> Card:
    """The card of a training run, finished or not."""
    errors = trainer.history[-1]["validation_rmse"] if trainer.history else {}
    return Card(
        name=trainer.output.stem,
        domain="mri",
        description="Complex MR slices (real and imaginary part), 99th percentile of the magnitude 1; any matrix size.",
        unit=UNIT,
        scale=1.0,
        offset=0.0,
        value_range=(-2.0, 2.0),
        pixel_size_mm=(0.7, 1.3),
        channels=2,
        data=list(train),
        validation_data=list(held_out),
        **trainer.card_fields("diffsuite mri train --data DIR -o PRIOR.safetensors --config configs/mri/train.yaml"),
        validation={
            "what": "RMS denoising error (each part) on patches of the held-out persons, by noise level",
            "rmse": {level: round(error, 5) for level, error in errors.items()},
        },
    )
