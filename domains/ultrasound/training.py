"""Training the ultrasound networks on cines: files -> subjects -> pictures with and without haze -> prior with card."""

from __future__ import annotations

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
from domains.ultrasound.augmentation import blended, placed, regraded, regrained
from domains.ultrasound.clutter import clutter, uniform
from domains.ultrasound.context import CHANNELS
from domains.ultrasound.grid import BLOCK
from domains.ultrasound.haze import hazed
from domains.ultrasound.physics import compand, decompress
from domains.ultrasound.tissue import simulated_tissue
from suite.config import Config
from suite.errors import InputError
from suite.noise import generator
from suite.prior import Card, load_prior, read_card
from suite.training import Trainer, TrainingConfig

Kind = Literal["restore", "tissue", "haze"]
Example = tuple[Tensor, Tensor | None]

SHARED = 2
"""Pictures of a batch that come from one drawn cine."""

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
        blended: share of the pictures whose tissue is that of two.
        haze: that is drawn: of any shape, or the published shapes of clutter alone.
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
    blended: float = Field(default=0.0, ge=0, le=1)
    haze: Literal["any", "clutter"] = "any"
    side: int = Field(default=64, ge=16)
    window: int = Field(default=25, ge=1)
    dynamic_range_db: float = Field(default=60.0, gt=0)


