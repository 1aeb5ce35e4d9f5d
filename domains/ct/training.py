"""Training a CT prior on the user's own images: files -> subjects -> patches -> prior with card."""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch.nn import functional as F

from domains.ct.data import AIR_HU, Volume, read_volume
from domains.ct.dicom import is_dicom, read_dicom
from suite.config import Config
from suite.errors import InputError
from suite.patches import PatchSource, Subject
from suite.prior import Card
from suite.training import Trainer, TrainingConfig

HU_PER_UNIT = 1000.0
"""Network units: u = HU / 1000 (water 0, air -1)."""

VALUE_RANGE = (-1024.0, 3071.0)


class DataConfig(Config):
    """Which subjects, and on which side of the split.

    Attributes:
        validation: name patterns (shell wildcards) of the subjects never trained on.
        exclude: name patterns of subjects left out altogether.
        weights: name pattern -> relative share of the patches (default 1).
        side: slices of more pixels a side are averaged in blocks until they fit.
        zoom: patches are rescaled by up to this factor either way.
        air: patches whose mean lies below this HU value are mostly drawn again.
    """

    validation: list[str] = Field(default_factory=list)
    exclude: list[str] = Field(default_factory=list)
    weights: dict[str, float] = Field(default_factory=dict)
    side: int = Field(default=400, ge=8)
    zoom: float = Field(default=1.25, ge=1)
    air: float = -950.0


class CTTrainingConfig(TrainingConfig):
    """Settings of `ct train`: the network and its training, and under `data` the split."""

    data: DataConfig = DataConfig()
    limits: list[str] = Field(default=["Not a medical device; not for primary diagnosis."])


def subject_images(paths: Sequence[Path], config: DataConfig) -> dict[str, list[NDArray[np.float32]]]:
    """HU slices by subject name, of every volume below `paths` (folders, zip archives, NIfTI, MetaImage, DICOM).

    NIfTI and MetaImage files are one subject each, named by the file. DICOM files are grouped by patient, named by the
    folder or archive and a hash of the patient's ID. Thin-sliced volumes also give 5 mm slabs and two reformats.
    """
    found: dict[str, list[NDArray[np.float32]]] = {}

    def add(name: str, images: Iterable[NDArray[np.float32]]) -> None:
        if any(fnmatch(name, pattern) for pattern in config.exclude):
            return
        found.setdefault(name, []).extend(_block_mean(image.clip(*VALUE_RANGE), config.side) for image in images)

    for path, label in _files(paths):
        if path.name.lower().endswith((".nii", ".nii.gz", ".mha", ".mhd")):
            volume = read_volume(path)
            if volume.unit == "HU":
                for suffix, images in _views(volume):
                    add(label + suffix, images)
        elif is_dicom(path):
            header = read_dicom(path)
            if header.get("Modality") == "CT" and "Rows" in header:
                patient = hashlib.sha256(str(header.get("PatientID", "")).encode()).hexdigest()[:8]
                add(f"{label}:{patient}", list(read_volume(path).data))
    if not found:
        raise InputError(f"no CT image was found in {', '.join(map(str, paths))}; NIfTI, MetaImage or DICOM is needed")
    return found


