"""Training the ultrasound networks on cines: files -> subjects -> pictures with and without haze -> prior with card."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from domains.ultrasound.arrays import npz_cines
from domains.ultrasound.clutter import uniform
from domains.ultrasound.context import CHANNELS
from domains.ultrasound.grid import BLOCK
from domains.ultrasound.haze import hazed, smooth_field
from domains.ultrasound.physics import compand, decompress
from domains.ultrasound.tissue import simulated_tissue
from suite.config import Config
from suite.errors import InputError
from suite.noise import generator
from suite.prior import Card
from suite.training import Trainer, TrainingConfig

Kind = Literal["restore", "tissue", "haze"]

UNITS: dict[Kind, str] = {
    "restore": "haze, grey level / 255",
    "tissue": "companded envelope of tissue",
    "haze": "companded envelope of haze",
}


class DataConfig(Config):
    """Which cines, on which side of the split.

    Attributes:
        tissue: names of the arrays taken as free of haze, in order of preference.
        hazy: name of the array that shows the same with haze, where there is one.
        validation: name patterns (shell wildcards) of the files never trained on.
        exclude: name patterns of files left out altogether.
        weights: name pattern of a file -> relative share (default 1).
        real: share of the pictures with the haze of their own file, where it has one.
        plain: share of the pictures without haze.
        simulated: share of the pictures whose tissue is simulated (`domains.ultrasound.tissue`).
        side: frames of more pixels a side are averaged in blocks until they fit.
        window: longest window of frames for the context.
        dynamic_range_db: of the log compression.
    """

    tissue: list[str] = Field(default_factory=lambda: ["clean"], min_length=1)
    hazy: str = "cluttered"
    validation: list[str] = Field(default_factory=list)
    exclude: list[str] = Field(default_factory=list)
    weights: dict[str, float] = Field(default_factory=dict)
    real: float = Field(default=0.2, ge=0, le=1)
    plain: float = Field(default=0.2, ge=0, le=1)
    simulated: float = Field(default=0.0, ge=0, le=1)
    side: int = Field(default=64, ge=16)
    window: int = Field(default=25, ge=1)
    dynamic_range_db: float = Field(default=60.0, gt=0)


class UltrasoundTrainingConfig(TrainingConfig):
    """Settings of `ultrasound train`: the network and its training, what it learns, and under `data` the split."""

    kind: Kind = "restore"
    data: DataConfig = DataConfig()


@dataclass(frozen=True)
class Subject:
    """A cine: grey levels over 255, `(T, rows, columns)`, without haze, and with it where there is a pair."""

    name: str
    tissue: Tensor
    hazy: Tensor | None
    weight: float


def subjects(paths: Sequence[Path], config: DataConfig) -> tuple[list[Subject], list[Subject]]:
    """Training and validation cines of every `.npz` file below `paths`.

    Raises:
        InputError: a path does not exist, or a side of the split is empty.
    """
    train: list[Subject] = []
    held_out: list[Subject] = []
    for file in _files(paths):
        if any(fnmatch(file.stem, pattern) for pattern in config.exclude):
            continue
        arrays = npz_cines(file)
        key = next((name for name in config.tissue if name in arrays), None)
        if key is None:
            continue
        pair = arrays.get(config.hazy) if key == config.tissue[0] else None
        weight = next((w for pattern, w in config.weights.items() if fnmatch(file.stem, pattern)), 1.0)
        side = held_out if any(fnmatch(file.stem, pattern) for pattern in config.validation) else train
        tissue = averaged(torch.from_numpy(arrays[key]).float() / 255, config.side)
        hazy = None if pair is None else averaged(torch.from_numpy(pair).float() / 255, config.side)
        side.append(Subject(file.stem, tissue, hazy, weight))
    if not train or not held_out:
        raise InputError(
            f"the split leaves {len(train)} cine(s) for training and {len(held_out)} for validation; give .npz files with "
            f"an array named {' or '.join(config.tissue)}, and name some of them with data.validation"
        )
    return train, held_out


def averaged(frames: Tensor, side: int) -> Tensor:
    """Frames `(T, rows, columns)` averaged in square blocks until neither side has more than `side` pixels."""
    block = -(-max(frames.shape[1:]) // side)
    return frames if block == 1 else F.avg_pool2d(frames[:, None], block)[:, 0]


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        yield from sorted(path.rglob("*.npz")) if path.is_dir() else [path]


class HazePictures:
    """Pictures, and what one of the three networks has to learn of them.

    `restore`: the haze, given the hazy frame and its context. `tissue`: the companded envelope of the picture without
    haze. `haze`: the companded difference of the envelopes with and without it. Blocks of 2 x 2 pixels are channels.
    """

    channels = BLOCK**2

    def __init__(self, kind: Kind, train: Sequence[Subject], held_out: Sequence[Subject], config: DataConfig) -> None:
        self.kind, self.train, self.held_out, self.config = kind, list(train), list(held_out), config
        self.condition_channels = BLOCK**2 * CHANNELS if kind == "restore" else 0

    def batch(self, size: int, patch: int, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        weights = torch.tensor([s.weight for s in self.train])
        chosen = torch.multinomial(weights, size, replacement=True, generator=rng).tolist()
        return self._collect([self.example(self.train[i], patch, rng, vary=True) for i in chosen])

    def validation(self, patch: int) -> tuple[Tensor, Tensor | None]:
        rng = generator(0, "validation pictures")
        chosen = [self.held_out[i % len(self.held_out)] for i in range(48)]
        return self._collect([self.example(s, patch, rng, vary=False) for s in chosen])

    @staticmethod
    def _collect(examples: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
        signals, conditions = zip(*examples, strict=True)
        given = [c for c in conditions if c is not None]
        return F.pixel_unshuffle(torch.stack(signals), BLOCK), F.pixel_unshuffle(
            torch.stack(given), BLOCK
        ) if given else None

    def example(
        self, subject: Subject, patch: int, rng: torch.Generator, *, vary: bool
    ) -> tuple[Tensor, Tensor | None]:
        """One picture `(1, patch, patch)` and its condition; `vary` turns, scales and regrades it."""
        tissue, hazy = self.window(subject, patch, rng, vary=vary)
        now = int(torch.randint(len(tissue), (), generator=rng))
        if self.kind == "restore":
            seen = torch.stack([hazy[now], hazy.mean(0), hazy.amin(0)])  # `context`, of this window
            return (hazy[now] - tissue[now])[None], seen
        db = self.config.dynamic_range_db
        clean = decompress(tissue[now : now + 1], db)
        if self.kind == "tissue":
            return compand(clean), None
        return compand((decompress(hazy[now : now + 1], db) - clean).clamp_min(0)), None

    def window(self, subject: Subject, patch: int, rng: torch.Generator, *, vary: bool) -> tuple[Tensor, Tensor]:
        """Some successive frames without and with haze, `(w, patch, patch)` each."""
        config = self.config
        longest = min(config.window, len(subject.tissue))
        length = 1 if uniform(rng, 0, 1) < 0.1 else 1 + int(torch.randint(longest, (), generator=rng))
        draw = uniform(rng, 0, 1)
        real = subject.hazy is not None and draw < config.real
        if vary and not real and uniform(rng, 0, 1) < config.simulated:
            tissue = simulated_tissue(length, patch, rng)
        else:
            frames = successive(len(subject.tissue), length, rng, vary=vary)
            parts = [subject.tissue[frames]] + ([subject.hazy[frames]] if real else [])  # type: ignore[index]
            both = placed(torch.cat(parts), patch, rng, vary=vary)
            if real:
                return both[:length], both[length:]
            tissue = regraded(both, rng) if vary else both
        if draw > 1 - config.plain and self.kind == "restore":
            return tissue, tissue
        sector = filled(tissue.amax(0) > 0.05)
        return tissue, hazed(tissue, sector, rng) if bool(sector.any()) else tissue


def successive(count: int, length: int, rng: torch.Generator, *, vary: bool) -> Tensor:
    """Numbers of `length` frames in order; at times slowed down, so that tissue may stand still too, or every second one."""
    draw, speed = uniform(rng, 0, 1), 1.0
    if vary and draw < 0.4:
        speed = uniform(rng, 0, 1)
    elif draw > 0.6 and 2 * length <= count:
        speed = 2.0
    steps = (speed * torch.arange(length)).long()
    return int(torch.randint(count - int(steps[-1]), (), generator=rng)) + steps


def placed(frames: Tensor, patch: int, rng: torch.Generator, *, vary: bool) -> Tensor:
    """Frames `(w, rows, columns)` on `patch` x `patch` pixels, all mirrored, turned, scaled and shifted alike."""
    turn, zoom, mirror = uniform(rng, -0.2, 0.2), uniform(rng, 0.8, 1.3), 1.0 if uniform(rng, 0, 1) < 0.5 else -1.0
    shift = uniform(rng, -0.15, 0.15), uniform(rng, -0.15, 0.15)
    if not vary or uniform(rng, 0, 1) < 0.25:
        turn, zoom, shift, mirror = 0.0, 1.0, (0.0, 0.0), mirror if vary else 1.0
    if turn == 0 and frames.shape[1:] == (patch, patch):
        return frames if mirror > 0 else frames.flip(-1)
    a, b = zoom * math.cos(turn), zoom * math.sin(turn)
    theta = torch.tensor([[[a * mirror, -b, shift[0]], [b * mirror, a, shift[1]]]])
    grid = F.affine_grid(theta, [1, len(frames), patch, patch], align_corners=False)
    return F.grid_sample(frames[None], grid, align_corners=False)[0]


def filled(mask: Tensor) -> Tensor:
    """A mask `(rows, columns)` without gaps along its rows."""
    left = mask.int().cummax(1).values
    right = mask.int().flip(1).cummax(1).values.flip(1)
    return (left & right) > 0


def regraded(frames: Tensor, rng: torch.Generator) -> Tensor:
    """Another gain, contrast and gamma, as another vendor's display would have, and at times an uneven gain."""
    gamma, gain = math.exp(uniform(rng, -0.5, 0.5)), uniform(rng, 0.6, 1.2)
    uneven = uniform(rng, 0, 0.35) if uniform(rng, 0, 1) < 0.5 else 0.0
    field = 1 + uneven * smooth_field(frames.shape[1:], int(uniform(rng, 3, 8)), rng)
    return (gain * field * frames.clamp(0, 1) ** gamma).clamp(0, 1)


