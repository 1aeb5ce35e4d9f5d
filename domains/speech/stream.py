"""Recordings of any length in bounded memory: frames in, blocks of columns through a restorer, frames out.

A block is restored together with as many columns on either side as its result depends on, under a noise field indexed by the
column, so the blocks of a long file meet without a seam: they are parts of one sample of the whole file, whatever their size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from domains.speech.spectrum import Spectrum
from suite.noise import Noise, generator

FIELD = 64
"""Columns of the noise field that share a generator."""

Restore = Callable[[Tensor, int], Tensor]
"""`(states (channels, C, rows, columns), first column) -> spectrum (channels, bins, frames)` of the restored recording."""


class ColumnNoise(Noise):
    """Standard normal draws that belong to a recording's columns: any part of the field can be had by itself.

    Every item of a batch (a recording's channels) receives the same numbers. Each call is a further draw.
    """

    def __init__(self, seed: int, identity: str, first: int) -> None:
        super().__init__([])
        self.seed, self.identity, self.first, self.draw = seed, identity, first, 0

    def normal(self, like: Tensor) -> Tensor:
        """N(0, 1) for states `(B, C, rows, columns)`, the first of whose columns is `self.first`."""
        last = self.first + like.shape[-1]
        parts = []
        for block in range(self.first // FIELD, -(-last // FIELD)):
            rng = generator(self.seed, f"{self.identity} draw {self.draw} columns {block}")
            parts.append(torch.randn((*like.shape[1:-1], FIELD), generator=rng))
        self.draw += 1
        skip = self.first - self.first // FIELD * FIELD
        field = torch.cat(parts, dim=-1)[..., skip : skip + like.shape[-1]]
        return field.to(like.device, like.dtype).expand(like.shape)


class Analysis:
    """Samples in, frames of the short-time Fourier transform out; together those of `Spectrum.stft`."""

    def __init__(self, spectrum: Spectrum, channels: int) -> None:
        self.spectrum = spectrum
        self.buffer = torch.zeros(channels, spectrum.window // 2)
        self.count = self.frames = 0

    def push(self, x: Tensor) -> Tensor:
        """Samples `(channels, n)` to the frames they complete, `(channels, bins, k)`."""
        self.count += x.shape[-1]
        self.buffer = torch.cat([self.buffer, x], dim=-1)
        return self._take((self.buffer.shape[-1] - self.spectrum.window) // self.spectrum.hop + 1)

    def finish(self) -> Tensor:
        """The frames that reach past the end."""
        spectrum = self.spectrum
        missing = spectrum.columns(self.count) * spectrum.frames - self.frames
        needed = (missing - 1) * spectrum.hop + spectrum.window
        self.buffer = F.pad(self.buffer, (0, max(0, needed - self.buffer.shape[-1])))
        return self._take(missing)

    def _take(self, count: int) -> Tensor:
        spectrum = self.spectrum
        if count < 1:
            bins = spectrum.window // 2 + 1
            return torch.zeros(len(self.buffer), bins, 0, dtype=torch.complex64)
        used = self.buffer[:, : (count - 1) * spectrum.hop + spectrum.window]
        window = torch.hann_window(spectrum.window)
        out = torch.stft(used, spectrum.window, spectrum.hop, window=window, center=False, return_complex=True)
        self.buffer = self.buffer[:, count * spectrum.hop :]
        self.frames += count
        return out


class Synthesis:
    """Frames in, samples out: overlap-add divided by the windows' overlap, as in `Spectrum.istft`.

    Attributes:
        total: samples of the recording, once known; the last frames reach past it.
    """

    def __init__(self, spectrum: Spectrum, channels: int) -> None:
        self.spectrum = spectrum
        self.sum = torch.zeros(channels, spectrum.window - spectrum.hop)
        self.weight = torch.zeros(spectrum.window - spectrum.hop)
        self.skip = spectrum.window // 2
        self.given = 0
        self.total: int | None = None

    def push(self, frames: Tensor) -> Tensor:
        """Frames `(channels, bins, k)` to the samples no later frame will touch, `(channels, n)`."""
        spectrum, count = self.spectrum, frames.shape[-1]
        if count == 0:
            return self.sum[:, :0]
        window = torch.hann_window(spectrum.window)
        pieces = torch.fft.irfft(frames, spectrum.window, dim=-2) * window[:, None]
        squares = (window**2)[None, :, None].expand(1, -1, count)
        length = (count - 1) * spectrum.hop + spectrum.window
        total, weight = (
            F.fold(columns, (1, length), (1, spectrum.window), stride=(1, spectrum.hop))[:, 0, 0]
            for columns in (pieces, squares)
        )
        total[:, : self.sum.shape[-1]] += self.sum
        weight[0, : len(self.weight)] += self.weight
        done = count * spectrum.hop
        out = total[:, :done] / weight[:, :done].clamp_min(1e-8)
        self.sum, self.weight = total[:, done:], weight[0, done:]
        skipped = min(self.skip, done)
        self.skip -= skipped
        out = out[:, skipped : None if self.total is None else skipped + self.total - self.given]
        self.given += out.shape[-1]
        return out

    def finish(self) -> Tensor:
        """The samples that are left of `total`, after the last frame."""
        assert self.total is not None
        rest = (self.sum / self.weight.clamp_min(1e-8))[:, self.skip :]
        return rest[:, : self.total - self.given]


class Streamer:
    """Restores a recording that arrives piece by piece.

    Args:
        restore: what is done to a block; its result at a column may depend on `reach` columns on either side.
        spectrum: the representation.
        channels: of the recording.
        gain: samples are multiplied by it before, and divided by it after.
        block: columns restored at a time: the longer, the less work is done twice; the shorter, the sooner the sound comes.
        reach: columns on either side that take part in a block.
        multiple: blocks start at multiples of this (the network's own grid).

    `latency` is the most samples that are held back.
    """

    def __init__(
        self,
        restore: Restore,
        spectrum: Spectrum,
        channels: int = 1,
        *,
        gain: float = 1.0,
        block: int = 512,
        reach: int = 64,
        multiple: int = 8,
    ) -> None:
        self.restore, self.spectrum, self.gain, self.multiple = restore, spectrum, gain, multiple
        self.block, self.reach = (-(-size // multiple) * multiple for size in (block, reach))
        self.analysis, self.synthesis = Analysis(spectrum, channels), Synthesis(spectrum, channels)
        bins = spectrum.window // 2 + 1
        self.frames = torch.zeros(channels, bins, 0, dtype=torch.complex64)
        self.first = 0  # column of the first frame kept
        self.done = 0  # columns restored

    @property
    def latency(self) -> int:
        return (self.block + self.reach + self.multiple + 1) * self.spectrum.column + self.spectrum.window

    def push(self, x: Tensor) -> Tensor:
        """Samples `(channels, n)` in; those that are ready out, `(channels, m)`, in order, without gaps."""
        self._keep(self.analysis.push(x * self.gain))
        ready = []
        while self._held >= self.done + self.block + self.reach:
            ready.append(self._restore_to(self.done + self.block, self.done + self.block + self.reach))
        return torch.cat(ready, dim=-1) if ready else x[:, :0]

    def finish(self) -> Tensor:
        """The rest: in all as many samples as came in."""
        self._keep(self.analysis.finish())
        ready, total = [], self.spectrum.columns(self.analysis.count)
        self.synthesis.total = self.analysis.count
        while self.done < total:
            to = min(total, self.done + self.block)
            ready.append(self._restore_to(to, min(total, to + self.reach)))
        ready.append(self.synthesis.finish() / self.gain)
        return torch.cat(ready, dim=-1)

    @property
    def _held(self) -> int:
        return self.first + self.frames.shape[-1] // self.spectrum.frames

    def _keep(self, frames: Tensor) -> None:
        self.frames = torch.cat([self.frames, frames], dim=-1)

    def _restore_to(self, to: int, end: int) -> Tensor:
        """Restore the columns from `done` to `to`, seeing those before `end`."""
        spectrum, per = self.spectrum, self.spectrum.frames
        seen = self.frames[..., : (end - self.first) * per]
        out = self.restore(spectrum.fold(spectrum.compress(seen)), self.first)
        kept = out[..., (self.done - self.first) * per : (to - self.first) * per]
        self.done = to
        start = max(0, to - self.reach) // self.multiple * self.multiple
        self.frames, self.first = self.frames[..., (start - self.first) * per :], start
        return self.synthesis.push(kept) / self.gain


def spectra(spectrum: Spectrum, states: Tensor) -> Tensor:
    """Restored states to spectra: the mean over draws where they are `(draws, channels, C, rows, columns)`."""
    if states.ndim == 4:
        return spectrum.expand(spectrum.unfold(states))
    return torch.stack([spectrum.expand(spectrum.unfold(state)) for state in states]).mean(0)


def reach_of(settings: dict[str, object]) -> int:
    """Columns on either side that one evaluation of a `UNet` with these settings depends on."""
    channels, blocks = settings["channels"], settings["blocks"]
    assert isinstance(channels, Sequence) and isinstance(blocks, int)
    levels = [2**i for i in range(len(channels))]
    down = sum(2 * blocks * size for size in levels)
    up = sum(2 * blocks * size for size in levels[:-1])
    return 2 + down + up + levels[-1]
