"""What is made of estimates: mirror images, what counts as haze, haze over time, the verdict; and what networks are trained on."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from ultrasound_files import cine, dicom, record, save_dicom, save_prior, ultrasound, write_npz

from domains.ultrasound.augmentation import blended, placed, regraded, regrained
from domains.ultrasound.certainty import certainty, steady, taken
from domains.ultrasound.context import context
from domains.ultrasound.phantom import heart
from domains.ultrasound.restoration import predicted
from suite.prior import load_prior, read_card


def core(peak: float, side: int = 48) -> Tensor:
    """Haze with a core of this many grey levels and a faint rim of 10, `(1, side, side)`, grey 0..1."""
    haze = torch.zeros(1, side, side)
    haze[0, 8:20, 8:20] = 10 / 255
    haze[0, 12:16, 12:16] = peak / 255
    return haze


def test_weak_estimates_count_near_strong_ones_only() -> None:
    """A rim of 10 levels about a core of 100 is kept; far from it, or about nothing strong, it is not."""
    strong, weak = (taken(core(peak), (20.0, 50.0), 0.0)[0] for peak in (100.0, 15.0))
    assert float(strong[14, 14]) == pytest.approx(100 / 255) and float(strong[10, 10]) == pytest.approx(10 / 255)
    assert float(weak.max()) == 0
    far = core(100.0)
    far[0, 40:46, 40:46] = 10 / 255
    assert float(taken(far, (20.0, 50.0), 0.0)[0, 40:46, 40:46].max()) == 0
    between = certainty(torch.full((1, 32, 32), 35 / 255), (20.0, 50.0))
    assert_close(between, torch.full((1, 32, 32), 0.5))  # half way from 20 to 50


@given(st.integers(0, 1000), st.floats(0, 40))
def test_what_is_taken_is_between_nothing_and_the_estimate(seed: int, threshold: float) -> None:
    haze = torch.rand((2, 24, 24), generator=torch.Generator().manual_seed(seed))
    found = taken(haze, (20.0, 50.0), threshold)
    assert bool((found >= 0).all()) and bool((found <= haze).all())
    assert_close(taken(haze, (0.0, 0.0), threshold), (haze - threshold / 255).clamp_min(0))
    assert_close(taken(haze.flip(-1), (20.0, 50.0), threshold), found.flip(-1))


def test_certainty_does_not_come_and_go() -> None:
    """Of a core that reaches what counts in every second frame only, all frames are taken alike."""
    haze = torch.cat([core(100.0), core(25.0)] * 4)
    rim = taken(haze, (30.0, 60.0), 0.0, window=99)[:, 10, 10]
    assert_close(rim, rim[:1].expand(8))
    assert 0 < float(rim[0]) < 10 / 255
    assert float(taken(haze, (30.0, 60.0), 0.0)[:, 10, 10].std()) > 0.01


def test_certain_levels_must_rise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_npz(tmp_path / "a.npz")
    assert ultrasound("dehaze", tmp_path / "a.npz", "-o", tmp_path / "o", "--set", "certain=[50,20]") == 2
    assert "must lie above" in capsys.readouterr().err and not (tmp_path / "o").exists()


def test_prediction_knows_no_left_and_right(tmp_path: Path) -> None:
    prior = load_prior(save_prior(tmp_path / "p.safetensors", "restore"))
    seen = context(torch.from_numpy(cine() / np.float32(255)), 3)
    found = predicted([prior], seen, lambda _: nullcontext())
    assert found.shape == cine().shape and float(found.std()) > 0
    assert_close(predicted([prior], seen.flip(-1), lambda _: nullcontext()), found.flip(-1))


def test_steady_haze_flickers_less_and_keeps_its_mean() -> None:
    haze = 0.5 + 0.1 * torch.randn((9, 6, 6), generator=torch.Generator().manual_seed(0))
    calm = steady(haze, 99)
    assert_close(calm, haze.mean(0).expand_as(haze))
    assert float(steady(haze, 3).diff(dim=0).square().mean()) < 0.3 * float(haze.diff(dim=0).square().mean())
    assert_close(steady(haze, 1), haze)


def test_the_verdict_says_what_it_rests_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_npz(tmp_path / "a.npz")
    words = ("dehaze", tmp_path / "a.npz", "--method", "background", "--overwrite")
    assert ultrasound(*words, "-o", tmp_path / "o") == 0
    verdict = record(tmp_path / "o")["verdict"]
    assert verdict["verdict"] == "pass" and verdict["line"] in capsys.readouterr().out
    page = (tmp_path / "o" / "report.html").read_text()
    assert all(
        any(sentence.startswith(name) for sentence in verdict["reasons"])
        for name in ("Haze:", "Elsewhere:", "Flicker:")
    )
    assert verdict["line"] in page
    path = save_dicom(tmp_path / "b.dcm", dicom(cine(), "MONOCHROME2", region=(8, 4, 560, 60)))
    assert ultrasound("dehaze", path, *words[2:], "-o", tmp_path / "p", "--quiet") == 0
    told = record(tmp_path / "p")
    assert told["verdict"]["verdict"] == "check" and "reach beyond" in str(told["verdict"]["reasons"])


# --- what it is trained on ------------------------------------------------------------------------------------------------


def test_augmentation_keeps_frames_together_and_the_range() -> None:
    """All frames of a cine are changed alike: where two were equal they stay so; grey stays in 0..1, the dark stays dark."""
    frames = torch.from_numpy(heart(3, 64) / np.float32(255))
    frames = torch.cat([frames, frames[:1]])
    outside = frames.amax(0) == 0
    for seed in range(20):
        rng = torch.Generator().manual_seed(seed)
        shown = placed(frames, 48, rng, vary=True)
        assert shown.shape == (4, 48, 48)
        regrade, blend = regraded(frames, rng), blended(frames, frames.flip(-1), rng)
        for out in (shown, regrade, blend):
            assert_close(out[0], out[3])
            assert float(out.min()) >= 0 and float(out.max()) <= 1 + 1e-6
        assert float(regrade[:, outside].max()) == 0
        low, high = torch.minimum(frames, frames.flip(-1)), torch.maximum(frames, frames.flip(-1))
        assert bool((blend >= low - 1e-6).all() and (blend <= high + 1e-6).all())
        grained = regrained(frames, rng)
        assert float(grained.min()) >= 0 and float(grained.max()) <= 1 + 1e-6
    again = [placed(frames, 48, torch.Generator().manual_seed(7), vary=True) for _ in range(2)]
    assert_close(again[0], again[1])


def test_training_goes_on_from_another_prior(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a learning rate of nothing the result is the prior it went on from; its cines are named, and may not be held out."""
    for name in ("a", "b", "c"):
        np.savez(tmp_path / f"{name}.npz", clean=cine())
    config = tmp_path / "c.yaml"
    lines = ["network: {channels: [8, 8], blocks: 1, features: 8}", "process: flow", "noise: {mean: null}", "patch: 32"]
    config.write_text("\n".join([*lines, "batch: 3", "steps: 2", "data: {exclude: [c], validation: [b]}"]))
    first, second = tmp_path / "p.safetensors", tmp_path / "q.safetensors"
    words = ("train", "--data", tmp_path, "--config", config, "--quiet")
    assert ultrasound(*words, "-o", first) == 0
    more = ("--set", f"start={first}", "--set", "learning_rate=1e-12", "--set", "data.exclude=[a]")
    assert ultrasound(*words, "-o", second, *more) == 0
    old, new = load_prior(first), load_prior(second)
    for a, b in zip(old.net.parameters(), new.net.parameters(), strict=True):
        assert_close(a, b, rtol=0, atol=2e-3)
    card = read_card(second)
    assert card.data == ["a", "c"] and card.training["start"] == first.name
    capsys.readouterr()
    assert (
        ultrasound(
            *words, "-o", tmp_path / "r.safetensors", *more, "--set", "data.validation=[a]", "--set", "data.exclude=[c]"
        )
        == 2
    )
    assert "was trained on a" in capsys.readouterr().err
    assert json.loads(json.dumps(card.training))["steps"] == 2
