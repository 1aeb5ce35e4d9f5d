"""Training on mixtures made on the fly: clean speech + noise (+ rooms) -> pairs of compressed spectrograms -> prior with card."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from domains.speech.data import audio_files, read_mono
from domains.speech.mixing import reverberant, stretched
from domains.speech.perception import Perception, PerceptionConfig
from domains.speech.spectrum import Spectrum
from domains.speech.survey import level
from suite.config import Config
from suite.errors import InputError
from suite.prior import Card
from suite.training import Trainer, TrainingConfig

Array = NDArray[np.float32]


class DataConfig(Config):
    """Which recordings, on which side of the split, and how they are mixed.

    Attributes:
        validation: name patterns of speakers and noise recordings that are never trained on.
        exclude: name patterns of speakers and noise recordings left out altogether.
        snr_db: range of the signal-to-noise ratio.
        speed: speech is played faster or slower by up to this factor.
        tilt_db: standard deviation of the random equaliser, at five frequencies.
        swell_db: standard deviation of a noise's slow change of level, at about one point a second.
        versions: speeds and rooms that each recording is heard in.
        rooms: share of examples with a room response (the target keeps the room).
        babble: share of noises that are several other speakers at once.
        coloured: share of noises that are synthetic.
        unconditional: share of examples that see no noisy signal, which makes the network a prior of clean speech too.
        level_db: the level differs from that of the whole recording by up to this much.
    """

    validation: list[str] = Field(default_factory=list)
    exclude: list[str] = Field(default_factory=list)
    snr_db: tuple[float, float] = (-6.0, 18.0)
    speed: float = Field(default=1.1, ge=1)
    tilt_db: float = Field(default=3.0, ge=0)
    swell_db: float = Field(default=0.0, ge=0)
    versions: int = Field(default=3, ge=1)
    rooms: float = Field(default=0.25, ge=0, le=1)
    babble: float = Field(default=0.1, ge=0, le=1)
    coloured: float = Field(default=0.1, ge=0, le=1)
    unconditional: float = Field(default=0.0, ge=0, le=1)
    level_db: float = Field(default=4.0, ge=0)


class SpectrumConfig(Config):
    """The representation; see `domains.speech.spectrum.Spectrum`."""

    rate: int = 16000
    window: int = 510
    hop: int = 128
    exponent: float = 0.5
    factor: float = 0.5
    bins: int = 4
    frames: int = 2

    def build(self) -> Spectrum:
        return Spectrum(**self.model_dump())


class SpeechTrainingConfig(TrainingConfig):
    """Settings of `speech train`: the network and its training, the representation, the split under `data`, and the loss."""

    spectrum: SpectrumConfig = SpectrumConfig()
    data: DataConfig = DataConfig()
    perception: PerceptionConfig = PerceptionConfig()


# --- recordings -------------------------------------------------------------------------------------------------------


def speaker(path: Path, top: Path) -> str:
    """Who speaks: the folder below `top` where there is one, else the name up to the first `-` or `_`."""
    parts = path.relative_to(top).parts
    return parts[0] if len(parts) > 1 else re.split(r"[-_]", path.stem)[0]


def noise_source(path: Path, top: Path) -> str:
    """The recording a noise file was cut from: its name without a last `-A`, `-B`, ..."""
    return re.sub(r"-[A-Z]$", "", path.stem)


def collect(paths: Sequence[Path], kind: str, rate: int) -> dict[str, list[Array]]:
    """Samples by speaker (`kind` "clean") or recording ("noise", "rir") from the folders `DIR/kind`.

    Raises:
        InputError: a path does not exist.
    """
    found: dict[str, list[Array]] = {}
    for path in paths:
        if not path.is_dir():
            raise InputError(f"{path}: no such folder; one with the folders clean, noise and perhaps rir is needed")
        top = path / kind
        for file in audio_files(top) if top.is_dir() else []:
            name = speaker(file, top) if kind == "clean" else noise_source(file, top)
            found.setdefault(name, []).append(read_mono(file, rate))
    return found


Recordings = dict[str, list[Array]]


def split(recordings: Recordings, config: DataConfig, what: str) -> tuple[Recordings, Recordings]:
    """Training and validation recordings, by speaker or source.

    Raises:
        InputError: a side is empty.
    """

    def matches(name: str, patterns: Sequence[str]) -> bool:
        return any(fnmatch(name, pattern) for pattern in patterns)

    used = {name: clips for name, clips in recordings.items() if not matches(name, config.exclude)}
    train = {name: clips for name, clips in used.items() if not matches(name, config.validation)}
    held_out = {name: clips for name, clips in used.items() if name not in train}
    if not train or not held_out:
        raise InputError(
            f"the split leaves {len(train)} {what} for training and {len(held_out)} for validation of "
            f"{', '.join(list(used)[:8]) or 'none'}; name some of each kind in data.validation"
        )
    return train, held_out


# --- mixtures ---------------------------------------------------------------------------------------------------------

Spectra = dict[str, list[Tensor]]


class Mixtures:
    """Pairs of clean and noisy states; a `Source` for the trainer.

    Recordings are kept as spectra, where cutting, equalising, scaling and adding are cheap; changes of speed and rooms are drawn
    once, when they are read in: fresh ones at every step would take most of the time.
    """

    def __init__(
        self,
        speech: Recordings,
        noise: Recordings,
        rooms: Recordings,
        config: DataConfig,
        spectrum: Spectrum,
        perception: PerceptionConfig,
    ) -> None:
        self.config, self.spectrum = config, spectrum
        self.perception = Perception(spectrum, perception) if perception.wanted else None
        self.channels = self.condition_channels = spectrum.channels
        train_speech, held_speech = split(speech, config, "speakers")
        train_noise, held_noise = split(noise, config, "noises")
        halls = [clip for clips in rooms.values() for clip in clips]
        draw = np.random.default_rng(0)
        self.speech = {k: [v for x in clips for v in self._voices(x, halls, draw)] for k, clips in train_speech.items()}
        self.noise = {k: [v for x in clips for v in self._noises(x, draw)] for k, clips in train_noise.items()}
        self.held_speech, self.held_noise = self._plain(held_speech), self._plain(held_noise)

    def _plain(self, recordings: Recordings) -> Spectra:
        return {name: [self._stft(clip) for clip in clips] for name, clips in recordings.items()}

    def _stft(self, x: Array) -> Tensor:
        return self.spectrum.stft(torch.from_numpy(x))

    def _voices(self, x: Array, halls: list[Array], draw: np.random.Generator) -> list[Tensor]:
        found = []
        for _ in range(self.config.versions):
            voice = stretched(x, self.config.speed ** draw.uniform(-1, 1))
            if halls and draw.random() < self.config.rooms:
                voice = reverberant(voice, halls[int(draw.integers(len(halls)))])
            found.append(self._stft(voice))
        return found

    def _noises(self, x: Array, draw: np.random.Generator) -> list[Tensor]:
        return [self._stft(stretched(x, 1.3 ** draw.uniform(-1, 1))) for _ in range(self.config.versions)]

    def batch(self, size: int, patch: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        draw = np.random.default_rng(int(torch.randint(2**62, (), generator=rng)))
        pairs = [self._mixture(patch * self.spectrum.frames, draw) for _ in range(size)]
        clean, noisy = self._states(pairs)
        noisy[torch.from_numpy(draw.random(size) < self.config.unconditional)] = 0.0
        return clean, noisy

    def penalty(self, estimate: Tensor, x0: Tensor, y: Tensor | None) -> Tensor:
        """What hearing makes of the error `(B,)`; nothing where there is no noisy signal, for the prior is to stay a mean."""
        if self.perception is None or y is None:
            return estimate.new_zeros(len(x0))
        with torch.autocast(estimate.device.type, enabled=False):
            return self.perception(estimate.float(), x0) * (y != 0).flatten(1).any(1)

    def validation(self, patch: int) -> tuple[Tensor, Tensor]:
        """Every speaker held out with the noises held out, at 0, 5 and 10 dB, no augmentation."""
        draw, pairs = np.random.default_rng(0), []
        speech = [clip for clips in self.held_speech.values() for clip in clips]
        noises = [clip for clips in self.held_noise.values() for clip in clips]
        for number in range(min(24, 3 * max(len(speech), len(noises)))):
            clean = cut(speech[number % len(speech)], patch * self.spectrum.frames, draw)
            noise = cut(noises[number % len(noises)], patch * self.spectrum.frames, draw)
            pairs.append(self._mixed(clean, noise, (0.0, 5.0, 10.0)[number % 3], 0.0))
        return self._states(pairs)

    def _states(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        clean, noisy = (
            self.spectrum.fold(self.spectrum.compress(torch.stack(side))) for side in zip(*pairs, strict=True)
        )
        return clean, noisy

    def _mixture(self, frames: int, draw: np.random.Generator) -> tuple[Tensor, Tensor]:
        config = self.config
        clean = self._equalised(cut(pick(self.speech, draw), frames, draw), draw)
        noise = self._noise(frames, draw)
        return self._mixed(clean, noise, draw.uniform(*config.snr_db), draw.uniform(-config.level_db, config.level_db))

    def _noise(self, frames: int, draw: np.random.Generator) -> Tensor:
        chance = draw.random()
        if chance < self.config.coloured:
            return coloured(self.spectrum.window // 2 + 1, frames, draw)
        if chance < self.config.coloured + self.config.babble:
            return sum(
                (cut(pick(self.speech, draw), frames, draw) for _ in range(draw.integers(4, 9))), torch.zeros(())
            )
        noise = self._heard(draw, frames)
        if draw.random() < 0.4:
            other = self._heard(draw, frames)
            noise = noise + other * (energy(noise) / energy(other).clamp_min(1e-12)).sqrt() * 10 ** (
                draw.uniform(-6, 6) / 20
            )
        return noise

    def _heard(self, draw: np.random.Generator, frames: int) -> Tensor:
        """A recorded noise: equalised, forwards or backwards, its level slowly changing."""
        noise = self._equalised(cut(pick(self.noise, draw), frames, draw), draw)
        noise = noise.flip(-1).conj().resolve_conj() if draw.random() < 0.5 else noise
        points = 2 + round(frames * self.spectrum.hop / self.spectrum.rate)
        swell = np.interp(
            np.linspace(0, points - 1, frames), np.arange(points), draw.standard_normal(points) * self.config.swell_db
        )
        return noise * torch.from_numpy((10 ** (swell / 20)).astype(np.float32))

    def _equalised(self, x: Tensor, draw: np.random.Generator) -> Tensor:
        """Filtered by a smooth random gain."""
        corners = draw.standard_normal(5) * self.config.tilt_db
        gains = 10 ** (np.interp(np.linspace(0, 4, len(x)), np.arange(5), corners) / 20)
        return x * torch.from_numpy(gains.astype(np.float32))[:, None]

    def _mixed(self, clean: Tensor, noise: Tensor, snr_db: float, change_db: float) -> tuple[Tensor, Tensor]:
        """`(clean, noisy)` spectra, scaled so that the noisy one has level 1, or `change_db` more."""
        voice, other = energy(clean), energy(noise)
        if min(float(voice), float(other)) > 0:
            noise = noise * (voice / other * 10 ** (-snr_db / 10)).sqrt()
        noisy = clean + noise
        window = float((torch.hann_window(self.spectrum.window) ** 2).sum())
        frames = 2 * noisy.abs().square().sum(0) / (window * self.spectrum.window)
        loudness = level(frames.double().numpy())
        gain = 10 ** (change_db / 20) / loudness if loudness > 0 else 1.0
        return clean * gain, noisy * gain


def pick(recordings: Spectra, draw: np.random.Generator) -> Tensor:
    """A random clip of a random speaker or source."""
    clips = recordings[list(recordings)[draw.integers(len(recordings))]]
    return clips[draw.integers(len(clips))]


def energy(spectrum: Tensor) -> Tensor:
    """Sum of squared magnitudes."""
    return torch.view_as_real(spectrum).square().sum()


def cut(clip: Tensor, frames: int, draw: np.random.Generator) -> Tensor:
    """`frames` frames from a random place that is not silent, the clip repeated where it is shorter."""
    while clip.shape[-1] < frames:
        clip = torch.cat([clip, clip], dim=-1)
    loud = 0.01 * float(energy(clip)) / clip.shape[-1]
    for _ in range(4):
        first = int(draw.integers(clip.shape[-1] - frames + 1))
        part = clip[:, first : first + frames]
        if float(energy(part)) > loud * frames:
            break
    return part


def coloured(bins: int, frames: int, draw: np.random.Generator) -> Tensor:
    """The spectrum of Gaussian noise whose power falls as f^0 to f^-2."""
    noise = draw.standard_normal((2, bins, frames), dtype=np.float32)
    gains = np.maximum(np.arange(bins), 2) ** -draw.uniform(0, 1)
    return torch.complex(*torch.from_numpy(noise * gains[:, None].astype(np.float32)))


def mixtures(paths: Sequence[Path], config: SpeechTrainingConfig) -> Mixtures:
    """The source of training examples from the folders `clean`, `noise` and `rir` in each of `paths`."""
    spectrum = config.spectrum.build()
    speech, noise, rooms = (collect(paths, kind, spectrum.rate) for kind in ("clean", "noise", "rir"))
    return Mixtures(speech, noise, rooms, config.data, spectrum, config.perception)


# --- the card ---------------------------------------------------------------------------------------------------------


def speech_card(config: SpeechTrainingConfig, trainer: Trainer, source: Mixtures) -> Card:
    """The card of a finished training run."""
    last = trainer.history[-1]
    masking = config.network.masking
    return Card(
        name=trainer.output.stem,
        domain="speech",
        description="Speech in noise: a bridge from the noisy to the clean compressed spectrogram, and a predictor at its end.",
        unit=source.spectrum.unit,
        scale=1.0,
        offset=0.0,
        value_range=(-20.0, 20.0),
        channels=source.channels,
        condition_channels=source.condition_channels,
        architecture="suite.masking.MaskUNet" if masking else "suite.network.UNet",
        data=[f"{len(source.speech)} speakers: {', '.join(source.speech)}", f"noises: {', '.join(source.noise)}"],
        validation_data=[f"speakers: {', '.join(source.held_speech)}", f"noises: {', '.join(source.held_noise)}"],
        **trainer.card_fields(
            "diffsuite speech train --data DIR -o PRIOR.safetensors --config configs/speech/train.yaml"
        ),
        validation={
            "what": "RMS error of the estimate on mixtures of held-out speakers and noises at 0, 5, 10 dB, by noise level "
            "(y: the predictor)",
            "rmse": {name: round(error, 5) for name, error in last["validation_rmse"].items()},
        },
    )
