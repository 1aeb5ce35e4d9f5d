"""The shipped network on voices and noises it was not trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from speech_cases import enhance, speech_data, write

from domains.speech.data import read_audio, read_mono
from domains.speech.metrics import estoi, si_sdr
from domains.speech.mixing import fitted, reverberant, scaled_to
from domains.speech.pipeline import WEIGHTS, load_speech_prior


def test_the_card_names_what_was_held_out() -> None:
    prior = load_speech_prior(None, torch.device("cpu"))
    text = " ".join(prior.card.data)
    assert "8312" not in text and "max_typing" not in text
    assert WEIGHTS.stat().st_size < 16 << 20


def test_better_than_the_wiener_filter(tmp_path: Path) -> None:
    """On two mixtures at 5 dB, default settings: more SI-SDR and ESTOI than the classical reference beside it."""
    data = speech_data()
    gains = []
    for voice, noise in (("8312-279790-0000", "max_typing"), ("8014-112586-0000", "esc10_rain_2-81731-A")):
        clean = read_mono(data / "clean" / f"{voice}.flac", 16000)[:64000]
        clip = fitted(read_mono(data / "noise" / f"{noise}.flac", 16000), len(clean))
        file = write(tmp_path / f"{voice}.wav", clean + scaled_to(clip, clean, 5.0), subtype="FLOAT")
        out = tmp_path / voice
        enhance(file, "-o", out, "--no-report")
        ours, classical = (read_audio(path / file.name)[0][:, 0] for path in (out, out / "reference"))
        gains.append([f(ours, clean) - f(classical, clean) for f in (si_sdr, estoi)])  # type: ignore[operator]
    assert bool((np.mean(gains, axis=0) > [1.5, 0.01]).all()), gains


@pytest.mark.parametrize("kind", ["clip", "gaps", "rir"])
def test_a_known_degradation_is_undone(kind: str, tmp_path: Path) -> None:
    """A second of a held-out voice, a third of the usual evaluations: more SI-SDR and ESTOI than before."""
    data = speech_data()
    clean = read_mono(data / "clean" / "8312-279790-0000.flac", 16000)[8000:26000]
    level = 0.25 * float(np.abs(clean).max())
    lost = np.arange(len(clean)) % 4000 < 480
    table = tmp_path / "gaps.csv"
    table.write_text("".join(f"{first / 16000},{(first + 480) / 16000}\n" for first in range(0, len(clean), 4000)))
    room = data / "rir" / "speechbrain_rir4.flac"
    degraded, known = {
        "clip": (np.clip(clean, -level, level), level),
        "gaps": (np.where(lost, 0, clean), table),
        "rir": (reverberant(clean, read_mono(room, 16000)), room),
    }[kind]
    file = write(tmp_path / "a.wav", degraded, subtype="FLOAT")
    enhance(file, "-o", tmp_path / "out", f"--{kind}", known, "--steps", 10, "--no-report")
    result = read_audio(tmp_path / "out" / "a.wav")[0][:, 0]
    for metric, least in ((si_sdr, 1.0), (estoi, 0.01)):
        assert (metric(result, clean) or 0) > (metric(degraded, clean) or 0) + least
