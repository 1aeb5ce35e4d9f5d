"""Training pairs, the split, and `speech train` from folders to a prior that enhances."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from speech_cases import ROOT, enhance, noisy_voice, voice, write

from cli import main
from domains.speech.config import EnhanceConfig
from domains.speech.spectrum import Spectrum
from domains.speech.training import DataConfig, SpeechTrainingConfig, collect, coloured, cut, mixtures, split
from suite.config import load_config
from suite.errors import InputError
from suite.prior import load_prior


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three speakers, three noises, one room."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for kind in ("clean", "noise", "rir"):
        (folder / kind).mkdir()
    for k, name in enumerate(("11-a", "12-a", "13_a")):
        write(folder / "clean" / f"{name}.wav", np.roll(voice(1.2), 3000 * k))
    for name in ("hum-A", "hum-B", "hiss", "rattle"):
        write(folder / "noise" / f"{name}.wav", 0.1 * rng.standard_normal(9000).astype(np.float32))
    write(folder / "rir" / "room.wav", np.eye(1, 400, dtype=np.float32)[0])
    return folder


def config(**data: object) -> SpeechTrainingConfig:
    return SpeechTrainingConfig(data=DataConfig(validation=["13", "rattle"], **data))  # type: ignore[arg-type]


def test_pairs_are_speech_and_speech_in_noise(corpus: Path) -> None:
    source = mixtures([corpus], config(snr_db=(3.0, 3.0), babble=0.0, coloured=0.0, level_db=0.0))
    clean, noisy = source.batch(4, 32, torch.Generator().manual_seed(0))
    assert clean.shape == noisy.shape == (4, source.channels, 64, 32)
    spectrum = source.spectrum
    for x, y in zip(*(spectrum.expand(spectrum.unfold(side)) for side in (clean, noisy)), strict=True):
        ratio = 10 * torch.log10(x.abs().square().sum() / (y - x).abs().square().sum())
        assert float(ratio) == pytest.approx(3.0, abs=0.05)
    again = source.batch(4, 32, torch.Generator().manual_seed(0))
    assert torch.equal(again[0], clean) and torch.equal(again[1], noisy)
    assert not torch.equal(source.batch(4, 32, torch.Generator().manual_seed(1))[0], clean)


def test_the_level_is_one(corpus: Path) -> None:
    """Examples have the level that `speech enhance` gives a recording."""
    from domains.speech.survey import frame_energies, level

    source = mixtures([corpus], config(level_db=0.0))
    _, noisy = source.batch(6, 64, torch.Generator().manual_seed(2))
    x = source.spectrum.samples(noisy, 63 * 256)
    for item in x:
        assert level(frame_energies(item[:, None].numpy(), 512).max(-1)) == pytest.approx(1.0, rel=0.15)


def test_a_share_sees_no_noisy_signal(corpus: Path) -> None:
    source = mixtures([corpus], config(unconditional=0.5))
    clean, noisy = source.batch(60, 8, torch.Generator().manual_seed(0))
    absent = (noisy == 0).flatten(1).all(1)
    assert 15 < int(absent.sum()) < 45 and not bool((clean == 0).flatten(1).all(1).any())


def test_speakers_and_recordings_stay_on_one_side(corpus: Path) -> None:
    speech, noise = collect([corpus], "clean", 16000), collect([corpus], "noise", 16000)
    assert set(speech) == {"11", "12", "13"} and set(noise) == {"hum", "hiss", "rattle"}
    train, held_out = split(noise, DataConfig(validation=["hum"], exclude=["hiss"]), "noises")
    assert set(train) == {"rattle"} and len(held_out["hum"]) == 2
    with pytest.raises(InputError, match=r"data\.validation"):
        split(speech, DataConfig(), "speakers")


def test_coloured_noise_falls() -> None:
    x = coloured(256, 400, np.random.default_rng(0)).abs().square().mean(1)
    assert float(x[10:40].mean()) > float(x[200:].mean())


def test_cuts_avoid_silence() -> None:
    clip = torch.zeros(4, 1000, dtype=torch.complex64)
    clip[:, 400:600] = 1.0
    part = cut(clip, 100, np.random.default_rng(0))
    assert part.shape == (4, 100) and bool(part.abs().any())
    assert cut(clip[:, :30] + 1, 100, np.random.default_rng(0)).shape == (4, 100)


def test_train_then_enhance(corpus: Path, tmp_path: Path) -> None:
    settings = {
        "network": {"masking": True, "channels": [4, 4], "blocks": 1, "features": 8},
        "process": "sb-ve",
        "sigma_data": 0.45,
        "noise": {"mean": None, "pinned": 0.5, "low": 0.05, "high": 50.0},
        "patch": 16,
        "batch": 2,
        "steps": 4,
        "validate_every": 2,
        "validation_levels": [1.0],
        "data": {"validation": ["13", "rattle"]},
    }
    file, prior = tmp_path / "train.yaml", tmp_path / "prior.safetensors"
    file.write_text(yaml.safe_dump(settings))
    words = ["speech", "train", "--data", str(corpus), "--config", str(file), "--quiet"]
    assert main([*words, "-o", str(prior), "--minutes", "0"]) == 0
    assert load_prior(prior).card.training["steps"] == 1
    assert main([*words, "-o", str(prior), "--resume", "--overwrite"]) == 0
    card = load_prior(prior).card
    assert card.training["steps"] == 4
    assert Spectrum.of_unit(card.unit) == Spectrum() and "13" in card.validation_data[0]
    assert set(card.validation["rmse"]) == {"1", "y"}
    recording = write(tmp_path / "a.wav", noisy_voice(0.3))
    enhance(recording, "-o", tmp_path / "out", "--prior", prior, "--steps", 2)
    assert main([*words, "-o", str(prior)]) == 2  # it exists


def test_the_configurations_are_whole() -> None:
    for name in ("train", "train-gpu"):
        load_config(SpeechTrainingConfig, ROOT / "configs" / "speech" / f"{name}.yaml")
    assert load_config(EnhanceConfig, ROOT / "configs" / "speech" / "enhance.yaml") == EnhanceConfig()