def picture_source(paths: Sequence[Path], kind: Kind, config: DataConfig) -> tuple[HazePictures, list[str], list[str]]:
    """The pictures, and the names on each side of the split."""
    train, held_out = subjects(paths, config)
    return HazePictures(kind, train, held_out, config), [s.name for s in train], [s.name for s in held_out]


# --- the card ---------------------------------------------------------------------------------------------------------

_SAYS: dict[Kind, str] = {
    "restore": "Haze of a log-compressed B-mode frame, given the frame and its mean and minimum over a window of frames.",
    "tissue": "Companded envelope (mu 255) of haze-free B-mode frames, dynamic range 60 dB.",
    "haze": "Companded envelope (mu 255) of haze in B-mode frames, dynamic range 60 dB.",
}


def ultrasound_card(
    config: UltrasoundTrainingConfig, trainer: Trainer, train: Sequence[str], held_out: Sequence[str]
) -> Card:
    """The card of a finished training run."""
    last = trainer.history[-1]
    return Card(
        name=trainer.output.stem,
        domain="ultrasound",
        description=_SAYS[config.kind],
        unit=UNITS[config.kind],
        scale=1.0,
        offset=0.0,
        value_range=(0.0, 1.0),
        channels=trainer.source.channels,
        condition_channels=trainer.source.condition_channels,
        data=list(train),
        validation_data=list(held_out),
        licence="weights: Apache-2.0; trained on openly licensed cines (MIT)",
        **trainer.card_fields(
            f"diffsuite ultrasound train --data DIR -o PRIOR.safetensors --config configs/ultrasound/{config.kind}.yaml",
            excluded=list(config.data.exclude),
        ),
        validation={
            "what": "RMS denoising error on pictures of the held-out cines, by noise level",
            "rmse": {level: round(error, 5) for level, error in last["validation_rmse"].items()},
        },
        limits=[
            "Not a medical device; not for primary diagnosis.",
            "Transthoracic echocardiograms of few vendors and subjects with simulated clutter; other organs, probes and "
            "kinds of haze are outside its experience.",
        ],
    )
