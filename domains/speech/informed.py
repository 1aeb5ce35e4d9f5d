"""Posterior mode on a file: read whole, restored whole, written as it came."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from domains.speech.blind import BlindRoom
from domains.speech.config import EnhanceConfig, Enhanced
from domains.speech.data import Audio, blocks, write_audio
from domains.speech.methods import guidance_of
from domains.speech.posterior import (
    LONGEST_SECONDS,
    Bounded,
    Degradation,
    WaveformDDS,
    band_limit,
    clipping,
    gaps,
    noise_std,
    room,
)
from domains.speech.resampling import resample
from domains.speech.residual import SpectrumSteps, compressed_measurement
from domains.speech.spectrum import Spectrum
from domains.speech.stream import ColumnNoise
from domains.speech.survey import faults, remarks, survey
from suite.denoiser import Denoiser
from suite.errors import InputError
from suite.measurement import Measurement
from suite.posterior.base import Guided
from suite.prior import Prior
from suite.process import edm
from suite.restoration import Conditioned

Array = NDArray[np.float32]
JOIN_SECONDS = 1e-3

Clock = Callable[[str], AbstractContextManager[Any]]


def degradation(y: Tensor, x: Array, audio: Audio, rate: int, gain: float, config: EnhanceConfig) -> Degradation:
    """What `config` says happened to the recording.

    Raises:
        InputError: nothing, or more than one thing.
    """
    if config.rir is not None:
        return room(y, config.rir, rate)
    if config.bandwidth is not None:
        return band_limit(y, config.bandwidth, rate)
    if config.gaps is not None:
        return gaps(y, config.gaps, audio, rate)
    assert config.clip is not None
    return clipping(y, config.clip, x, audio, rate, gain)


def enhance_informed(
    audio: Audio, output: Path, prior: Prior, identity: str, config: EnhanceConfig, steps: int, clock: Clock
) -> Enhanced:
    """Restore a file whose degradation is known.

    Raises:
        InputError: too long, unreadable, or a degradation that does not fit it.
    """
    if audio.seconds > LONGEST_SECONDS:
        raise InputError(
            f"{audio.path}: lasts {audio.seconds:.0f} s; the posterior method takes {LONGEST_SECONDS:g} s at most, cut it"
        )
    spectrum = Spectrum.of_unit(prior.card.unit)
    found = survey(audio)
    x = np.concatenate(list(blocks(audio)))
    clean = np.where(np.isfinite(x), x - (0 if config.clip else found.offset), 0.0).astype(np.float32)
    if found.level == 0:
        write_audio(output, np.zeros_like(clean), audio)
        return Enhanced({}, remarks(audio, found), faults(audio, found))
    y = torch.from_numpy(resample(clean, audio.rate, spectrum.rate).T.copy()) / found.level
    draws = _Draws(prior, spectrum, identity, config, steps, clock)
    kept, chi2 = None, None
    if config.blind_reverb:
        estimate, chi2 = draws.blind(y)
    else:
        what = degradation(y, clean, audio, spectrum.rate, 1 / found.level, config)
        kept = what.kept
        estimate, chi2 = draws.known(y, what)
    out = resample((estimate * found.level).T.numpy().copy(), spectrum.rate, audio.rate)[: audio.frames]
    out = np.pad(out, ((0, audio.frames - len(out)), (0, 0)))
    if kept is not None:
        out = joined(out, clean, kept, audio.rate)
        if config.clip is not None:
            out = np.where(kept, out, np.copysign(np.maximum(np.sign(clean) * out, config.clip), clean))
    limited = write_audio(output, out.astype(np.float32), audio)
    doubts = faults(audio, found, clipped=config.clip is None)
    if limited:
        doubts.append(f"{audio.path.name}: {limited} samples exceeded full scale and were limited.")
    notes = remarks(audio, found, centred=config.clip is None, kept=kept is not None)
    return Enhanced({"misfit_chi2": chi2}, notes, doubts)


def joined(estimate: Array, recording: Array, kept: NDArray[np.bool_], rate: int) -> Array:
    """The recording where it is kept, else the estimate, without a step where they meet; all `(n, channels)`.

    The error at the last kept sample and that at the next one, interpolated, are taken off in between, fading within a millisecond.
    """
    out = recording.copy()
    for c in range(out.shape[1]):
        inside, lost = np.flatnonzero(kept[:, c]), np.flatnonzero(~kept[:, c])
        if not len(inside):
            return estimate
        after = np.searchsorted(inside, lost)
        before, behind = inside[np.maximum(after - 1, 0)], inside[np.minimum(after, len(inside) - 1)]
        error = np.interp(lost, inside, (recording - estimate)[inside, c])
        fade = np.exp(-np.minimum(abs(lost - before), abs(lost - behind)) / (JOIN_SECONDS * rate))
        out[lost, c] = estimate[lost, c] + error * fade
    return out


Pull = tuple[Guided, Measurement]


@dataclass
class _Draws:
    """Runs of the posterior method on recordings `(channels, n)` at unit level."""

    prior: Prior
    spectrum: Spectrum
    identity: str
    config: EnhanceConfig
    steps: int
    clock: Clock

    def known(self, y: Tensor, what: Degradation) -> tuple[Tensor, float | None]:
        """The estimate `(channels, n)` and its misfit; None where the recording is kept as it is, and so is met."""
        spectrum, count = self.spectrum, y.shape[-1]
        samples = Measurement(what.operator, y, torch.where(what.known, noise_std(y, self.config.noise_db), torch.inf))
        view = compressed_measurement(
            lambda state: spectrum.stft(what.record(spectrum.samples(state, count))), spectrum.stft(what.recording)
        )
        dds = WaveformDDS(spectrum, what.constraint, iterations=self.config.iterations, data_std=self._std)
        steps = SpectrumSteps(strength=what.strength, repeats=what.repeats, data_std=self._std)
        pulls: dict[str, Pull] = {"dds": (dds, samples), "stft": (steps, view)}
        guidance = guidance_of(self.config)
        state = self._run([pull for name, pull in pulls.items() if guidance in (name, "both")], y)
        estimate = spectrum.samples(state, count)
        estimate = estimate if what.constraint is None else what.constraint(estimate)
        return estimate, None if what.kept is not None else float(samples.misfit_chi2(estimate).mean())

    def blind(self, y: Tensor) -> tuple[Tensor, float]:
        """The same in an unknown room, which is found at every step whatever pulls."""
        spectrum, guidance = self.spectrum, guidance_of(self.config)
        options: dict[str, Any] = {"iterations": self.config.iterations, "data_std": self._std}
        method = BlindRoom(spectrum, y, noise_std(y, self.config.noise_db), pull=guidance != "stft", **options)
        pulls: list[Pull] = [(method, method.measurement())]
        if guidance != "dds":
            steps = SpectrumSteps(init=method.init, data_std=self._std, levels=method.levels)
            pulls.append((steps, compressed_measurement(method.received, method.target)))
        estimate = spectrum.samples(self._run(pulls, y), y.shape[-1])
        return estimate, float(method.measurement().misfit_chi2(spectrum.stft(estimate)).mean())

    @property
    def _std(self) -> float:
        return self.prior.card.sigma_data

    def _run(self, pulls: list[Pull], y: Tensor) -> Tensor:
        """The state after a run with these pulls, each a guide around the one before."""
        spectrum, config = self.spectrum, self.config
        like = torch.zeros(len(y), spectrum.channels, spectrum.rows, spectrum.columns(y.shape[-1]))
        noise = ColumnNoise(config.seed, self.identity, 0)
        options: dict[str, Any] = {"precision": config.precision, "clock": lambda: self.clock("network")}
        network = Conditioned(self.prior, edm(0.02, 20.0), torch.zeros_like(like), **options)
        denoiser: Denoiser = Bounded(network, self._std)
        for method, measurement in pulls[:-1]:
            denoiser = method.guide(denoiser, measurement, noise)
        method, measurement = pulls[-1]
        with self.clock("operator"):
            return method.run(denoiser, measurement, like, noise=noise, steps=self.steps)
