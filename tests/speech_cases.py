"""What the speech tests share: a voice, files of every kind, a tiny prior, calls of the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from cli import main
from domains.speech.mixing import synthetic_voice
from domains.speech.spectrum import Spectrum
from suite.masking import MaskUNet
from suite.network import Preconditioned
from suite.prior import Card, Prior

ROOT = Path(__file__).resolve().parent.parent
RATE = 16000


def speech_data() -> Path:
    """The folder of real speech, from DIFFSUITE_DATA or beside the checkout; skips where there is none."""
    folder = Path(os.environ.get("DIFFSUITE_DATA", ROOT.parent / "shared" / "data")) / "speech"
    if not folder.is_dir():
        pytest.skip("no real speech here (set DIFFSUITE_DATA)")
    return folder


def voice(seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    """A synthetic voice `(n,)`."""
    return synthetic_voice(seconds, rate)


def syllables(seconds: float) -> np.ndarray:
    """Noise whose level changes in time and in frequency as that of speech does, `(n,)`."""
    rng, spectrum, count = np.random.default_rng(1), Spectrum(), int(seconds * RATE)
    frames = spectrum.columns(count) * spectrum.frames
    level = np.repeat(np.repeat(rng.normal(0, 10, (16, -(-frames // 12))), 16, axis=0), 12, axis=1)[:, :frames]
    noise = rng.standard_normal((2, 256, frames)) * 10 ** (level / 20)
    return spectrum.istft(torch.complex(*torch.from_numpy(noise.astype(np.float32))), count).numpy()


def noisy_voice(seconds: float = 1.0, rate: int = RATE, channels: int = 1, level: float = 0.02) -> np.ndarray:
    """A synthetic voice in white noise `(n, channels)`."""
    rng = np.random.default_rng(0)
    clean = voice(seconds, rate)
    return (clean[:, None] + level * rng.standard_normal((len(clean), channels))).astype(np.float32)


def write(path: Path, samples: np.ndarray, rate: int = RATE, subtype: str | None = None) -> Path:
    """An audio file of the kind its name says."""
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def tiny_prior(path: Path, spectrum: Spectrum | None = None) -> Path:
    """A small untrained network whose gain is near one half, so that results resemble their input."""
    spectrum = spectrum or Spectrum()
    torch.manual_seed(0)
    channels = spectrum.channels
    net = MaskUNet(2 * channels, channels, 0.45, channels=[8, 8], blocks=1, dims=2, features=16)
    with torch.no_grad():
        net.unet.tail.weight.normal_(0, 0.02)
    card = Card(
        name="tiny",
        domain="speech",
        description="untrained",
        unit=spectrum.unit,
        scale=1,
        offset=0,
        value_range=(-20, 20),
        channels=channels,
        condition_channels=channels,
        architecture="suite.masking.MaskUNet",
        network=net.settings,
        process="sb-ve",
        process_parameters={"k": 2.6, "c": 0.4},
        sigma_data=0.45,
        sigma_range=(0.05, 50),
        data=["none"],
        validation_data=["none"],
        licence="none",
        training={},
        validation={},
    )
    Prior(Preconditioned(net, 0.45, (0.05, 50)), card).save(path)
    return path


def enhance(*words: Any, code: int = 0) -> None:
    """`speech enhance` with these words; fails the test unless it ends with `code`."""
    assert main(["speech", "enhance", *map(str, words), "--quiet"]) == code


def record(folder: Path) -> dict[str, Any]:
    """The run record in a folder."""
    return dict(json.loads((folder / "run.json").read_text()))
