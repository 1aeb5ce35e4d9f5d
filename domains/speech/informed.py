"""Posterior mode on a file: read whole, restored whole, written as it came."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
    what = degradation(y, clean, audio, spectrum.rate, 1 / found.level, config)
    std = torch.where(what.known, noise_std(y, config.noise_db), torch.inf)
    measurement = Measurement(what.operator, y, std)
    estimate, chi2 = _restored(prior, spectrum, measurement, what, y, identity, config, steps, clock)
    out = resample((estimate * found.level).T.numpy().copy(), spectrum.rate, audio.rate)[: audio.frames]
    out = np.pad(out, ((0, audio.frames - len(out)), (0, 0)))
    out = out if what.kept is None else np.where(what.kept, clean, out)
    limited = write_audio(output, out.astype(np.float32), audio)
    warnings = [sentence for sentence in remarks(audio, found) if config.clip is None or "clipped" not in sentence]
    if limited:
        warnings.append(f"{audio.path.name}: {limited} samples exceeded full scale and were limited.")
    return Enhanced({"misfit_chi2": chi2}, warnings)


def _restored(
    prior: Prior,
    spectrum: Spectrum,
    measurement: Measurement,
    what: Degradation,
    y: Tensor,
    identity: str,
    config: EnhanceConfig,
    steps: int,
    clock: Clock,
) -> tuple[Tensor, float]:
    """The estimate `(channels, n)` and its misfit."""
    like = torch.zeros(len(y), spectrum.channels, spectrum.rows, spectrum.columns(y.shape[-1]))
    options: dict[str, Any] = {"precision": config.precision, "clock": lambda: clock("network")}
    denoiser = Conditioned(prior, edm(0.02, 20.0), torch.zeros_like(like), **options)
    method = WaveformDDS(spectrum, what.constraint, data_std=prior.card.sigma_data, iterations=config.iterations)
    with clock("operator"):
        state = method.run(denoiser, measurement, like, noise=ColumnNoise(config.seed, identity, 0), steps=steps)
        estimate = spectrum.samples(state, y.shape[-1])
    return estimate, float(measurement.misfit_chi2(estimate).mean())
