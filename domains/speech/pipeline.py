"""The main job, from audio file to audio file in bounded memory: two readings, one to survey and one to enhance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor

from domains.speech.config import EnhanceConfig, Enhanced
from domains.speech.data import Audio, Writer, blocks
from domains.speech.guard import words
from domains.speech.methods import METHODS, Method
from domains.speech.resampling import resample
from domains.speech.spectrum import Spectrum
from domains.speech.stream import Analysis, ColumnNoise, Streamer, Synthesis, reach_of
from domains.speech.survey import (
    FRAME_SECONDS,
    Energies,
    Survey,
    changes,
    faults,
    frame_energies,
    level,
    remarks,
    survey,
)
from domains.speech.wiener import Wiener
from suite.errors import InputError
from suite.prior import Prior, load_prior
from suite.restoration import Plan, restore

Array = NDArray[np.float32]
Clock = Callable[[str], AbstractContextManager[Any]]

WEIGHTS = Path(__file__).parent / "weights" / "speech-bridge.safetensors"


def choose_method(config: EnhanceConfig) -> Method:
    """The method of a run: posterior where a degradation is known, else bridge.

    Raises:
        InputError: there is none of that name; it makes no draws and several are asked for; or it takes a known degradation and
            there is none, or takes none.
    """
    known = config.informed
    name = config.method or ("posterior" if known else "bridge")
    if name not in METHODS:
        raise InputError(f"there is no method '{name}' for speech; choose one of {', '.join(METHODS)}")
    if config.samples > 1 and not METHODS[name].samples:
        raise InputError(f"the method {name} is a point estimate and makes no draws; use storm with --samples")
    if name == "posterior" and len(known) != 1:
        given = f"{' and '.join('--' + word for word in known)} are given" if known else "none is given"
        raise InputError(
            f"the method posterior needs one of --rir, --bandwidth, --gaps, --clip, --blind-reverb, and {given}"
        )
    if name != "posterior" and (known or config.noise_db is not None):
        raise InputError(f"the method {name} takes no --{(known or ['noise-db'])[0]}; use posterior")
    return METHODS[name]


def load_speech_prior(path: Path | None, device: torch.device) -> Prior:
    """A prior for speech: the one at `path`, or the shipped one.

    Raises:
        InputError: it is no prior of this domain, or one that takes no noisy signal.
    """
    prior = load_prior(path or WEIGHTS, device, domain="speech")
    Spectrum.of_unit(prior.card.unit)
    if not prior.card.condition_channels:
        raise InputError(f"the prior {prior.card.name} takes no noisy signal; enhancement needs a network that does")
    return prior


# --- the network on a block -------------------------------------------------------------------------------------------


@dataclass
class Restorer:
    """Restores blocks of a recording; see `domains.speech.stream.Streamer`.

    Attributes:
        chosen: the number of the only draw to make; None: all of them.
        spread: variance of the draws and energy of their mean, by column (several draws only).
        distances: sum of squared distances between the draws' compressed spectra, `(samples, samples)`.
    """

    prior: Prior
    plan: Plan
    seed: int
    identity: str
    samples: int = 1
    precision: str = "auto"
    clock: Callable[[], AbstractContextManager[Any]] = nullcontext
    chosen: int | None = None
    spread: dict[int, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.spectrum = Spectrum.of_unit(self.prior.card.unit)
        self.distances = torch.zeros(self.samples, self.samples, dtype=torch.float64)

    @property
    def medoid(self) -> int:
        """The draw nearest to the others, of those made so far."""
        return int(self.distances.sum(0).argmin())

    def __call__(self, states: Tensor, first: int) -> Tensor:
        """`(channels, C, rows, columns)` to spectra `(channels, bins, frames)`: a draw, or the mean of several."""
        device = next(self.prior.net.parameters()).device
        states = states.to(device)
        draws = []
        for number in range(self.samples) if self.chosen is None else (self.chosen,):
            noise = ColumnNoise(self.seed, f"{self.identity} sample {number}", first)
            out = restore(self.prior, self.plan, states, noise, precision=self.precision, clock=self.clock)
            draws.append(self.spectrum.expand(self.spectrum.unfold(out)).cpu())
        mean = torch.stack(draws).mean(0)
        if len(draws) > 1:
            self._note(torch.stack(draws), mean, first)
        return mean

    def _note(self, draws: Tensor, mean: Tensor, first: int) -> None:
        flat = torch.view_as_real(self.spectrum.compress(draws)).flatten(1).double()
        self.distances += torch.cdist(flat, flat).square()
        per = self.spectrum.frames
        variance = (draws - mean).abs().square().sum(0) / (len(draws) - 1)
        for k in range(mean.shape[-1] // per):
            part = slice(k * per, (k + 1) * per)
            self.spread[first + k] = float(variance[..., part].sum()), float(mean[..., part].abs().square().sum())

    def streamer(self, channels: int, gain: float, config: EnhanceConfig) -> Streamer:
        """A streamer for a recording of so many channels."""
        second = self.spectrum.rate / self.spectrum.column
        reach = reach_of(self.prior.card.network) * self.plan.evaluations
        if config.overlap is not None:
            reach = min(reach, round(config.overlap * second))
        multiple = 2 ** (len(self.prior.card.network["channels"]) - 1)
        settings = {"block": round(config.block * second), "reach": reach, "multiple": multiple}
        return Streamer(self, self.spectrum, channels, gain=gain, **settings)


class Filter:
    """The classical reference as a stream."""

    def __init__(self, spectrum: Spectrum, channels: int) -> None:
        self.analysis, self.wiener = Analysis(spectrum, channels), Wiener()
        self.synthesis = Synthesis(spectrum, channels)

    def push(self, x: Tensor) -> Tensor:
        return self.synthesis.push(self.wiener(self.analysis.push(x)))

    def finish(self) -> Tensor:
        frames = self.analysis.finish()
        self.synthesis.total = self.analysis.count
        return torch.cat([self.synthesis.push(self.wiener(frames)), self.synthesis.finish()], dim=-1)


# --- the file ---------------------------------------------------------------------------------------------------------


class Resampler:
    """A change of rate, block by block, without delay: `ceil(n new / old)` samples in all."""

    def __init__(self, old: int, new: int, channels: int) -> None:
        self.same, self.channels = old == new, channels
        self.stream = None if self.same else soxr.ResampleStream(old, new, channels, dtype="float32", quality="VHQ")

    def __call__(self, x: Array, last: bool = False) -> Array:
        if self.stream is None:
            return x
        out: Array = self.stream.resample_chunk(np.ascontiguousarray(x), last=last).reshape(-1, self.channels)
        return out


class Track:
    """One way through a file: samples at the model's rate through a stream, back at the file's rate into a writer."""

    def __init__(self, stream: Streamer | Filter, audio: Audio, rate: int, writer: Writer) -> None:
        self.stream, self.writer = stream, writer
        self.energies = Energies(rate)
        self.back = Resampler(rate, audio.rate, audio.channels)
        self.left = audio.frames

    def push(self, x: Tensor) -> None:
        self._write(self.stream.push(x).T.numpy())

    def finish(self) -> None:
        self._write(self.stream.finish().T.numpy())
        self._put(self.back(np.zeros((0, self.back.channels), np.float32), last=True))
        self._put(np.zeros((self.left, self.back.channels), np.float32))
        self.energies.finish()

    def _write(self, x: Array) -> None:
        self.energies.push(x)
        self._put(self.back(x))

    def _put(self, x: Array) -> None:
        x = x[: self.left]
        self.left -= len(x)
        if len(x):
            self.writer.write(x)


def enhance_file(
    audio: Audio, output: Path, reference: Path | None, restorer: Restorer, config: EnhanceConfig, clock: Clock
) -> Enhanced:
    """Enhance a file into `output`, and by the Wiener filter into `reference`; same kind, rate, length and channels.

    Raises:
        InputError: unreadable, or without a single number.
    """
    spectrum = restorer.spectrum
    found = survey(audio)
    notes, doubts = remarks(audio, found), faults(audio, found)
    before = Energies(spectrum.rate)
    with clock("operator"), Writer(output, audio) as writer, _writer(reference, audio) as second:
        if found.level == 0:
            for block in blocks(audio):
                for each in filter(None, (writer, second)):
                    each.write(np.zeros_like(block))
            return Enhanced({}, notes, doubts)
        if config.centre == "medoid" and restorer.samples > 1:
            restorer.chosen = _medoid(audio, found, restorer, config)
        streams = [(restorer.streamer(audio.channels, 1 / found.level, config), writer)]
        tracks = [Track(stream, audio, spectrum.rate, target) for stream, target in streams]
        if second is not None:
            tracks.append(Track(Filter(spectrum, audio.channels), audio, spectrum.rate, second))
        for x in _model_rate(audio, found, spectrum.rate):
            before.push(x)
            for track in tracks:
                track.push(torch.from_numpy(x.T.copy()))
        for track in tracks:
            track.finish()
        before.finish()
    after = tracks[0].energies
    judged = words(audio.path.name, before, after, restorer.spread, spectrum.rate / spectrum.column)
    metrics = changes(before, after) | judged.metrics | {"clipped_percent": 100 * found.clipped}
    if restorer.chosen is not None:
        metrics["chosen_draw"] = float(restorer.chosen)
    if writer.limited:
        doubts.append(f"{audio.path.name}: {writer.limited} samples exceeded full scale and were limited.")
    return Enhanced(metrics, notes, doubts + judged.doubts)


def _medoid(audio: Audio, found: Survey, restorer: Restorer, config: EnhanceConfig) -> int:
    """The draw of the whole file that is nearest to the others; takes a reading of its own, for the draws are not kept."""
    stream = restorer.streamer(audio.channels, 1 / found.level, config)
    for x in _model_rate(audio, found, restorer.spectrum.rate):
        stream.push(torch.from_numpy(x.T.copy()))
    stream.finish()
    return restorer.medoid


def _writer(path: Path | None, like: Audio) -> AbstractContextManager[Writer | None]:
    return nullcontext() if path is None else Writer(path, like)


def _model_rate(audio: Audio, found: Survey, rate: int) -> Iterator[Array]:
    """The samples `(n, channels)` at `rate`, repaired and without offset."""
    resampler = Resampler(audio.rate, rate, audio.channels)
    for block in blocks(audio):
        yield resampler(np.where(np.isfinite(block), block - found.offset, 0.0).astype(np.float32))
    rest = resampler(np.zeros((0, audio.channels), np.float32), last=True)
    if len(rest) and not resampler.same:
        yield rest


def enhance_samples(x: Array, rate: int, restorer: Restorer) -> Array:
    """Enhance samples `(n, channels)` held in memory, the whole at once: what `speech enhance` does with files."""
    spectrum = restorer.spectrum
    low = resample(x, rate, spectrum.rate)
    loudness = level(frame_energies(low, round(FRAME_SECONDS * spectrum.rate)).max(-1))
    if loudness == 0:
        return np.zeros_like(x)
    states = spectrum.state(torch.from_numpy(low.T.copy()) / loudness)
    out: Array = spectrum.istft(restorer(states, 0), len(low)).T.numpy() * np.float32(loudness)
    return resample(np.ascontiguousarray(out), spectrum.rate, rate)[: len(x)]
