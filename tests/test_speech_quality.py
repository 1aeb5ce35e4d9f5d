"""The shipped network on voices and noises it was not trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from speech_cases import enhance, speech_data, write

from domains.speech.data import read_audio, read_mono
from domains.speech.metrics import estoi, si_sdr
from domains.speech.mixing import fitted, scaled_to
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