class UltrasoundTrainingConfig(TrainingConfig):
    """Settings of `ultrasound train`: the network and its training, what it learns, and under `data` the split.

    `start` is a prior of the same kind and shape to go on from, in place of random weights.
    """

    kind: Kind = "restore"
    start: Path | None = None
    data: DataConfig = DataConfig()
    limits: list[str] = Field(default=["Not a medical device; not for primary diagnosis."])


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
        """Pictures of which `SHARED` each are of one cine: drawing a cine costs more than a frame of it."""
        weights = torch.tensor([s.weight for s in self.train])
        chosen = torch.multinomial(weights, -(-size // SHARED), replacement=True, generator=rng).tolist()
        drawn = [e for i in chosen for e in self.examples(self.train[i], patch, rng, SHARED, vary=True)]
        return self._collect(drawn[:size])

    def validation(self, patch: int) -> tuple[Tensor, Tensor | None]:
        rng = generator(0, "validation pictures")
        chosen = [self.held_out[i % len(self.held_out)] for i in range(48)]
        return self._collect([e for s in chosen for e in self.examples(s, patch, rng, 1, vary=False)])

    @staticmethod
    def _collect(examples: Sequence[Example]) -> tuple[Tensor, Tensor | None]:
        signals, conditions = zip(*examples, strict=True)
        given = [c for c in conditions if c is not None]
        return F.pixel_unshuffle(torch.stack(signals), BLOCK), F.pixel_unshuffle(
            torch.stack(given), BLOCK
        ) if given else None

    def examples(
        self, subject: Subject, patch: int, rng: torch.Generator, count: int, *, vary: bool
    ) -> Iterator[Example]:
        """Pictures `(1, patch, patch)` of one cine, and their conditions; `vary` turns, scales and regrades it."""
        tissue, hazy = self.window(subject, patch, rng, vary=vary)
        db = self.config.dynamic_range_db
        for now in torch.randint(len(tissue), (count,), generator=rng).tolist():
            if self.kind == "restore":
                seen = torch.stack([hazy[now], hazy.mean(0), hazy.amin(0)])  # `context`, of this window
                yield (hazy[now] - tissue[now])[None], seen
                continue
            clean = decompress(tissue[now : now + 1], db)
            if self.kind == "tissue":
                yield compand(clean), None
            else:
                yield compand((decompress(hazy[now : now + 1], db) - clean).clamp_min(0)), None

    def window(self, subject: Subject, patch: int, rng: torch.Generator, *, vary: bool) -> tuple[Tensor, Tensor]:
        """Some successive frames without and with haze, `(w, patch, patch)` each."""
        config = self.config
        longest = min(config.window, len(subject.tissue))
        length = 1 if uniform(rng, 0, 1) < 0.1 else 1 + int(torch.randint(longest, (), generator=rng))
        draw = uniform(rng, 0, 1)
        real = subject.hazy is not None and draw < config.real
        if real:
            frames = successive(len(subject.tissue), length, rng, vary=vary)
            both = torch.cat([subject.tissue[frames], subject.hazy[frames]])  # type: ignore[index]
            both = placed(both, patch, rng, vary=vary)
            both = regraded(both, rng) if vary and uniform(rng, 0, 1) < 0.3 else both
            return both[:length], both[length:]
        tissue = self.tissue(subject, length, patch, rng, vary=vary)
        if vary and uniform(rng, 0, 1) < config.blended:
            other = self.train[int(torch.randint(len(self.train), (), generator=rng))]
            tissue = blended(tissue, self.tissue(other, length, patch, rng, vary=True), rng)
        if draw > 1 - config.plain and self.kind == "restore":
            return tissue, tissue
        sector = filled(tissue.amax(0) > 0.05)
        if config.haze == "clutter":
            return tissue, (tissue + clutter(sector, length, rng, uniform(rng, 0.5, 1.1)) / 255).clamp(0, 1)
        return tissue, hazed(tissue, sector, rng) if bool(sector.any()) else tissue

    def tissue(self, subject: Subject, length: int, patch: int, rng: torch.Generator, *, vary: bool) -> Tensor:
        """So many successive frames without haze, of a cine or simulated."""
        if vary and uniform(rng, 0, 1) < self.config.simulated:
            return simulated_tissue(length, patch, rng)
        frames = successive(len(subject.tissue), length, rng, vary=vary)
        shown = placed(subject.tissue[frames], patch, rng, vary=vary)
        return regraded(regrained(shown, rng), rng) if vary else shown


def successive(count: int, length: int, rng: torch.Generator, *, vary: bool) -> Tensor:
    """Numbers of `length` frames in order; at times slowed down, so that tissue may stand still too, or every second one."""
    draw, speed = uniform(rng, 0, 1), 1.0
    if vary and draw < 0.4:
        speed = uniform(rng, 0, 1)
    elif draw > 0.6 and 2 * length <= count:
        speed = 2.0
    steps = (speed * torch.arange(length)).long()
    return int(torch.randint(count - int(steps[-1]), (), generator=rng)) + steps


def filled(mask: Tensor) -> Tensor:
    """A mask `(rows, columns)` without gaps along its rows."""
    left = mask.int().cummax(1).values
    right = mask.int().flip(1).cummax(1).values.flip(1)
    return (left & right) > 0


def picture_source(paths: Sequence[Path], kind: Kind, config: DataConfig) -> tuple[HazePictures, list[str], list[str]]:
    """The pictures, and the names on each side of the split."""
    train, held_out = subjects(paths, config)
    return HazePictures(kind, train, held_out, config), [s.name for s in train], [s.name for s in held_out]


def trained_before(start: Path | None, held_out: Sequence[str]) -> list[str]:
    """The cines on which the prior to go on from was trained.

    Raises:
        InputError: some of them are held out here.
    """
    before = [] if start is None else read_card(start).data
    both = sorted(set(before) & set(held_out))
    if both:
        raise InputError(f"{start} was trained on {', '.join(both)}; hold out other cines (data.validation)")
    return before


class PictureTrainer(Trainer):
    """A trainer that may go on from another prior."""

    def __init__(
        self, config: UltrasoundTrainingConfig, source: HazePictures, output: Path, device: torch.device
    ) -> None:
        super().__init__(config, source, output, device)
        if config.start is not None:
            first = load_prior(
                config.start,
                device,
                unit=UNITS[config.kind],
                network=self.net.network.settings,
                process=config.process,
                sigma_data=config.sigma_data,
            )
            for net in (self.net, self.average):
                net.load_state_dict(first.net.state_dict())


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
    name, started = (
        (config.kind, "") if config.start is None else (f"{config.kind}-tune", " --set start=FIRST.safetensors")
    )
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
        **trainer.card_fields(
            f"diffsuite ultrasound train --data DIR -o PRIOR.safetensors --config configs/ultrasound/{name}.yaml{started}",
            excluded=list(config.data.exclude),
            **({} if config.start is None else {"start": config.start.name}),
        ),
        validation={
            "what": "RMS denoising error on pictures of the held-out cines, by noise level",
            "rmse": {level: round(error, 5) for level, error in last["validation_rmse"].items()},
        },
    )
