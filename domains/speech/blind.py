"""Blind dereverberation: speech and an unknown room estimated together (after BUDDy, Moliner et al. 2024).

The room is a filter along time in each frequency bin whose first tap is 1 and whose others decay exponentially, at a rate and
from a level of each band's own:

    Y[f, m] = sum_l h[f, l] X[f, m - l] + n,     h[f, 0] = 1,     h[f, l] ~ CN(0, w_b^2 exp(-2 a_b l))  for l >= delay

At every step of the sampler the network's estimate of X gives the most probable h, h gives the decays `w_b, a_b`, and the
core's proximal step pulls X towards Y through that room. It starts from the recording without its predictable part
(`domains.speech.wpe`), at little noise: the network also knows speech in rooms, so from much noise it would bring a room back.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from domains.speech.spectrum import Spectrum
from domains.speech.wpe import CHUNK, delayed, wpe
from suite.denoiser import Denoiser
from suite.measurement import Measurement
from suite.noise import Noise
from suite.operators import LinearOperator
from suite.posterior.base import GuidedDenoiser
from suite.posterior.dds import DDS

TAPS = 60
"""Frames of the room: half a second."""
DELAY = 3
"""First frame that counts as reverberation: 24 ms, after the first reflections."""
BANDS = 12
SLACK = 0.1
"""Standard deviation of what the filter leaves unexplained, over the local level of Y."""


class SubbandRoom(LinearOperator):
    """`X -> sum_l h[., f, l] X[., f, m - l]` for spectra `(B, bins, frames)`; h `(B or 1, bins, taps)` is its parameter."""

    domain_dtype = torch.complex64

    def __init__(self, h: Tensor) -> None:
        self.h = h

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-1] + self.h.shape[-1]
        return torch.fft.ifft(torch.fft.fft(x, size) * torch.fft.fft(self.h, size))[..., : x.shape[-1]]

    def adjoint(self, y: Tensor) -> Tensor:
        size = y.shape[-1] + self.h.shape[-1]
        return torch.fft.ifft(torch.fft.fft(y, size) * torch.fft.fft(self.h, size).conj())[..., : y.shape[-1]]


@dataclass
class Room:
    """What is known of the room of one channel.

    Attributes:
        h: the filter `(bins, taps)`.
        variance: of its taps before the data, `(bins, taps)`.
        decay_seconds: time in which each band falls by 60 dB.
    """

    h: Tensor
    variance: Tensor
    decay_seconds: list[float] = field(default_factory=list)

    @classmethod
    def unknown(cls, bins: int) -> Room:
        """Half a second of reverberation, 10 dB below the direct sound."""
        h = torch.zeros(bins, TAPS, dtype=torch.complex64)
        h[:, 0] = 1
        return cls(h, 0.1 * torch.exp(-0.1 * torch.arange(TAPS)).expand(bins, TAPS))

    def fitted(self, x: Tensor, y: Tensor, noise: Tensor, seconds: float) -> Room:
        """The most probable filter that leads from `x` to `y`, both `(bins, frames)`, and the decays it shows.

        Args:
            noise: variance of y `(bins, frames)`.
            seconds: from frame to frame.
        """
        h = self.h.clone()
        for first in range(0, len(x), CHUNK):
            part = slice(first, first + CHUNK)
            past = delayed(x[part], DELAY, TAPS - DELAY)
            weighted = past.conj() / noise[part, None]
            normal = weighted @ past.mT + torch.diag_embed(1 / self.variance[part, DELAY:]).to(x.dtype)
            h[part, DELAY:] = torch.linalg.solve(normal, weighted @ (y[part] - x[part])[..., None])[..., 0]
        return Room(h, *decays(h, seconds))


def decays(h: Tensor, seconds: float) -> tuple[Tensor, list[float]]:
    """Exponential decays of the bands of a filter `(bins, taps)`: variances of the same shape, and the times of 60 dB."""
    lag = torch.arange(DELAY, TAPS, dtype=torch.float32)
    centred = lag - lag.mean()
    variance, times = torch.zeros(h.shape), []
    for part in torch.arange(len(h)).tensor_split(BANDS):
        energy = h[part, DELAY:].abs().square().mean(0).clamp_min(1e-7).log()
        slope = min(float((centred * (energy - energy.mean())).sum() / centred.square().sum()), -0.02)
        variance[part, DELAY:] = torch.exp(energy.mean() + slope * centred).clamp_min(1e-6)
        times.append(6 * 2.302585 / -slope * seconds)
    return variance, times


class BlindRoom(DDS):
    """DDS on compressed spectrograms through a room that is estimated at every step.

    Args:
        spectrum: the representation of the states.
        y: the recording `(B, n)` at unit level.
        noise: standard deviation of its noise `(B, 1)`.
        pull: False only finds the rooms, for another pull to follow.
        guided: of `DDS`.

    Attributes:
        rooms: the last estimate of each channel's room.
    """

    levels = (0.1, 0.02)

    def __init__(self, spectrum: Spectrum, y: Tensor, noise: Tensor, pull: bool = True, **guided: object) -> None:
        target = spectrum.stft(y)
        start = torch.stack([wpe(channel, delay=DELAY) for channel in target])
        super().__init__(init=spectrum.fold(spectrum.compress(start)), **guided)  # type: ignore[arg-type]
        self.spectrum, self.target, self.pull = spectrum, target, pull
        energy = float((torch.hann_window(spectrum.window) ** 2).sum())
        self.slack = SLACK**2 * local_power(target) + energy * noise.square()[..., None] + 1e-4
        self.rooms = [Room.unknown(target.shape[1]) for _ in target]

    @property
    def room(self) -> SubbandRoom:
        """The rooms of the moment."""
        return SubbandRoom(torch.stack([room.h for room in self.rooms]))

    def measurement(self) -> Measurement:
        """The recording as the rooms of the moment explain it."""
        return Measurement(self.room, self.target, self.slack.sqrt())

    def received(self, state: Tensor) -> Tensor:
        """Spectra of a state's speech in the rooms of the moment."""
        return self.room(self.spectrum.expand(self.spectrum.unfold(state)))

    def guide(self, prior: Denoiser, measurement: Measurement, noise: Noise) -> Denoiser:
        return _Joint(prior, measurement, self)


