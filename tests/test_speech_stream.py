"""Spectrograms forth and back, and recordings in pieces: the pieces make the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from speech_cases import noisy_voice, tiny_prior, voice
from torch import Tensor

from domains.speech.methods import METHODS
from domains.speech.pipeline import EnhanceConfig, Restorer, enhance_samples
from domains.speech.spectrum import Spectrum
from domains.speech.stream import Analysis, ColumnNoise, Streamer, Synthesis, reach_of
from domains.speech.survey import frame_energies, level
from suite.errors import InputError
from suite.prior import load_prior


def test_stft_equals_scipy() -> None:
    spectrum, x = Spectrum(), torch.from_numpy(voice(0.5))
    found = spectrum.stft(x)
    window = scipy.signal.get_window("hann", 510)
    for frame in (0, 7, 40):
        centre = frame * 128
        part = np.pad(x.numpy(), 255)[centre : centre + 510]
        assert np.allclose(found[:, frame], np.fft.rfft(part * window), atol=1e-4)


@settings(max_examples=20)
@given(st.integers(1, 3000), st.sampled_from([0.5, 0.667, 1.0]), st.sampled_from([(4, 2), (1, 1), (2, 4)]))
def test_states_and_back(count: int, exponent: float, blocks: tuple[int, int]) -> None:
    spectrum = Spectrum(exponent=exponent, bins=blocks[0], frames=blocks[1])
    x = torch.randn(2, count, generator=torch.Generator().manual_seed(count))
    state = spectrum.state(x)
    assert state.shape == (2, spectrum.channels, spectrum.rows, spectrum.columns(count))
    assert torch.allclose(spectrum.samples(state, count), x, atol=2e-4 * float(x.abs().max()))


def test_the_unit_names_the_representation() -> None:
    spectrum = Spectrum(window=512 - 2, hop=100, exponent=0.667, bins=2)
    assert Spectrum.of_unit(spectrum.unit) == spectrum
    with pytest.raises(InputError, match="HU"):
        Spectrum.of_unit("HU")


@settings(max_examples=25)
@given(st.lists(st.integers(1, 1500), min_size=1, max_size=8))
def test_frames_in_pieces(sizes: list[int]) -> None:
    spectrum, count = Spectrum(), sum(sizes)
    x = torch.randn(1, count, generator=torch.Generator().manual_seed(0))
    analysis, synthesis = Analysis(spectrum, 1), Synthesis(spectrum, 1)
    frames = [analysis.push(piece) for piece in x.split(sizes, dim=1)]
    frames.append(analysis.finish())
    assert torch.allclose(torch.cat(frames, dim=-1), spectrum.stft(x), atol=1e-4)
    out = [synthesis.push(part) for part in frames[:-1]]
    synthesis.total = count
    out += [synthesis.push(frames[-1]), synthesis.finish()]
    assert torch.allclose(torch.cat(out, dim=-1), x, atol=1e-5)


def test_noise_belongs_to_columns() -> None:
    whole = ColumnNoise(3, "a", 0)
    like = torch.zeros(2, 4, 5, 300)
    first, second = whole.normal(like), whole.normal(like)
    part = ColumnNoise(3, "a", 100)
    assert torch.equal(part.normal(like[..., :90]), first[..., 100:190])
    assert torch.equal(part.normal(like[..., :90]), second[..., 100:190])
    assert torch.equal(first[0], first[1]) and not torch.equal(first, second)
    assert abs(float(first[0].std()) - 1) < 0.03
    assert not torch.equal(ColumnNoise(3, "b", 0).normal(like), first)


def test_reach_is_the_networks_own(tmp_path: Path) -> None:
    """Columns farther away than `reach_of` change nothing; the farthest within it do."""
    prior = load_prior(tiny_prior(tmp_path / "tiny.safetensors"))
    reach = reach_of(prior.card.network)
    y = torch.randn(1, 16, 64, 128, generator=torch.Generator().manual_seed(0))
    restorer = Restorer(prior, METHODS["predict"].plan(1), 0, "", precision="float32")
    middle = 64
    plain = restorer(y, 0)[..., 2 * middle : 2 * middle + 2]
    changed = []
    for distance in range(1, reach + 8):
        other = y.clone()
        other[..., middle + distance :] += 1.0
        changed.append(not torch.equal(restorer(other, 0)[..., 2 * middle : 2 * middle + 2], plain))
    farthest = max(k + 1 for k, flag in enumerate(changed) if flag)
    assert reach - 4 <= farthest <= reach


@pytest.mark.parametrize("method", ["predict", "bridge", "storm", "sgmse"])
def test_blocks_make_the_whole(method: str, tmp_path: Path) -> None:
    """Whatever the block and the pieces that come in, the result is that of the whole recording at once."""
    prior = load_prior(tiny_prior(tmp_path / "tiny.safetensors"))
    steps = {"predict": 1, "bridge": 2, "storm": 3, "sgmse": 4}[method]
    x = noisy_voice(2.0)
    plan = METHODS[method].plan(steps)
    whole = enhance_samples(x, 16000, Restorer(prior, plan, 0, "", precision="float32"))
    for block, pieces in ((0.4, [1000] * 32), (0.9, [32000])):
        restorer = Restorer(prior, plan, 0, "", precision="float32")
        config = EnhanceConfig(block=block, overlap=None)
        streamer = restorer.streamer(1, 1 / level_of(x), config)
        out, given_samples, returned = [], 0, 0
        for piece in torch.from_numpy(x.T.copy()).split(pieces, dim=1):
            out.append(streamer.push(piece))
            given_samples, returned = given_samples + piece.shape[1], returned + out[-1].shape[1]
            assert given_samples - returned <= streamer.latency + max(pieces)
        out.append(streamer.finish())
        found = torch.cat(out, dim=1).T.numpy()
        assert found.shape == x.shape
        assert np.abs(found - whole).max() < 1e-4 * np.abs(whole).max()


def level_of(x: np.ndarray) -> float:
    return level(frame_energies(x, 512).max(-1))


def test_a_streamer_adds_nothing_of_its_own() -> None:
    spectrum = Spectrum()

    def same(states: Tensor, first: int) -> Tensor:
        return spectrum.expand(spectrum.unfold(states))

    streamer = Streamer(same, spectrum, 2, gain=3.0, block=16, reach=8)
    x = torch.from_numpy(noisy_voice(1.5, channels=2).T.copy())
    out = torch.cat([*(streamer.push(piece) for piece in x.split(777, dim=1)), streamer.finish()], dim=1)
    assert out.shape == x.shape and torch.allclose(out, x, atol=1e-5)
