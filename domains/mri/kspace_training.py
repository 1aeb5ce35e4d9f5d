"""Training an MRI prior without clean images, from undersampled k-space alone.

Expectation maximisation over the prior (Rozet et al. 2024, "Learning Diffusion Priors from Observations by Expectation
Maximization"): draw an image for every scan from the posterior under the prior so far, train on these images, draw again. Where the
sampling differs from scan to scan and leaves no direction unseen in all of them, the likelihood of the measured k-space rises from
round to round. The network that comes out is a denoiser of whole images like any other.

The first images are classical reconstructions. Nothing here looks at a fully sampled image.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from domains.mri.classical import classical
from domains.mri.data import read_kspace
from domains.mri.phase import smooth_phase
from domains.mri.pipeline import ReconstructConfig, learned, network_scale, supported
from domains.mri.problem import Problem, pose
from domains.mri.training import DataConfig, MRITrainingConfig, mri_card, person
from suite.config import Config
from suite.errors import InputError
from suite.linalg import expand
from suite.operators import ToComplex
from suite.patches import PatchSource, Subject
from suite.prior import Prior
from suite.training import Trainer

SUFFIXES = (".h5", ".hdf5", ".mrd", ".npy", ".mat", ".cfl", ".dat")


class KSpaceConfig(Config):
    """How images are drawn from k-space.

    Attributes:
        rounds: the images are drawn anew so often, at even distances of the training's steps; the first are classical.
        first: the classical method of the first.
        method, steps: of the later ones; `daps` draws from the posterior.
        batch: slices that go through the network together.
    """

    rounds: int = Field(default=6, ge=1)
    first: Literal["zero_filled", "sense", "wavelet", "tv"] = "wavelet"
    method: Literal["daps", "pigdm", "mmps", "dds"] = "daps"
    steps: int = Field(default=10, ge=1)
    batch: int = Field(default=16, ge=1)


class KSpaceTrainingConfig(MRITrainingConfig):
    """Settings of `mri train` on raw data: those of the training on images, and how images are drawn from the k-space.

    Of `data`, the split and the augmentation apply: `subjects`, `validation`, `exclude`, `zoom` and `jitter`.
    """

    kspace: KSpaceConfig = KSpaceConfig()


@dataclass(frozen=True)
class Scan:
    """One raw-data file.

    Attributes:
        name: of the file, without its ending.
        person: who it shows.
        problem: its slices, whitened, with coil maps.
        reference: CG-SENSE of them, whitened; scale: what a network value of 1 stands for, `(S,)`.
    """

    name: str
    person: str
    problem: Problem
    reference: Tensor
    scale: Tensor


def read_scans(paths: Sequence[Path], config: DataConfig) -> list[Scan]:
    """Every raw-data file below `paths`.

    Raises:
        InputError: a path does not exist, none holds k-space, or one cannot be read.
    """
    scans = []
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            name, who = file.stem, person(file.stem, config)
            if file.suffix.lower() not in SUFFIXES or any(fnmatch(n, p) for p in config.exclude for n in (name, who)):
                continue
            problem = pose(read_kspace(file))
            reference = supported(problem, classical("sense", problem))
            scans.append(Scan(name, who, problem, reference, network_scale(reference)))
    if not scans:
        raise InputError(
            f"no raw k-space was found in {', '.join(map(str, paths))}; files {', '.join(SUFFIXES)} are needed"
        )
    return scans


class DrawnImages:
    """Patches of the images drawn last, with a further random smooth phase; a `suite.training.Source`.

    Attributes:
        round: which drawing the images are of, from 0.
        images: of each scan, `(S, 2, ny, nx)` in network units.
    """

    channels = 2
    condition_channels = 0

    def __init__(self, scans: Sequence[Scan], config: KSpaceTrainingConfig) -> None:
        self.scans, self.config = list(scans), config
        self.take(0, [self._first(scan) for scan in self.scans])

    def _first(self, scan: Scan) -> Tensor:
        image = supported(scan.problem, classical(self.config.kspace.first, scan.problem))
        return ToComplex().adjoint(image / expand(scan.scale, image))

    def take(self, number: int, images: Sequence[Tensor]) -> None:
        """Go on with these images.

        Raises:
            InputError: a side of the split is empty.
        """
        self.round, self.images = number, list(images)
        sides: dict[bool, list[Subject]] = {False: [], True: []}
        for scan, image in zip(self.scans, self.images, strict=True):
            held_out = any(fnmatch(scan.person, pattern) for pattern in self.config.data.validation)
            sides[held_out].append(Subject(scan.person, image, float(len(image))))
        if not sides[False] or not sides[True]:
            raise InputError(
                f"the split by person leaves {len(sides[False])} file(s) for training and {len(sides[True])} for validation of "
                f"{', '.join(sorted({scan.person for scan in self.scans}))}; name at least one person on each side with "
                "data.validation"
            )
        self.patches = PatchSource(sides[False], sides[True], zoom=self.config.data.zoom)

    def people(self) -> tuple[list[str], list[str]]:
        """Names on each side of the split."""
        train, held_out = self.patches.train, self.patches.held_out
        return sorted({s.name for s in train}), sorted({s.name for s in held_out})

    def draw(self, number: int, prior: Prior, device: torch.device) -> None:
        """The images of round `number`, from the posterior of every scan under the prior so far."""
        settings = self.config.kspace
        chosen = ReconstructConfig.model_validate({"method": settings.method, "steps": settings.steps, "seed": number})

        def drawn(scan: Scan) -> Tensor:
            parts = []
            for first in range(0, scan.problem.slices, settings.batch):
                rows = slice(first, min(first + settings.batch, scan.problem.slices))
                part, reference, scale = scan.problem.part(rows, device), scan.reference[rows], scan.scale[rows]
                identities = [f"{scan.name} {k}" for k in range(rows.start, rows.stop)]
                reference, scale = reference.to(device), scale.to(device)
                found = learned(
                    settings.method, part, reference, scale, prior, chosen, identities, lambda _: nullcontext()
                )
                parts.append(ToComplex().adjoint(found.image / part.unit() / expand(scale, found.image)).cpu())
            return torch.cat(parts)

        self.take(number, [drawn(scan) for scan in self.scans])

    def batch(self, size: int, patch: int, rng: torch.Generator) -> tuple[Tensor, None]:
        x, _ = self.patches.batch(size, patch, rng)
        scale = self.config.data.jitter ** (2 * torch.rand((size, 1, 1, 1), generator=rng) - 1)
        return turned(scale * x, smooth_phase(size, (patch, patch), rng)), None

    def validation(self, patch: int) -> tuple[Tensor, None]:
        return self.patches.validation(patch)


def turned(x: Tensor, angle: Tensor) -> Tensor:
    """`(B, 2, ny, nx)` real and imaginary parts, their phase turned by `(B, 1, ny, nx)` radians."""
    real, imaginary = x[:, :1], x[:, 1:]
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos * real - sin * imaginary, sin * real + cos * imaginary], 1)


class RoundTrainer(Trainer):
    """Trains on `DrawnImages`, and has them drawn anew when a round begins. They lie beside the checkpoint."""

    config: KSpaceTrainingConfig
    source: DrawnImages

    @property
    def drawn(self) -> Path:
        return self.output.with_suffix(".drawn")

    def train_step(self) -> float:
        number = self.step * self.config.kspace.rounds // self.config.steps
        if number > self.source.round:
            prior = Prior(self.average, mri_card(self.config, self, *self.source.people()))
            with torch.no_grad():
                self.source.draw(number, prior, self.device)
            partial = self.drawn.with_name(f".{self.drawn.name}.partial")
            tensors = {str(k): image.contiguous() for k, image in enumerate(self.source.images)}
            save_file(tensors, partial, metadata={"round": json.dumps(number)})
            partial.replace(self.drawn)
        return super().train_step()

    def resume(self) -> None:
        """As `Trainer.resume`, with the images of the round.

        Raises:
            InputError: they are missing or damaged.
        """
        super().resume()
        if (self.step - 1) * self.config.kspace.rounds // self.config.steps == 0:
            return
        try:
            with safe_open(self.drawn, "pt") as f:
                self.source.take(
                    json.loads(f.metadata()["round"]), [f.get_tensor(str(k)) for k in range(len(self.source.scans))]
                )
        except (SafetensorError, OSError, KeyError, ValueError, TypeError):
            raise InputError(
                f"the images {self.drawn} of the checkpoint are missing or damaged; start without --resume"
            ) from None


def kspace_source(paths: Sequence[Path], config: KSpaceTrainingConfig) -> tuple[DrawnImages, Callable[[Trainer], Any]]:
    """The source, and what makes the card of a finished training."""
    source = DrawnImages(read_scans(paths, config.data), config)

    def card(trainer: Trainer) -> Any:
        made = mri_card(config, trainer, *source.people())
        said = "Trained on undersampled k-space alone; its validation figures are of reconstructions, not of fully sampled images."
        return made.model_copy(update={"limits": [*made.limits, said]})

    return source, card