class _Joint(GuidedDenoiser):
    def __init__(self, prior: Denoiser, measurement: Measurement, method: BlindRoom) -> None:
        super().__init__(prior, measurement, method.data_std)
        self.method = method

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.predict(x, t, y)[0]

    def predict(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mean, eps = self.prior.predict(x, t, y)
        method, spectrum = self.method, self.method.spectrum
        speech = spectrum.expand(spectrum.unfold(mean))
        second = spectrum.hop / spectrum.rate
        method.rooms = [
            room.fitted(x, target, slack, second)
            for room, x, target, slack in zip(method.rooms, speech, method.target, method.slack, strict=True)
        ]
        if not method.pull:
            return mean, eps
        precision = 1 / bin_variance(spectrum, speech, float(self.variance(t).mean()))
        speech = method.measurement().proximal(speech, precision, iterations=method.iterations, tolerance=1e-3)
        return spectrum.fold(spectrum.compress(speech)), eps


def bin_variance(spectrum: Spectrum, speech: Tensor, variance: float) -> Tensor:
    """Variance of the bins of a spectrum when each real part of its state has `variance`, to first order."""
    slope = (speech.abs() + 0.05) ** (2 * (1 - spectrum.exponent)) / spectrum.factor**2
    return variance * slope * (1 / spectrum.exponent**2 + 1) / 2


def local_power(spectra: Tensor) -> Tensor:
    """Mean power of 3 bins and 5 frames around each bin of spectra `(B, bins, frames)`."""
    return F.avg_pool2d(spectra.abs().square()[:, None], (3, 5), 1, (1, 2))[:, 0]
