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
from domains.speech.posterior import (
    LONGEST_SECONDS,
    Degradation,
    WaveformDDS,
    band_limit,
    clipping,
    gaps,
    noise_std,
    room,
)
from domains.speech.resampling import resample
from domains.speech.spectrum import Spectrum
from domains.speech.stream import ColumnNoise
from domains.speech.survey import remarks, survey
from suite.errors import InputError
from suite.measurement import Measurement
from suite.posterior.dds import DDS
from suite.prior import Prior
from suite.process import edm
from suite.restoration import Conditioned

Array = NDArray[np.float32]
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
        return Enhanced({}, remarks(audio, found))
    y = torch.from_numpy(resample(clean, audio.rate, spectrum.rate).T.copy()) / found.level
    draws = _Draws(prior, spectrum, identity, config, steps, clock)
    kept = None
    if config.blind_reverb:
        estimate, chi2 = draws.blind(y)
    else:
        what = degradation(y, clean, audio, spectrum.rate, 1 / found.level, config)
        kept = what.kept
        estimate, chi2 = draws.known(y, what)
    out = resample((estimate * found.level).T.numpy().copy(), spectrum.rate, audio.rate)[: audio.frames]
    out = np.pad(out, ((0, audio.frames - len(out)), (0, 0)))
    out = out if kept is None else np.where(kept, clean, out)
    limited = write_audio(output, out.astype(np.float32), audio)
    warnings = [sentence for sentence in remarks(audio, found) if config.clip is None or "clipped" not in sentence]
    if limited:
        warnings.append(f"{audio.path.name}: {limited} samples exceeded full scale and were limited.")
    return Enhanced({"misfit_chi2": chi2}, warnings)


@dataclass
class _Draws:
    """Runs of the posterior method on recordings `(channels, n)` at unit level."""

    prior: Prior
    spectrum: Spectrum
    identity: str
    config: EnhanceConfig
    steps: int
    clock: Clock

    def known(self, y: Tensor, what: Degradation) -> tuple[Tensor, float]:
        """The estimate `(channels, n)` and its misfit."""
        std = torch.where(what.known, noise_std(y, self.config.noise_db), torch.inf)
        measurement = Measurement(what.operator, y, std)
        method = WaveformDDS(self.spectrum, what.constraint, **self._options())
        with self.clock("operator"):
            estimate = self.spectrum.samples(self._run(method, measurement, y), y.shape[-1])
        return estimate, float(measurement.misfit_chi2(estimate).mean())

    def blind(self, y: Tensor) -> tuple[Tensor, float]:
        """The same in an unknown room."""
        with self.clock("operator"):
            method = BlindRoom(self.spectrum, y, noise_std(y, self.config.noise_db), **self._options())
            state = self._run(method, method.measurement(), y)
            estimate = self.spectrum.samples(state, y.shape[-1])
        return estimate, float(method.measurement().misfit_chi2(self.spectrum.stft(estimate)).mean())

    def _options(self) -> dict[str, Any]:
        return {"data_std": self.prior.card.sigma_data, "iterations": self.config.iterations}

    def _run(self, method: DDS, measurement: Measurement, y: Tensor) -> Tensor:
        spectrum, config = self.spectrum, self.config
        like = torch.zeros(len(y), spectrum.channels, spectrum.rows, spectrum.columns(y.shape[-1]))
        options: dict[str, Any] = {"precision": config.precision, "clock": lambda: self.clock("network")}
        denoiser = Conditioned(self.prior, edm(0.02, 20.0), torch.zeros_like(like), **options)
        return method.run(
            denoiser, measurement, like, noise=ColumnNoise(config.seed, self.identity, 0), steps=self.steps
        )
