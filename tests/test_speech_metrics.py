"""Metrics against closed forms, the Wiener filter against what it is for, resampling in every state of torchaudio."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from speech_cases import speech_data, voice, write

from cli import main
from domains.speech import metrics, resampling
from domains.speech.data import read_mono
from domains.speech.mixing import fitted, scaled_to
from domains.speech.pipeline import Filter
from domains.speech.spectrum import Spectrum
from domains.speech.survey import Energies, buried_seconds
from suite.errors import InputError


def orthogonal(count: int = 4000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three orthogonal signals of unit energy."""
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((count, 3)))[0].T
    return q[0].astype(np.float32), q[1].astype(np.float32), q[2].astype(np.float32)


def test_energy_ratios_of_orthogonal_parts() -> None:
    s, n, a = orthogonal()
    e = 2 * s + 0.2 * n + 0.02 * a
    assert metrics.si_sdr(e, s) == pytest.approx(10 * np.log10(4 / (0.04 + 0.0004)), abs=1e-3)
    sir, sar = metrics.energy_ratios(e, s, n)
    assert sir == pytest.approx(20, abs=1e-3) and sar == pytest.approx(40, abs=1e-2)


@settings(max_examples=20)
@given(st.floats(0.01, 100), st.floats(-20, 20))
def test_si_sdr_ignores_scale(scale: float, snr: float) -> None:
    s, n, _ = orthogonal()
    found = metrics.si_sdr((scale * (s + 10 ** (-snr / 20) * n)).astype(np.float32), s)
    assert found == pytest.approx(snr, abs=1e-2)


def test_segmental_snr_and_spectral_distance() -> None:
    rng = np.random.default_rng(0)
    s = rng.standard_normal(512 * 20).astype(np.float32)
    half = (0.5 * s).astype(np.float32)
    assert metrics.segmental_snr(half, s) == pytest.approx(20 * np.log10(2), abs=1e-3)
    assert metrics.log_spectral_distance(half, s) == pytest.approx(20 * np.log10(2), abs=1e-3)
    assert metrics.segmental_snr(s, s) == pytest.approx(35)


def test_undefined_is_null() -> None:
    silent, short = np.zeros(8000, np.float32), np.ones(100, np.float32)
    assert all(value is None for value in metrics.evaluate(silent, silent, 16000).values())
    found = metrics.evaluate(short, short, 16000)
    assert found["estoi"] is None and found["pesq"] is None and found["si_sdr"] is not None
    with pytest.raises(InputError, match="aligned"):
        metrics.evaluate(silent, short, 16000)


def test_more_noise_is_worse_in_every_metric() -> None:
    folder = speech_data()
    s = read_mono(folder / "clean" / "8014-112586-0000.flac", 16000)[:64000]
    noise = np.random.default_rng(0).standard_normal(len(s)).astype(np.float32)
    good, bad = (metrics.evaluate(s + scaled_to(noise, s, snr), s, 16000) for snr in (15.0, 0.0))
    for name in ("si_sdr", "estoi", "segmental_snr", *(["pesq"] if good["pesq"] is not None else [])):
        assert good[name] > bad[name]
    assert good["lsd"] < bad["lsd"]


def test_room_measures_of_an_exponential_decay() -> None:
    """`h = e^{-t/tau}` noise: T60 = 3 tau ln 10; direct over tail energy as built."""
    rate, t60 = 16000, 0.5
    t = np.arange(int(1.5 * rate)) / rate
    tail = np.random.default_rng(0).standard_normal(len(t)) * 10 ** (-3 * t / t60)
    tail[: int(0.003 * rate)] = 0
    h = (tail / np.sqrt((tail**2).sum())).astype(np.float32)
    h[0] = 2.0
    assert metrics.direct_to_reverberant(h, rate) == pytest.approx(20 * np.log10(2), abs=0.05)
    assert metrics.reverberation_time(h[1:], rate) == pytest.approx(t60, rel=0.05)
    assert metrics.direct_to_reverberant(np.eye(1, 1000, dtype=np.float32)[0], rate) is None


def test_evaluate_pairs_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, gain in (("result", 0.5), ("clean", 1.0)):
        (tmp_path / folder).mkdir()
        for name in ("a.wav", "b.wav"):
            write(tmp_path / folder / name, gain * voice(0.3), subtype="FLOAT")
    words = ["speech", "evaluate", str(tmp_path / "result"), "--reference", str(tmp_path / "clean"), "--json"]
    assert main(words) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["settings"]["files"] == 2 and said["metrics"]["si_sdr"] > 100
    (tmp_path / "clean" / "b.wav").unlink()
    assert main(words) == 2
    assert "b.wav" in capsys.readouterr().err