def _files(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Every file below the paths, with the name of what holds it: its own stem, its folder's, or its archive's."""
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
            if file.suffix == ".zip":
                with tempfile.TemporaryDirectory() as folder:
                    try:
                        with zipfile.ZipFile(file) as archive:
                            archive.extractall(folder)
                    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
                        raise InputError(f"{file}: is no readable zip archive ({error})") from None
                    yield from ((p, file.stem) for p in sorted(Path(folder).rglob("*")) if p.is_file())
            elif file.suffix in (".gz", ".nii", ".mha", ".mhd"):
                yield file, file.name.split(".")[0]
            else:
                yield file, file.parent.name


def _views(volume: Volume) -> Iterator[tuple[str, list[NDArray[np.float32]]]]:
    """The axial slices; of thin-sliced volumes also 5 mm slabs and the two reformats on square pixels."""
    pixel, thickness = volume.pixel_size_mm, volume.spacing_mm[2]
    data = volume.data if volume.valid is None else np.where(volume.valid, volume.data, np.float32(AIR_HU))
    yield "", list(data)
    if thickness > 1.5 or len(data) * thickness < 100:
        return
    n = round(5 / thickness)
    slabs = np.lib.stride_tricks.sliding_window_view(data, n, axis=0).mean(-1, dtype=np.float32)
    yield "+slabs", list(slabs[::2])
    stack = torch.from_numpy(np.ascontiguousarray(data))
    height = round(len(data) * thickness / pixel)
    for name, turned in (("+coronal", stack.permute(1, 0, 2)), ("+sagittal", stack.permute(2, 0, 1))):
        n, _, width = turned.shape
        images = F.interpolate(turned[n // 12 : -n // 12 : 2, None], (height, width), mode="bilinear", antialias=True)
        yield name, list(images[:, 0].numpy())


def _block_mean(image: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    block = -(-max(image.shape) // side)
    h, w = (n // block for n in image.shape)
    return image[: h * block, : w * block].reshape(h, block, w, block).mean((1, 3), dtype=np.float32)


def split_subjects(
    images: dict[str, list[NDArray[np.float32]]], config: DataConfig
) -> tuple[list[Subject], list[Subject]]:
    """Training and validation subjects in network units; images of different size are different entries of one subject.

    Raises:
        InputError: a side of the split is empty.
    """
    train: list[Subject] = []
    held_out: list[Subject] = []
    for name, slices in images.items():
        sizes = sorted({image.shape for image in slices})
        weight = next((w for pattern, w in config.weights.items() if fnmatch(name, pattern)), 1.0)
        subject = name.split("+")[0]  # slabs and reformats stay on their subject's side
        side = held_out if any(fnmatch(subject, pattern) for pattern in config.validation) else train
        for size in sizes:
            stack = np.stack([image for image in slices if image.shape == size])[:, None] / np.float32(HU_PER_UNIT)
            side.append(Subject(subject, torch.from_numpy(stack), weight * len(stack) / len(slices)))
    if not train or not held_out:
        raise InputError(
            f"the split by subject leaves {len(train)} for training and {len(held_out)} for validation of "
            f"{', '.join(images)}; name at least one on each side with data.validation"
        )
    return train, held_out


def patch_source(paths: Sequence[Path], config: DataConfig) -> tuple[PatchSource, list[str], list[str]]:
    """Patches of the training subjects, and the names on each side of the split."""
    train, held_out = split_subjects(subject_images(paths, config), config)
    source = PatchSource(train, held_out, zoom=config.zoom, background=config.air / HU_PER_UNIT)
    return source, sorted({s.name for s in train}), sorted({s.name for s in held_out})


def ct_card(config: CTTrainingConfig, trainer: Trainer, train: Sequence[str], held_out: Sequence[str]) -> Card:
    """The card of a finished training run."""
    last = trainer.history[-1]
    return Card(
        name=trainer.output.stem,
        domain="ct",
        description="Axial CT slices (people and phantoms) in HU; unconditional, any image size.",
        unit="HU",
        scale=HU_PER_UNIT,
        offset=0.0,
        value_range=VALUE_RANGE,
        pixel_size_mm=(0.9, 2.0),
        data=list(train),
        validation_data=list(held_out),
        **trainer.card_fields("diffsuite ct train --data DIR -o PRIOR.safetensors --config configs/ct/train.yaml"),
        validation={
            "what": "RMS denoising error in HU on patches of the held-out subjects, by noise level in HU",
            "rmse_hu": {
                f"{HU_PER_UNIT * float(level):g}": round(HU_PER_UNIT * error, 2)
                for level, error in last["validation_rmse"].items()
            },
        },
    )
