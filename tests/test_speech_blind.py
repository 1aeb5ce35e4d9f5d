"""Blind dereverberation: the room's operator, its estimate, the prediction it starts from, and the command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from speech_cases import enhance, record, syllables, tiny_prior, write

from domains.speech.blind import BANDS, DELAY, TAPS, Room, SubbandRoom, decays
from domains.speech.data import read_audio
from domains.speech.metrics import direct_to_reverberant, remaining_reverberation, response_between
from domains.speech.mixing import reverberant
from domains.speech.spectrum import Spectrum
from domains.speech.wpe import delayed, wpe
from suite.operators import adjoint_error

RATE = 16000


def complex_noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def hall(seconds: float = 0.4) -> np.ndarray:
    """Direct sound and a tail of 0.4 s."""
    t = np.arange(int(seconds * RATE)) / RATE
    tail = 0.05 * np.random.default_rng(3).standard_normal(len(t)) * 10 ** (-3 * t / seconds)
    tail[0] = 1.0
    return tail.astype(np.float32)


def filtered(h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The definition: sum over delays."""
    return sum((h[:, k, None] * delayed(x, k, 1)[:, 0] for k in range(h.shape[-1])), torch.zeros_like(x))


def test_the_room_filters_along_time() -> None:
    h, x = complex_noise(5, 7), complex_noise(5, 20, seed=1)
    room = SubbandRoom(h[None])
    assert torch.allclose(room(x[None])[0], filtered(h, x), atol=1e-4)
    assert adjoint_error(room, x[None], complex_noise(1, 5, 20, seed=2)) < 1e-5


def test_decays_of_exponential_bands() -> None:
    seconds, times = 0.008, np.linspace(0.2, 1.0, BANDS)
    part = torch.arange(48).tensor_split(BANDS)
    h = torch.zeros(48, TAPS, dtype=torch.complex64)
    for bins, time in zip(part, times, strict=True):
        h[bins] = (0.5 * 10 ** (-3 * torch.arange(TAPS) * seconds / time)).to(h.dtype)
    variance, found = decays(h, seconds)
    assert np.allclose(found[4:], times[4:], rtol=0.02)  # the shortest reach the floor within the filter
    assert torch.allclose(variance[-1, DELAY:], h[-1, DELAY:].abs().square(), rtol=0.02)


def test_the_filter_is_found_from_both_sides() -> None:
    bins, frames = 16, 600
    room = Room.unknown(bins)
    h = torch.zeros(bins, TAPS, dtype=torch.complex64)
    h[:, 0] = 1
    h[:, DELAY:] = complex_noise(bins, TAPS - DELAY) * torch.exp(-0.08 * torch.arange(TAPS - DELAY)) * 0.3
    x = complex_noise(bins, frames, seed=5)
    found = room.fitted(x, filtered(h, x), torch.full((bins, frames), 1e-3), 0.008)
    assert float((found.h - h).abs().square().sum() / h[:, DELAY:].abs().square().sum()) < 0.02
    assert float(found.h[:, 0].sub(1).abs().max()) == 0 and not bool(found.h[:, 1:DELAY].any())


def test_prediction_takes_the_tail_away() -> None:
    spectrum, s = Spectrum(), syllables(2.0)
    wet = reverberant(s, hall())
    dry = spectrum.samples(spectrum.fold(spectrum.compress(wpe(spectrum.stft(torch.from_numpy(wet)))[None])), len(s))
    before, after = (remaining_reverberation(x, s, RATE) for x in (wet, dry[0].numpy()))
    assert before is not None and after is not None and after > before + 1
    silent = torch.zeros(16, 30, dtype=torch.complex64)
    assert not bool(wpe(silent).any())


def test_blind_command(tmp_path: Path) -> None:
    s = syllables(1.5)
    wet = reverberant(s, hall())
    file = write(tmp_path / "wet.wav", np.stack([wet, wet], 1), subtype="FLOAT")
    prior = tiny_prior(tmp_path / "tiny.safetensors")
    words = [file, "--blind-reverb", "--prior", prior, "--steps", 2]
    enhance(*words, "-o", tmp_path / "out")
    found, rate = read_audio(tmp_path / "out" / "wet.wav")
    assert (found.shape, rate) == ((len(s), 2), RATE) and np.array_equal(found[:, 0], found[:, 1])
    said = record(tmp_path / "out")
    assert (said["method"], said["estimator"], said["nfe"]) == ("posterior", "point", 2)
    before, after = (remaining_reverberation(x, s, RATE) for x in (wet, found[:, 0]))
    assert before is not None and after is not None and after > before
    enhance(*words, "--clip", 0.5, "-o", tmp_path / "two", code=2)
    enhance(*words, "--method", "bridge", "-o", tmp_path / "three", code=2)


def test_what_reverberation_is_left() -> None:
    rng = np.random.default_rng(0)
    s, h = rng.standard_normal(3 * RATE).astype(np.float32), hall()
    between = response_between(s, reverberant(s, h))
    middle = len(between) // 2
    assert np.allclose(between[middle : middle + 2000], h[:2000], atol=0.02)
    found, truth = remaining_reverberation(reverberant(s, h), s, RATE), direct_to_reverberant(h, RATE)
    assert found == pytest.approx(truth, abs=1.0)
    assert remaining_reverberation(0 * s, s, RATE) is None
