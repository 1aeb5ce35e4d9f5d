"""The training penalty that follows hearing, the network's sense of place, and DNSMOS by a model of the user's."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from speech_cases import noisy_voice, syllables, voice, write
from torch import nn

from cli import main
from domains.speech.dnsmos import FITS, SAMPLES, Dnsmos
from domains.speech.metrics import estoi
from domains.speech.perception import Perception, PerceptionConfig, barks, envelope_correlation, third_octaves
from domains.speech.spectrum import Spectrum
from suite.errors import InputError
from suite.masking import MaskUNet

SPECTRUM = Spectrum()


def state(x: np.ndarray) -> torch.Tensor:
    return SPECTRUM.state(torch.from_numpy(x)[None])


@pytest.mark.parametrize("term", ["correlation", "loudness", "magnitude"])
def test_the_penalty_grows_with_the_noise(term: str) -> None:
    perceived = Perception(SPECTRUM, PerceptionConfig(**{term: 1.0}))
    clean = 5 * voice(1.5)
    noise = np.random.default_rng(0).standard_normal(len(clean)).astype(np.float32)
    values = [float(perceived(state(clean + size * noise), state(clean))) for size in (0.0, 0.05, 0.2, 0.8)]
    assert values[0] == pytest.approx(0, abs=2e-3) and values == sorted(values) and values[-1] > values[1] + 0.02
    guess = state(clean + 0.2 * noise).requires_grad_()
    perceived(guess, state(clean)).sum().backward()
    assert guess.grad is not None and bool(guess.grad.isfinite().all()) and bool(guess.grad.any())


def test_the_correlation_is_estoi() -> None:
    """Near pystoi's value, which works at 10 kHz with other windows."""
    frequencies = np.arange(256) * 16000 / 510
    clean = syllables(3.0)
    noise = float(clean.std()) * np.random.default_rng(0).standard_normal(len(clean)).astype(np.float32)
    for size in (0.1, 0.5, 1.0):
        powers = [
            third_octaves(frequencies) @ SPECTRUM.stft(torch.from_numpy(x)[None]).abs().square()
            for x in (clean + size * noise, clean)
        ]
        found, wanted = float(envelope_correlation(*powers, 48)), estoi(clean + size * noise, clean)
        assert wanted is not None and found == pytest.approx(wanted, abs=0.12)


def test_bands_cover_what_they_should() -> None:
    frequencies = np.arange(256) * 16000 / 510
    assert bool((barks(frequencies).sum(0) == 1).all())
    octaves = third_octaves(frequencies)
    assert octaves.shape == (15, 256) and bool((octaves.sum(1) >= 1).all()) and not bool(octaves[:, :3].any())


def test_places_tell_frequencies_apart() -> None:
    torch.manual_seed(0)
    settings = {"channels": [4], "blocks": 1, "dims": 2, "features": 8}
    blind, seeing = (MaskUNet(4, 2, 0.5, places, **settings) for places in (0, 2))
    for net in (blind, seeing):
        nn.init.normal_(net.unet.tail.weight)
    x = torch.ones(1, 4, 16, 16)
    rows = [net(x, torch.zeros(1)).detach()[0, 0, :, 8] for net in (blind, seeing)]
    assert float(rows[0][6:10].std()) < 1e-5 < 1e-3 < float(rows[1][6:10].std())
    assert seeing.settings["places"] == 2 and MaskUNet(**seeing.settings).places == 2


# --- DNSMOS -----------------------------------------------------------------------------------------------------------


def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """onnxruntime with a model that answers 3, 3, 3; returns the windows it was given."""
    seen: list[np.ndarray] = []

    class Session:
        def __init__(self, path: str, providers: list[str]) -> None:
            if b"bad" in Path(path).read_bytes():
                raise RuntimeError("no protobuf")

        def get_inputs(self) -> list[SimpleNamespace]:
            return [SimpleNamespace(name="input_1", shape=["batch", SAMPLES])]

        def run(self, _: None, fed: dict[str, np.ndarray]) -> list[np.ndarray]:
            seen.append(fed["input_1"])
            return [np.full((1, 3), 3.0, np.float32)]

    module = ModuleType("onnxruntime")
    module.InferenceSession = Session  # type: ignore[attr-defined]
    module.__spec__ = SimpleNamespace(name="onnxruntime")  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    return seen


def test_dnsmos_windows_and_scales(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = stand_in(monkeypatch)
    (tmp_path / "model.onnx").write_bytes(b"model")
    score = Dnsmos(tmp_path / "model.onnx")
    found = score(voice(12.0), 16000)
    assert [window.shape for window in seen] == [(1, SAMPLES)] * 3
    assert found == pytest.approx({name: a * 9 + b * 3 + c for name, (a, b, c) in FITS.items()})
    assert score(voice(1.0), 16000).keys() == FITS.keys() and seen[-1].shape == (1, SAMPLES)
    assert score(np.zeros(16000, np.float32), 16000) == dict.fromkeys(FITS)
    (tmp_path / "other.onnx").write_bytes(b"bad")
    with pytest.raises(InputError, match="is not the ONNX model"):
        Dnsmos(tmp_path / "other.onnx")


def test_evaluate_adds_what_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clean, noisy = write(tmp_path / "c.wav", voice(0.6)), write(tmp_path / "n.wav", noisy_voice(0.6))
    room = write(tmp_path / "room.wav", np.exp(-np.arange(800, dtype=np.float32) / 100), subtype="FLOAT")
    (tmp_path / "model.onnx").write_bytes(b"model")
    words = ["speech", "evaluate", str(noisy), "--reference", str(clean)]
    stand_in(monkeypatch)
    assert main([*words, "--rir", str(room), "--dnsmos", str(tmp_path / "model.onnx"), "--json"]) == 0
    out = capsys.readouterr().out
    assert all(f'"{key}"' in out for key in ("drr", "drr_room", "dnsmos_ovr", "si_sdr"))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main([*words, "--dnsmos", str(tmp_path / "model.onnx")]) == 2
    assert "onnxruntime" in capsys.readouterr().err
