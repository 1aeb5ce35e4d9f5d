"""The residual in the compressed transform and its normalised steps."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from speech_cases import enhance, record, tiny_prior, voice, write
from torch import Tensor

from domains.speech.config import EnhanceConfig
from domains.speech.data import Audio, open_audio, read_audio
from domains.speech.informed import enhance_informed
from domains.speech.methods import guidance_of
from domains.speech.metrics import si_sdr
from domains.speech.pipeline import load_speech_prior
from domains.speech.posterior import Degradation, clipping, filtered, gaps
from domains.speech.residual import SpectrumSteps, compressed, compressed_measurement
from domains.speech.spectrum import Spectrum
from suite.denoiser import Denoiser
from suite.measurement import Measurement
from suite.noise import Noise
from suite.posterior.unit_steps import UnitSteps
from suite.process import edm
from suite.run import Stopwatch

RATE = 16000
SPECTRUM = Spectrum()


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_prior(tmp_path_factory.mktemp("prior") / "tiny.safetensors")


class Answer(Denoiser):
    """A denoiser that always answers the same."""

    data_std = 0.5

    def __init__(self, mean: Tensor) -> None:
        super().__init__(edm(0.02, 20.0))
        self.mean = mean

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.mean


def guided(method: UnitSteps, mean: Tensor, measurement: Measurement, level: float) -> Tensor:
    """The method's estimate at noise level sigma/alpha, where the network answers `mean`."""
    answer = Answer(mean)
    t = answer.process.time_of_log_snr(torch.tensor(-math.log(level), dtype=torch.float64)).reshape((1,) * mean.ndim)
    return method.guide(answer, measurement, Noise.of(0))(torch.zeros_like(mean), t)


# --- the step ---------------------------------------------------------------------------------------------------------


def test_the_data_are_met_where_the_step_may_be_long() -> None:
    """Under the identity, Polyak's length ends on the data exactly, in one step and in four."""
    mean, y = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    for repeats in (1, 4):
        out = guided(UnitSteps(100.0, repeats), mean, Measurement(lambda x: x, y, 1.0, linear=False), 1.0)
        assert torch.allclose(out, y, atol=1e-5)


def test_no_step_is_longer_than_the_doubt() -> None:
    """Far data: the root mean square of the shift is strength r_t, whatever the unit of the loss or the gain of the operator."""
    mean, y = torch.randn(2, 3, 8, 8), 100 * torch.randn(2, 3, 8, 8)
    unsure = math.sqrt(0.5**2 * 0.3**2 / (0.5**2 + 0.3**2))
    moved = []
    for gain, noise in ((1.0, 1.0), (1.0, 50.0), (7.0, 1.0)):

        def operator(x: Tensor, gain: float = gain) -> Tensor:
            return gain * x

        out = guided(UnitSteps(0.6, 3), mean, Measurement(operator, gain * y, noise, linear=False), 0.3)
        assert torch.allclose((out - mean).square().flatten(1).mean(1).sqrt(), torch.tensor(0.6 * unsure), rtol=1e-3)
        moved.append(out)
    assert torch.allclose(moved[0], moved[1], atol=1e-5) and torch.allclose(moved[0], moved[2], atol=1e-5)


def test_where_the_data_are_met_nothing_moves() -> None:
    mean = torch.randn(1, 3, 8, 8)
    out = guided(UnitSteps(), mean, Measurement(lambda x: 2 * x, 2 * mean, 1.0, linear=False), 1.0)
    assert torch.equal(out, mean)


# --- the residual -----------------------------------------------------------------------------------------------------


def degraded(kind: str, y: Tensor, tmp_path: Path) -> Degradation:
    audio = Audio(tmp_path / "a.wav", RATE, y.shape[-1], 1, "WAV", "FLOAT", "FILE")
    if kind == "room":
        rng = np.random.default_rng(0)
        return filtered(y, (rng.standard_normal(801) * np.exp(-np.arange(801) / 100)).astype(np.float32))
    if kind == "clip":
        return clipping(y, 0.5, y.numpy().T / 2, audio, RATE, 2.0)
    (tmp_path / "gaps.csv").write_text("0.05,0.1\n")
    return gaps(y, tmp_path / "gaps.csv", audio, RATE)


