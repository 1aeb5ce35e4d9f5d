"""Posterior mode: speech from a recording whose degradation is known, by the network as an unconditional prior.

The measurement is one of samples, while the prior lives on compressed spectrograms. Two pulls towards the data serve each step of
the solver, by themselves or one after the other: the residual in the compressed transform (`domains.speech.residual`), whose
operator may be anything, and for what is linear, `y = A x + n` (a room response, a band limit, gaps), the core's proximal step on
the samples,

    D^ = u( argmin |W (A x - y)|^2 + |x - x(D)|^2 / v ),     v the variance of the samples when the state's is r_t^2
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.fft
import scipy.signal
import torch
from numpy.typing import NDArray
from torch import Tensor

from domains.speech.data import Audio, read_audio
from domains.speech.resampling import resample
from domains.speech.spectrum import Spectrum
from suite.denoiser import Denoiser
from suite.errors import InputError
from suite.files import reading
from suite.measurement import Measurement
from suite.noise import Noise
from suite.operators import Convolve, Identity, LinearOperator
from suite.posterior.base import GuidedDenoiser
from suite.posterior.data_step import DataStep
from suite.posterior.dds import DDS

Array = NDArray[np.float32]

LONGEST_SECONDS = 120.0
"""Longer recordings are refused: a room's sound couples all that it holds, so they are restored whole."""
TAPS = 255
"""Length of the low-pass filter that stands for a band limit."""


@dataclass(frozen=True)
class Degradation:
    """What happened to a recording, at the model's rate.

    Attributes:
        operator: linear, acts on samples `(B, n)`.
        known: samples whose value is known `(B, n)`; the others do not count as data of the operator.
        record: samples to the recording they would give `(B, n)`, any differentiable function.
        recording: the recording itself, as `record` would give it.
        constraint: a set the samples lie in, as the projection on it; None: no such knowledge.
        kept: samples of the file `(n, channels)` that the result takes over as they are; None: none.
        strength, repeats: of the steps down the compressed residual, chosen on the validation speakers.
    """

    operator: LinearOperator
    known: Tensor
    record: Callable[[Tensor], Tensor]
    recording: Tensor
    constraint: Callable[[Tensor], Tensor] | None = None
    kept: NDArray[np.bool_] | None = None
    strength: float = 1.0
    repeats: int = 4


def filtered(y: Tensor, kernel: Array) -> Degradation:
    """A convolution with a kernel whose time 0 is its middle."""
    operator = Convolve(torch.from_numpy(kernel), (y.shape[-1],), boundary="zero")
    return Degradation(operator, torch.ones_like(y).bool(), operator, y)


def room(y: Tensor, path: Path, rate: int) -> Degradation:
    """A known room response (its first channel); its first sample is time 0.

    Raises:
        InputError: it is unreadable or silent.
    """
    samples, old = read_audio(path)
    if not samples[:, 0].any():
        raise InputError(f"{path}: the room response is silent in its first channel")
    response = resample(samples[:, 0], old, rate) * np.float32(old / rate)
    return filtered(y, np.concatenate([np.zeros(len(response) - 1, np.float32), response]))


def band_limit(y: Tensor, hertz: float, rate: int) -> Degradation:
    """Nothing above `hertz`.

    Raises:
        InputError: the limit is not below half the model's rate.
    """
    if not 0 < hertz < rate / 2:
        raise InputError(
            f"--bandwidth {hertz:g}: a limit between 0 and {rate // 2} Hz is needed, the network works at {rate} Hz"
        )
    return filtered(y, scipy.signal.firwin(TAPS, hertz, fs=rate).astype(np.float32))


def gaps(y: Tensor, path: Path, audio: Audio, rate: int) -> Degradation:
    """Stretches that are lost: lines `start,end` in seconds, a header line allowed.

    Raises:
        InputError: the file is no such table, or a stretch lies outside the recording.
    """
    lost = np.zeros(audio.frames, bool)
    with reading(path, "is no table of gaps; lines 'start,end' in seconds are needed"):
        rows = [row for row in csv.reader(path.read_text(encoding="utf-8").splitlines()) if row]
        if rows and not rows[0][0].strip().replace(".", "").isdigit():
            rows = rows[1:]
        times = [(float(row[0]), float(row[1])) for row in rows]
    for start, end in times:
        if not 0 <= start < end <= audio.seconds + 1:
            raise InputError(
                f"{path}: the gap {start:g} to {end:g} s does not lie in the recording's {audio.seconds:.2f} s"
            )
        lost[int(start * audio.rate) : math.ceil(end * audio.rate)] = True
    known = torch.from_numpy(~_at_rate(lost, audio.rate, rate, y.shape[-1])).expand_as(y)
    kept = np.repeat(~lost[:, None], audio.channels, axis=1)

    def record(v: Tensor) -> Tensor:
        return torch.where(known, v, 0.0)

    return Degradation(Identity(), known, record, record(y), kept=kept)


