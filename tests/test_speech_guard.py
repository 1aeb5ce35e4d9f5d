"""The fidelity guard: the removed signal, whether it goes with the speech, and the verdict with its reasons."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from speech_cases import enhance, noisy_voice, record, syllables, tiny_prior, voice, write

from domains.speech.data import open_audio, read_audio
from domains.speech.guard import FOLLOWS, follows_limit, removal
from domains.speech.removed import band_energies, taken_out
from domains.speech.survey import BANDS_HZ

RATE = 16000


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_prior(tmp_path_factory.mktemp("prior") / "tiny.safetensors")


def without(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Samples `(n,)` without a band."""
    spectrum, hertz = np.fft.rfft(x), np.fft.rfftfreq(len(x), 1 / RATE)
    spectrum[(hertz >= low) & (hertz < high)] = 0
    return np.fft.irfft(spectrum, len(x)).astype(np.float32)


def babble(seconds: float, seed: int) -> np.ndarray:
    """Noise that swells as fast as speech, but by itself."""
    rng, times = np.random.default_rng(seed), np.arange(0, seconds + 1, 0.15)
    level = np.interp(np.arange(int(seconds * RATE)) / RATE, times, rng.normal(0, 8, len(times)))
    return (0.05 * rng.standard_normal(len(level)) * 10 ** (level / 20)).astype(np.float32)


def judged(tmp_path: Path, recording: np.ndarray, result: np.ndarray) -> tuple[float, list[str]]:
    before = open_audio(write(tmp_path / "a.wav", recording, subtype="FLOAT"))
    found = removal(before, write(tmp_path / "b.wav", result, subtype="FLOAT"), None, judge=True)
    return float(found.metrics["removed_follows_speech"] or 0), found.doubts


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_noise_alone_taken_out_is_not_flagged(seed: int, tmp_path: Path) -> None:
    speech = 0.05 * syllables(10.0)
    value, doubts = judged(tmp_path, speech + babble(10.0, seed), speech)
    assert value < FOLLOWS and not doubts


@pytest.mark.parametrize("band", range(4))
def test_a_band_of_the_speech_taken_out_is_flagged(band: int, tmp_path: Path) -> None:
    """Noise and a band of a voice removed together; the sentence names the band."""
    level = np.repeat(np.random.default_rng(5).normal(0, 10, 67), 2400)[: 10 * RATE]  # syllables of all bands alike
    speech = (0.02 * np.random.default_rng(4).standard_normal(10 * RATE) * 10 ** (level / 20)).astype(np.float32)
    low, high = BANDS_HZ[band], BANDS_HZ[band + 1] + (band == 3)
    value, doubts = judged(tmp_path, speech + 0.3 * babble(10.0, 0), without(speech, low, high))
    assert value > FOLLOWS and f"from {low:.0f} to {high - (band == 3):.0f} Hz" in doubts[0]


def test_speech_made_quieter_is_flagged(tmp_path: Path) -> None:
    speech = 0.05 * syllables(8.0)
    hiss = 0.01 * speech.std() * np.random.default_rng(0).standard_normal(len(speech)).astype(np.float32)
    value, doubts = judged(tmp_path, speech + hiss, 0.5 * speech)
    assert value > 0.8 and doubts


def test_the_finish_of_a_good_result_is_not_flagged(tmp_path: Path) -> None:
    """What goes with the speech but is 20 dB below it is no loss."""
    speech = 0.05 * syllables(8.0)
    value, doubts = judged(tmp_path, speech, 0.9 * speech)
    assert value == 0 and not doubts


def test_short_recordings_need_more() -> None:
    assert follows_limit(60) == follows_limit(8) == FOLLOWS < follows_limit(2) == 2 * FOLLOWS


def test_levels_by_band(tmp_path: Path) -> None:
    """Tones in three bands, two of them taken out, one of these by half."""
    t = np.arange(2 * RATE) / RATE
    low, middle, high = (0.1 * np.sin(2 * np.pi * f * t).astype(np.float32) for f in (250, 1000, 6000))
    audio = open_audio(write(tmp_path / "a.wav", low + middle + high + 0.2, subtype="FLOAT"))
    found = taken_out(audio, write(tmp_path / "b.wav", low + 0.5 * high, subtype="FLOAT")).metrics()
    assert found["removed_0_500_hz_db"] == pytest.approx(-100, abs=60) and found["removed_0_500_hz_db"] < -50
    assert found["removed_500_1500_hz_db"] == pytest.approx(0, abs=0.05)
    assert found["removed_3500_8000_hz_db"] == pytest.approx(-6.02, abs=0.05)
    assert found["removed_db"] == pytest.approx(10 * np.log10(1.25 / 3), abs=0.05)
    assert found["removed_above_8000_hz_db"] is None