@pytest.mark.parametrize("kind", ["room", "clip", "gaps"])
def test_the_gradient_is_that_of_the_residual(kind: str, tmp_path: Path) -> None:
    """Against central differences of the loss along random directions."""
    rng = torch.Generator().manual_seed(0)
    y = torch.from_numpy(10 * voice(0.2))[None].clamp(-1, 1)
    what = degraded(kind, y, tmp_path)
    state = SPECTRUM.state(y) + 0.1 * torch.randn(SPECTRUM.state(y).shape, generator=rng)
    count = y.shape[-1]

    def view(u: Tensor) -> Tensor:
        return SPECTRUM.stft(what.record(SPECTRUM.samples(u, count)))

    measurement = compressed_measurement(view, SPECTRUM.stft(what.recording))
    pull = SpectrumSteps(data_std=0.5).guide(Answer(state), measurement, Noise.of(0)).misfit(state)[1]
    for _ in range(3):
        direction = torch.randn(state.shape, generator=rng)
        step = 1e-3
        up, down = (measurement.negative_log_likelihood(state + sign * step * direction).double() for sign in (1, -1))
        assert float(-(pull * direction).sum()) == pytest.approx(float((up - down) / (2 * step)), rel=0.05, abs=0.05)


def test_the_truth_has_no_residual(tmp_path: Path) -> None:
    s = torch.from_numpy(10 * voice(0.3))[None]
    for kind in ("room", "gaps"):
        what = degraded(kind, s, tmp_path)
        y = what.record(s) if kind == "room" else what.recording
        residual = compressed(SPECTRUM.stft(what.record(SPECTRUM.samples(SPECTRUM.state(s), s.shape[-1]))))
        assert float((residual - compressed(SPECTRUM.stft(y))).abs().max()) < 1e-2
    clipped = degraded("clip", s.clamp(-1, 1), tmp_path)
    assert torch.allclose(clipped.record(s), s.clamp(-1, 1), atol=1e-5)


def test_soft_sounds_count_by_the_power_of_two_thirds() -> None:
    x = torch.tensor([[[1.0 + 1.0j, 8.0 + 8.0j]]])
    small, large = compressed(x)[0, 0].norm(dim=-1)
    assert float(large / small) == pytest.approx(8 ** (2 / 3), rel=1e-3)
    assert torch.isfinite(compressed(torch.zeros(1, 2, 2, dtype=torch.complex64))).all()


# --- the run ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", ["dds", "stft", "both"])
def test_each_pull_undoes_a_room(guidance: str, prior: Path, tmp_path: Path) -> None:
    """An untrained network: the data do the work."""
    s, t = voice(0.6), np.arange(800) / RATE
    h = np.random.default_rng(3).standard_normal(800) * 10 ** (-3 * t / 0.05) / 8
    h[0] = 1
    wet = np.convolve(s, h)[: len(s)].astype(np.float32)
    file, where = write(tmp_path / "wet.wav", wet, subtype="FLOAT"), write(tmp_path / "h.wav", h, subtype="FLOAT")
    words = ("--rir", where, "--prior", prior, "--steps", 12, "--noise-db", -60, "--set", f"guidance={guidance}")
    enhance(file, "-o", tmp_path / "out", *words)
    found = read_audio(tmp_path / "out" / "wet.wav")[0][:, 0]
    assert (si_sdr(found, s) or 0) > (si_sdr(wet, s) or 0) + 3
    assert record(tmp_path / "out")["nfe"] == 12


@pytest.mark.parametrize("guidance", ["stft", "both"])
def test_the_result_scales_with_the_recording(guidance: str, prior: Path, tmp_path: Path) -> None:
    s, found = voice(0.5), []
    for gain in (1.0, 4.0):
        file = write(tmp_path / "a.wav", gain * np.clip(s, -0.1, 0.1), subtype="FLOAT")
        config = EnhanceConfig(clip=0.1 * gain, guidance=guidance)  # type: ignore[arg-type]
        network = load_speech_prior(prior, torch.device("cpu"))
        enhance_informed(open_audio(file), tmp_path / "b.wav", network, "one noise", config, 4, Stopwatch())
        found.append(read_audio(tmp_path / "b.wav")[0])
    assert np.allclose(found[1], 4 * found[0], atol=0.02 * float(np.abs(found[1]).max()))


def test_an_undisturbed_recording_comes_back(prior: Path, tmp_path: Path) -> None:
    """With nothing lost the residual alone leads back to the recording, however poor the prior."""
    s = voice(0.5)
    file = write(tmp_path / "a.wav", s, subtype="FLOAT")
    where = write(tmp_path / "h.wav", np.eye(1, 64, dtype=np.float32)[0], subtype="FLOAT")
    words = ("--rir", where, "--prior", prior, "--steps", 12, "--set", "guidance=stft")
    enhance(file, "-o", tmp_path / "out", *words)
    assert (si_sdr(read_audio(tmp_path / "out" / "a.wav")[0][:, 0], s) or 0) > 20


def test_what_pulls_is_chosen_by_the_degradation_or_by_name() -> None:
    assert guidance_of(EnhanceConfig(clip=0.5)) == "stft" and guidance_of(EnhanceConfig(rir=Path("h.wav"))) == "both"
    assert guidance_of(EnhanceConfig(clip=0.5, guidance="dds")) == "dds"