def clipping(y: Tensor, level: float, x: Array, audio: Audio, rate: int, gain: float) -> Degradation:
    """Samples beyond `level` were cut off there: they are at least that large.

    Args:
        y: the recording at the model's rate and level, `gain` times the file's `x`.
    """
    if not 0 < level <= 1:
        raise InputError(f"--clip {level:g}: a level between 0 and 1 (full scale) is needed")
    cut = np.abs(x) >= 0.999 * level
    masks = [_at_rate(channel, audio.rate, rate, y.shape[-1]) for channel in cut.T]
    beyond, sign, top = torch.from_numpy(np.stack(masks)), torch.sign(y), torch.tensor(level * gain)

    def record(v: Tensor) -> Tensor:
        return torch.where(beyond, sign * torch.minimum(sign * v, top), v)

    def at_least(v: Tensor) -> Tensor:
        return torch.where(beyond, sign * torch.maximum(sign * v, top), v)

    return Degradation(Identity(), ~beyond, record, record(at_least(y)), at_least, ~cut, strength=0.5, repeats=2)


def _at_rate(mask: NDArray[np.bool_], old: int, new: int, count: int) -> NDArray[np.bool_]:
    """A mask at another rate: true wherever a true sample takes part in the new one."""
    spread = max(1, -(-old // new)) if old != new else 0
    wide = np.convolve(mask, np.ones(2 * spread + 1), "same") > 0
    index = np.minimum(np.arange(count) * old // new, len(mask) - 1)
    out: NDArray[np.bool_] = wide[index]
    return out


# --- the method -------------------------------------------------------------------------------------------------------


class Bounded(Denoiser):
    """A prior whose estimate stays near the state: `|D| <= |x_t| / alpha + 3 sigma / alpha` in each bin.

    No posterior mean under that noise lies much further. The network's gains have no such limit and go astray at levels it was not
    trained on, which a recording that lost its peaks leads to.
    """

    def __init__(self, prior: Denoiser, data_std: float) -> None:
        super().__init__(prior.process)
        self.prior, self.data_std = prior, data_std

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        alpha, sigma = self.process.alpha(t).to(x.dtype), self.process.sigma(t).to(x.dtype)
        largest = (_magnitude(x) + 3 * sigma) / alpha
        mean = self.prior(x, t, y)
        return mean * (largest / _magnitude(mean)).clamp_max(1.0)


def _magnitude(state: Tensor) -> Tensor:
    """Of the complex entries of a state, for the real and for the imaginary channels."""
    real, imag = state.chunk(2, dim=1)
    return (real.square() + imag.square() + 1e-12).sqrt().repeat(1, 2, 1, 1)


class WaveformDDS(DDS):
    """DDS (Chung, Lee and Ye 2024) with its data step on the samples of a spectrogram.

    Args:
        spectrum: the representation of the states.
        constraint: a projection applied after the data step.
        guided: of `DDS`.
    """

    levels = (8.0, 0.1)

    def __init__(
        self, spectrum: Spectrum, constraint: Callable[[Tensor], Tensor] | None = None, **guided: object
    ) -> None:
        super().__init__(**guided)  # type: ignore[arg-type]
        self.spectrum, self.constraint = spectrum, constraint

    def guide(self, prior: Denoiser, measurement: Measurement, noise: Noise) -> Denoiser:
        return _Pulled(prior, measurement, self)


class _Pulled(GuidedDenoiser):
    def __init__(self, prior: Denoiser, measurement: Measurement, method: WaveformDDS) -> None:
        super().__init__(prior, measurement, method.data_std)
        self.method = method
        self.step = DataStep(measurement, method.iterations, method.tolerance)

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.predict(x, t, y)[0]

    def predict(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mean, eps = self.prior.predict(x, t, y)
        spectrum, method = self.method.spectrum, self.method
        samples = spectrum.samples(mean, self.measurement.y.shape[-1])
        samples = self.step(samples, sample_variance(spectrum, mean, float(self.variance(t).mean())))
        samples = samples if method.constraint is None else method.constraint(samples)
        return spectrum.state(samples), eps


def sample_variance(spectrum: Spectrum, state: Tensor, variance: float) -> Tensor:
    """Variance of the samples `(B,)` when each real part of the state has `variance`, to first order.

    Along X the error is `|dX| = |du| |X|^(1-a) / (c a)`, across it `|du| |X|^(1-a) / c`; samples of variance 1 have
    `E |X|^2 = sum w^2`.
    """
    magnitude = spectrum.expand(spectrum.unfold(state)).abs()
    slope = (magnitude ** (2 * (1 - spectrum.exponent))).flatten(1).mean(1) / spectrum.factor**2
    energy = float((torch.hann_window(spectrum.window) ** 2).sum())
    return variance * slope * (1 / spectrum.exponent**2 + 1) / energy


def noise_std(y: Tensor, noise_db: float | None) -> Tensor:
    """Standard deviation of the noise `(B, 1)` of a recording `(B, n)`.

    Args:
        noise_db: relative to the recording's root mean square; None: the root of the 5th percentile of its frames' energies,
            which takes quiet sound for noise and so errs to the safe side.
    """
    rms = y.square().mean(-1, keepdim=True).sqrt()
    if noise_db is not None:
        return rms * 10 ** (noise_db / 20)
    frames = y.unfold(-1, 512, 256).square().mean(-1) if y.shape[-1] >= 512 else y.square().mean(-1, keepdim=True)
    return torch.quantile(frames, 0.05, dim=-1, keepdim=True).sqrt().clamp_min(1e-3 * rms)
