"""The compressed complex spectrogram that the networks see, and the way back to samples.

    u = c |X|^a exp(i arg X),    X the short-time Fourier transform of the signal at unit level

(Welker et al. 2022; Richter et al. 2023, SGMSE+: window 510, hop 128, a = 1/2). Blocks of neighbouring bins and frames then
become channels, which changes neither the values nor the noise of a diffusion but makes the picture smaller for the network.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from suite.errors import InputError

_UNIT = re.compile(r"stft (\d+)/(\d+) at (\d+) Hz, ([\d.]+)\|X\|\^([\d.]+), folded (\d+)x(\d+)")


@dataclass(frozen=True)
class Spectrum:
    """Parameters of the representation.

    Attributes:
        rate: of the samples, Hz.
        window: length of the periodic Hann window, even; `window / 2 + 1` bins.
        hop: from frame to frame, in samples.
        exponent, factor: a and c above.
        bins, frames: side of the blocks that become channels.
    """

    rate: int = 16000
    window: int = 510
    hop: int = 128
    exponent: float = 0.5
    factor: float = 0.5
    bins: int = 4
    frames: int = 2

    def __post_init__(self) -> None:
        if self.window % 2 or (self.window // 2 + 1) % self.bins or not 0 < self.hop <= self.window // 2:
            raise InputError(
                f"a spectrum needs an even window, a hop of at most half of it and {self.window // 2 + 1} bins that divide "
                f"into blocks, not window {self.window}, hop {self.hop} and blocks of {self.bins}"
            )

    @classmethod
    def of_unit(cls, unit: str) -> Spectrum:
        """The representation that a prior's card names.

        Raises:
            InputError: the unit is another.
        """
        match = _UNIT.fullmatch(unit)
        if match is None:
            raise InputError(f"a prior for speech works on compressed spectrograms, and this one on {unit!r}")
        window, hop, rate, factor, exponent, bins, frames = match.groups()
        whole = {"window": int(window), "hop": int(hop), "rate": int(rate), "bins": int(bins), "frames": int(frames)}
        return cls(exponent=float(exponent), factor=float(factor), **whole)

    @property
    def unit(self) -> str:
        """The representation in words, for a prior's card."""
        return (
            f"stft {self.window}/{self.hop} at {self.rate} Hz, {self.factor:g}|X|^{self.exponent:g}, "
            f"folded {self.bins}x{self.frames}"
        )

    @property
    def channels(self) -> int:
        """Real channels of a state: real parts, then imaginary parts."""
        return 2 * self.bins * self.frames

    @property
    def rows(self) -> int:
        """Height of a state."""
        return (self.window // 2 + 1) // self.bins

    @property
    def column(self) -> int:
        """Samples from one column of a state to the next."""
        return self.hop * self.frames

    def columns(self, samples: int) -> int:
        """Width of the state of so many samples."""
        return max(1, math.ceil(samples / self.column)) + 1

    def stft(self, x: Tensor) -> Tensor:
        """Samples `(..., n)` to `(..., bins, frames * columns(n))` complex; frame k is centred on sample k * hop."""
        count = self.columns(x.shape[-1]) * self.frames
        reach = self.window // 2
        padded = F.pad(x, (reach, (count - 1) * self.hop + reach - x.shape[-1]))
        flat = padded.reshape(-1, padded.shape[-1])
        window = torch.hann_window(self.window, device=x.device)
        out = torch.stft(flat, self.window, self.hop, window=window, center=False, return_complex=True)
        return out.reshape(*x.shape[:-1], *out.shape[-2:])

    def istft(self, spectrum: Tensor, samples: int) -> Tensor:
        """The inverse: samples `(..., n)`; of spectra of no signal, the least-squares one (Griffin and Lim 1984)."""
        window = torch.hann_window(self.window, device=spectrum.device)
        frames = torch.fft.irfft(spectrum, self.window, dim=-2) * window[:, None]
        flat = frames.reshape(-1, *frames.shape[-2:])
        length = (flat.shape[-1] - 1) * self.hop + self.window

        def add(columns: Tensor) -> Tensor:
            return F.fold(columns, (1, length), (1, self.window), stride=(1, self.hop))[:, 0, 0]

        weight = add((window**2)[None, :, None].expand(1, -1, flat.shape[-1]))
        reach = self.window // 2
        out = add(flat) / weight.clamp_min(1e-8)
        return out[:, reach : reach + samples].reshape(*spectrum.shape[:-2], samples)

    def compress(self, spectrum: Tensor) -> Tensor:
        """`X -> c |X|^a exp(i arg X)`."""
        return spectrum * self.factor * spectrum.abs().clamp_min(1e-12) ** (self.exponent - 1)

    def expand(self, compressed: Tensor) -> Tensor:
        """The inverse of `compress`."""
        magnitude = compressed.abs().clamp_min(1e-12) / self.factor
        return compressed / self.factor * magnitude ** (1 / self.exponent - 1)

    def fold(self, spectrum: Tensor) -> Tensor:
        """Complex `(B, bins, frames)` to a state `(B, channels, rows, columns)`."""
        items = spectrum.shape[0]
        blocks = spectrum.reshape(items, self.rows, self.bins, -1, self.frames).permute(0, 2, 4, 1, 3)
        blocks = blocks.reshape(items, self.bins * self.frames, self.rows, -1)
        return torch.cat([blocks.real, blocks.imag], dim=1)

    def unfold(self, state: Tensor) -> Tensor:
        """The inverse of `fold`."""
        real, imag = state.float().chunk(2, dim=1)
        blocks = torch.complex(real, imag).reshape(len(state), self.bins, self.frames, self.rows, -1)
        return blocks.permute(0, 3, 1, 4, 2).reshape(len(state), self.rows * self.bins, -1)

    def state(self, x: Tensor) -> Tensor:
        """Samples `(B, n)` at unit level to network values `(B, channels, rows, columns(n))`."""
        return self.fold(self.compress(self.stft(x)))

    def samples(self, state: Tensor, count: int) -> Tensor:
        """Network values back to samples `(B, count)`."""
        return self.istft(self.expand(self.unfold(state)), count)
