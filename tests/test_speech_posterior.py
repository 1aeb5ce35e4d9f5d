"""Posterior mode: known degradations, with an untrained network (a white prior), so that the data must do the work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from speech_cases import enhance, record, tiny_prior, voice, write

from domains.speech.data import Audio, read_audio
from domains.speech.informed import joined
from domains.speech.metrics import si_sdr
from domains.speech.mixing import reverberant
from domains.speech.posterior import clipping, gaps, room, sample_variance
from domains.speech.spectrum import Spectrum
from suite.operators import adjoint_error

RATE = 16000


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_prior(tmp_path_factory.mktemp("prior") / "tiny.safetensors")


def response() -> np.ndarray:
    """A room response: direct sound and a decaying tail."""
    t = np.arange(1600) / RATE
    tail = np.random.default_rng(3).standard_normal(1600) * 10 ** (-3 * t / 0.1)
    tail[0] = 6.0
    return (tail / 6).astype(np.float32)


def audio(path: Path, count: int, rate: int = RATE, channels: int = 1) -> Audio:
    return Audio(path, rate, count, channels, "WAV", "FLOAT", "FILE")


def test_a_known_room_is_undone(prior: Path, tmp_path: Path) -> None:
    s, h = voice(0.8), response()
    wet = reverberant(s, h)
    file = write(tmp_path / "wet.wav", wet, subtype="FLOAT")
    where = write(tmp_path / "rir.wav", h, subtype="FLOAT")
    enhance(file, "-o", tmp_path / "out", "--rir", where, "--prior", prior, "--steps", 12, "--noise-db", -60)
    found = read_audio(tmp_path / "out" / "wet.wav")[0][:, 0]
    assert si_sdr(found, s) > si_sdr(wet, s) + 10
    said = record(tmp_path / "out")
    assert (said["method"], said["estimator"], said["nfe"]) == ("posterior", "point", 12)
    assert said["misfit_chi2"] == said["metrics"]["wet.wav"]["misfit_chi2"] > 0
    assert {entry["file"] for entry in said["inputs"]} == {"wet.wav", "rir.wav"}


def test_the_room_operator_is_simulates() -> None:
    s, h = torch.from_numpy(voice(0.3))[None], response()
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        what = room(s, write(Path(folder) / "rir.wav", h, subtype="FLOAT"), RATE)
    assert np.allclose(what.operator(s)[0].numpy(), reverberant(s[0].numpy(), h), atol=1e-4)
    assert adjoint_error(what.operator, torch.randn_like(s), torch.randn_like(s)) < 1e-5


def test_gaps_are_filled_and_nothing_else(prior: Path, tmp_path: Path) -> None:
    s = voice(1.0, 48000)
    x = s.copy()
    x[24000:25200] = 0
    file = write(tmp_path / "a.wav", x, 48000, "FLOAT")
    table = tmp_path / "gaps.csv"
    table.write_text("start,end\n0.5,0.525\n")
    enhance(file, "-o", tmp_path / "out", "--gaps", table, "--prior", prior, "--steps", 8)
    found = read_audio(tmp_path / "out" / "a.wav")[0][:, 0]
    outside = np.ones(len(x), bool)
    outside[24000:25200] = False
    assert np.allclose(found[outside], x[outside], atol=1e-3)
    assert not np.allclose(found[~outside], 0, atol=1e-6)


def test_clipped_samples_are_at_least_the_level(prior: Path, tmp_path: Path) -> None:
    s = voice(0.8)
    level = 0.4 * float(np.abs(s).max())
    x = np.clip(s, -level, level)
    file = write(tmp_path / "a.wav", x, subtype="FLOAT")
    enhance(file, "-o", tmp_path / "out", "--clip", level, "--prior", prior, "--steps", 8)
    found = read_audio(tmp_path / "out" / "a.wav")[0][:, 0]
    cut = np.abs(x) >= 0.999 * level
    assert np.allclose(found[~cut], x[~cut], atol=1e-3)
    assert bool((np.sign(x[cut]) * found[cut] >= 0.98 * level).all())


def test_what_is_filled_in_joins_what_is_kept() -> None:
    """No step at either edge, the estimate itself further in, the recording outside."""
    t = np.arange(1600, dtype=np.float32)[:, None] / RATE
    recording, kept = np.sin(600 * t), np.ones((1600, 1), bool)
    kept[400:900], kept[1590:] = False, False
    estimate = recording + 0.2
    out = joined(estimate, recording, kept, RATE)
    assert np.array_equal(out[kept], recording[kept])
    assert np.abs(np.diff(out - recording, axis=0)).max() < 0.02
    assert np.allclose(out[600:700], estimate[600:700], atol=1e-4)


def test_masks_at_another_rate(tmp_path: Path) -> None:
    """At the model's rate no sample counts as known in which a lost one takes part."""
    table = tmp_path / "gaps.csv"
    table.write_text("0.1,0.2\n")
    what = gaps(torch.zeros(1, 8000), table, audio(tmp_path / "a.wav", 24000, 48000), RATE)
    known = what.known[0].numpy()
    assert not known[1600:3200].any() and known[:1590].all() and known[3210:].all()
    x = np.zeros((100, 1), np.float32)
    x[50] = -0.5
    y = torch.from_numpy(x.T.copy()) * 2
    what = clipping(y, 0.5, x, audio(tmp_path / "a.wav", 100), RATE, 2.0)
    assert int((~what.known).sum()) == 1
    pulled = what.constraint(torch.zeros_like(y))  # type: ignore[misc]
    assert float(pulled[0, 50]) == -1.0 and int((pulled != 0).sum()) == 1


def test_variance_of_samples() -> None:
    """A small error of the state, carried to samples, has the variance that is told."""
    spectrum = Spectrum()
    x = torch.randn(1, 16000, generator=torch.Generator().manual_seed(0))
    state = spectrum.state(x)
    error = 0.01 * torch.randn(state.shape, generator=torch.Generator().manual_seed(1))
    moved = spectrum.expand(spectrum.unfold(state + error)) - spectrum.expand(spectrum.unfold(state))
    energy = float((torch.hann_window(510) ** 2).sum())
    told = float(sample_variance(spectrum, state, 1e-4))
    assert float(moved.abs().square().mean()) / energy == pytest.approx(told, rel=0.05)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--clip", "0.5", "--bandwidth", "4000"], "--bandwidth and --clip"),
        (["--method", "posterior"], "none is given"),
        (["--method", "bridge", "--clip", "0.5"], "posterior"),
        (["--bandwidth", "9000"], "8000 Hz"),
        (["--clip", "2"], "full scale"),
        (["--gaps", "BAD"], "gaps"),
        (["--clip", "0.5", "--samples", "2"], "point estimate"),
    ],
)
def test_refusals(words: list[str], told: str, prior: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "a.wav", voice(0.3))
    (tmp_path / "gaps.csv").write_text("0.1,5.0\n")
    words = [str(tmp_path / "gaps.csv") if word == "BAD" else word for word in words]
    enhance(file, "-o", tmp_path / "out", "--prior", prior, *words, code=2)
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