def test_energies_are_those_of_the_samples() -> None:
    """Parseval: all bands together hold the windowed frames' energy, but for the offset's."""
    x = np.random.default_rng(0).standard_normal((RATE, 2)).astype(np.float32)
    found = band_energies(x, RATE).sum()
    assert found == pytest.approx(np.sum(np.hanning(512) ** 2) * 61 * 2 * 256, rel=0.03)
    assert band_energies(np.ones((RATE, 1), np.float32), RATE).sum() < 1e-5 * 61 * 256**2


@pytest.mark.parametrize(
    ("name", "subtype", "rate", "channels"), [("a.wav", "PCM_24", 48000, 2), ("b.flac", "PCM_16", 8000, 1)]
)
def test_the_removed_signal_is_written(
    name: str, subtype: str, rate: int, channels: int, prior: Path, tmp_path: Path
) -> None:
    """Same kind of file; recording = result + removed to the last bit of the sample type."""
    file = write(tmp_path / name, noisy_voice(1.3, rate, channels), rate, subtype)
    enhance(file, "-o", tmp_path / "out", "--prior", prior, "--removed")
    old, new = open_audio(file), open_audio(tmp_path / "out" / "removed" / name)
    for what in ("rate", "frames", "channels", "container", "subtype"):
        assert getattr(new, what) == getattr(old, what)
    recording, result, removed = (read_audio(p)[0] for p in (file, tmp_path / "out" / name, new.path))
    assert np.abs(recording - result - removed).max() <= (2**-23 if subtype == "PCM_24" else 2**-15)
    said = record(tmp_path / "out")
    assert f"removed/{name}" in said["outputs"] and "removed_db" in said["metrics"][name]
    level = 10 * np.log10(np.sum(removed**2) / np.sum(recording**2))
    assert said["metrics"][name]["removed_db"] == pytest.approx(level, abs=0.5)


def test_the_verdict_has_reasons(tmp_path: Path) -> None:
    """A sound that nothing is wrong with passes; a clipped one is to be looked at. Page and record say why."""
    for name, x, verdict in (
        ("good", noisy_voice(2.0, level=0.002), "pass"),
        ("bad", np.clip(noisy_voice(2.0), -0.05, 0.05), "check"),
    ):
        file = write(tmp_path / f"{name}.wav", x)
        enhance(file, "-o", tmp_path / name, "--method", "predict")
        said = record(tmp_path / name)["verdict"]
        page = (tmp_path / name / "report.html").read_text()
        assert said["verdict"] == verdict, said
        for word in ("Words:", "Removed:", "Clipping:", "No uncertainty: this method is a point estimator."):
            assert any(reason.startswith(word) for reason in said["reasons"]) and word in page
        assert "removed: recording minus result" in page
    assert any("clipped" in reason for reason in said["reasons"])


def test_draws_say_their_spread(prior: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "a.wav", noisy_voice(1.0))
    enhance(file, "-o", tmp_path / "one", "--prior", prior, "--method", "storm", "--steps", 3)
    enhance(file, "-o", tmp_path / "two", "--prior", prior, "--method", "storm", "--steps", 3, "--samples", 2)
    one, two = (record(tmp_path / name)["verdict"]["reasons"] for name in ("one", "two"))
    assert any("one draw" in reason for reason in one) and any(reason.startswith("Spread") for reason in two)


def test_a_known_degradation_is_not_judged_by_what_it_changed(prior: Path, tmp_path: Path) -> None:
    """But by its misfit; where the recording is kept there is none to tell."""
    x = voice(1.0)
    file = write(tmp_path / "a.wav", np.clip(x, -0.1, 0.1), subtype="FLOAT")
    where = write(tmp_path / "h.wav", np.eye(1, 64, dtype=np.float32)[0], subtype="FLOAT")
    for known, misfit in ((("--clip", 0.1), False), (("--rir", where), True)):
        enhance(file, "-o", tmp_path / known[0][2:], *known, "--prior", prior, "--steps", 3)
        said = record(tmp_path / known[0][2:])
        assert "removed_db" in said["metrics"]["a.wav"] and "removed_follows_speech" not in said["metrics"]["a.wav"]
        assert any(reason.startswith("Misfit") for reason in said["verdict"]["reasons"]) == misfit