# --- the classical reference ------------------------------------------------------------------------------------------


def test_wiener_removes_steady_noise() -> None:
    folder = speech_data()
    s = read_mono(folder / "clean" / "8014-112586-0000.flac", 16000)
    y = s + scaled_to(np.random.default_rng(0).standard_normal(len(s)).astype(np.float32), s, 5.0)
    stream = Filter(Spectrum(), 1)
    x = torch.from_numpy(y)[None]
    out = torch.cat([*(stream.push(part) for part in x.split(5000, dim=1)), stream.finish()], dim=1)[0].numpy()
    assert out.shape == y.shape
    before, after = metrics.si_sdr(y, s), metrics.si_sdr(out, s)
    assert before == pytest.approx(5, abs=0.1) and after > before + 4


def test_wiener_leaves_silence_silent() -> None:
    stream = Filter(Spectrum(), 1)
    out = torch.cat([stream.push(torch.zeros(1, 3000)), stream.finish()], dim=1)
    assert out.shape == (1, 3000) and not out.any()


# --- resampling -------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_verdict() -> None:
    """A fresh verdict on torchaudio before and after."""
    resampling.torchaudio_status.cache_clear()
    yield
    resampling.torchaudio_status.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
        del sys.modules[name]


def test_backends_agree_in_the_pass_band() -> None:
    t = np.arange(24000) / 48000
    x = (np.sin(2 * np.pi * 440 * t) * scipy.signal.windows.tukey(len(t), 0.2)).astype(np.float32)
    soxr_, scipy_ = (resampling.resample(x, 48000, 16000, backend) for backend in ("soxr", "scipy"))
    assert soxr_.shape == scipy_.shape == (8000,)
    assert np.abs(soxr_ - x[::3]).max() < 1e-3 and np.abs(scipy_ - x[::3]).max() < 5e-3


@settings(max_examples=20)
@given(st.integers(1, 500), st.sampled_from([(48000, 16000), (8000, 16000), (44100, 16000), (16000, 44100)]))
def test_lengths(count: int, rates: tuple[int, int]) -> None:
    old, new = rates
    assert len(resampling.resample(np.ones((count, 2), np.float32), old, new)) == -(-count * new // old)


@pytest.mark.parametrize(
    "error", ["OSError('libc10_cuda.so: cannot open')", "RuntimeError('CUDA')", "ImportError('x')"]
)
def test_a_torchaudio_that_does_not_load(
    error: str, no_verdict: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / "__init__.py").write_text(f"raise {error}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    module, reason = resampling.torchaudio_status()
    assert module is None and "same PyTorch index" in reason
    x = np.ones(480, np.float32)
    assert len(resampling.resample(x, 48000, 16000)) == 160
    with pytest.raises(InputError, match="same PyTorch index"):
        resampling.resample(x, 48000, 16000, "torchaudio")


def test_without_torchaudio(no_verdict: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    module, reason = resampling.torchaudio_status()
    assert module is None and reason


def test_torchaudio_is_used_when_asked(no_verdict: None, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, functional = ModuleType("torchaudio"), ModuleType("torchaudio.functional")
    functional.resample = lambda x, old, new, **_: x[..., :: old // new]  # type: ignore[attr-defined]
    fake.functional = functional  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchaudio", fake)
    x = np.arange(9, dtype=np.float32)
    assert np.array_equal(resampling.resample(x, 48000, 16000, "torchaudio"), [0, 3, 6])


def test_noise_is_repeated_and_scaled() -> None:
    assert np.array_equal(fitted(np.arange(3, dtype=np.float32), 7, 2), [2, 0, 1, 2, 0, 1, 2])
    with pytest.raises(InputError, match="silent"):
        scaled_to(np.zeros(4, np.float32), np.ones(4, np.float32), 0.0)


def test_seconds_that_were_mostly_removed() -> None:
    rng = np.random.default_rng(0)
    second = 16000 // 512 * 512
    x = rng.standard_normal((4 * second, 1)).astype(np.float32)
    gain = np.repeat(np.array([1.0, 0.4, 0.6, 0.01], np.float32), second)[:, None]  # the last second is silence by now
    before, after = Energies(16000), Energies(16000)
    for energies, samples in ((before, x), (after, gain * x)):
        energies.push(samples)
        energies.finish()
    assert buried_seconds(before, after) == [1]
