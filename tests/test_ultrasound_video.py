"""Cines as cines: live streams, haze of low rank, several ways through time, and what they do to the picture."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from ultrasound_files import SIDE, cine, record, save_prior, ultrasound, write_npz

from domains.ultrasound.context import context
from domains.ultrasound.estimate import LiveDehazer
from domains.ultrasound.grid import BLOCK
from domains.ultrasound.live import Stream
from domains.ultrasound.lowrank import noise_threshold, singular_value_threshold
from domains.ultrasound.phantom import heart
from domains.ultrasound.sector import estimated
from domains.ultrasound.settings import DehazeConfig, load_priors
from suite.denoiser import Denoiser
from suite.gaussian import ExactDenoiser, Gaussian
from suite.noise import Noise
from suite.process import Process, flow_matching
from suite.solver import DDIM, Solver


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video")
    write_npz(path / "cine.npz")
    for kind in ("restore", "tissue", "haze"):
        save_prior(path / f"{kind}.safetensors", kind)
    return path


# --- singular values ------------------------------------------------------------------------------------------------------


def test_singular_value_threshold_by_hand() -> None:
    """Of diag(5, 2, 0.5) a threshold of 1 leaves diag(4, 1, 0)."""
    found = singular_value_threshold(torch.diag(torch.tensor([5.0, 2.0, 0.5])), 1.0)
    assert_close(found, torch.diag(torch.tensor([4.0, 1.0, 0.0])))


@given(st.integers(0, 1000), st.floats(0.1, 5))
def test_singular_value_threshold_minimises(seed: int, tau: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    y = torch.randn((6, 3, 4), generator=rng, dtype=torch.float64)

    def cost(h: Tensor) -> float:
        return float((y - h).square().sum() / 2 + tau * torch.linalg.svdvals(h.flatten(1)).sum())

    best = singular_value_threshold(y, tau)
    for _ in range(5):
        other = best + 0.1 * torch.randn(y.shape, generator=rng, dtype=torch.float64)
        assert cost(best) <= cost(other) + 1e-9
    assert cost(best) <= min(cost(y), cost(torch.zeros_like(y))) + 1e-9


def test_noise_alone_has_no_low_rank() -> None:
    noise = 0.3 * torch.randn((20, 400), generator=torch.Generator().manual_seed(0))
    assert float(singular_value_threshold(noise, 1.05 * noise_threshold(0.3, 20, 400)).abs().max()) < 0.02
    haze = torch.rand(400, generator=torch.Generator().manual_seed(1)) * torch.ones(20, 1)
    found = singular_value_threshold(haze + noise, noise_threshold(0.3, 20, 400))
    assert float((found - haze).square().mean()) < 0.3 * float(noise.square().mean())


# --- streams ----------------------------------------------------------------------------------------------------------------


class Still:
    """A Gaussian signal, the same for every frame, as an engine: what a stream does can be worked out."""

    start = 0.6
    memory = 0.2
    networks = (None,)

    def __init__(self) -> None:
        self.process: Process = flow_matching()
        self.mean = torch.linspace(-1, 1, 4 * 4 * 4).reshape(1, 4, 4, 4)
        self.batches: list[int] = []

    def given(self, seen: Tensor) -> Tensor:
        return torch.nn.functional.pixel_unshuffle(seen[:, :1], BLOCK)

    def first(self, seen: Tensor) -> Tensor:
        return torch.zeros_like(self.mean)

    def parts(self, given: Tensor, identity: list[str]) -> tuple[Denoiser, Solver, Tensor | None]:
        self.batches.append(len(given))
        variance = torch.full_like(self.mean[0], 1e-4)
        return ExactDenoiser(Gaussian(self.mean[0], variance), self.process), DDIM(), None

    def result(self, signal: Tensor) -> Tensor:
        return torch.nn.functional.pixel_shuffle(signal, BLOCK)[:, 0]


@pytest.mark.parametrize("video", ["warm", "rolling"])
def test_a_stream_gives_every_frame_in_order_after_its_latency(video: str) -> None:
    engine = Still()
    stream = Stream(engine, video, steps=5, window=3, seed=0, identity="a")  # type: ignore[arg-type]
    assert stream.latency == (0 if video == "warm" else 3)
    out = [stream.push(torch.rand(8, 8)) for _ in range(7)]
    assert [found is None for found in out] == [k < stream.latency for k in range(7)]
    rest = stream.flush()
    assert len(rest) == stream.latency and stream.flush() == []
    truth = engine.result(engine.mean)[0]
    for found in [f for f in out if f is not None] + rest:
        assert float((found - truth).abs().max()) < 0.05  # each frame is carried to the clean state
    if video == "rolling":
        assert max(engine.batches) == 4 and len(engine.batches) == 7 + 3  # one for each frame, and its first
        assert stream.evaluations == 7 + 10
    else:
        assert set(engine.batches) == {1} and stream.evaluations == 5 * 7


@pytest.mark.parametrize("video", ["warm", "rolling"])
def test_a_stream_of_one_evaluation_gives_first_estimates_at_once(video: str) -> None:
    engine = Still()
    stream = Stream(engine, video, steps=1, window=3, seed=0, identity="a")  # type: ignore[arg-type]
    assert stream.latency == 0
    for k in range(3):
        found = stream.push(torch.rand(8, 8))
        assert found is not None and float(found.abs().max()) == 0 and stream.evaluations == k + 1
    assert stream.flush() == [] and engine.batches == []


def test_a_wrong_estimate_is_forgotten() -> None:
    """What one frame gets wrong is not carried through the cine: a fault in its estimate fades by `memory` with each frame."""
    engine = Still()
    engine.parts = lambda given, identity: (Standing(engine.process), DDIM(), None)  # type: ignore[method-assign]
    stream = Stream(engine, "warm", steps=2, window=3, seed=0, identity="a")
    stream._estimate = torch.ones_like(engine.mean)
    faults = [float(stream.push(torch.rand(8, 8)).abs().max()) for _ in range(4)]  # type: ignore[union-attr]
    np.testing.assert_allclose(faults, [engine.memory**k for k in (1, 2, 3, 4)], atol=0.02)


class Standing(Denoiser):
    """Gives back what the state shows, less the stream's noise: a prior that corrects nothing."""

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        eps = Noise.of(0, ["a"]).normal(x)
        return (x - self.process.sigma(t).to(x.dtype) * eps) / self.process.alpha(t).to(x.dtype)


def configured(folder: Path, **more: object) -> DehazeConfig:
    return DehazeConfig(prior=folder / "restore.safetensors", **more)  # type: ignore[arg-type]


def test_live_looks_back_only_and_matches_the_command(folder: Path, tmp_path: Path) -> None:
    """A frame's result does not depend on later frames, and pushing frame by frame gives what the command writes."""
    frames = (cine() / np.float32(255)).astype(np.float32)
    config = configured(folder, method="restore", video="rolling", steps=4)
    priors = load_priors("restore", config, torch.device("cpu"))
    mask = estimated(frames)
    live = LiveDehazer.of(mask, priors, config, identity="x")
    out = [live.push(frame) for frame in frames]
    assert live.latency == 2 and out[0] is None and out[1] is None
    other = LiveDehazer.of(mask, priors, config, identity="x")
    changed = [*frames[:3], 1 - frames[3]]
    again = [other.push(frame) for frame in changed]
    np.testing.assert_array_equal(again[2], out[2])
    assert out[3] is not None and len(live.flush()) == 2
    words = ("--set", "video=rolling", "--steps", "4", "--prior", folder / "restore.safetensors")
    assert ultrasound("dehaze", folder / "cine.npz", "-o", tmp_path / "o", "--quiet", "--no-report", *words) == 0
    with np.load(tmp_path / "o" / "dehazed.npz") as file:
        assert file["dehazed"].shape == cine().shape
        assert (file["haze"] >= -1e-3).all() and file["haze"].any()
    assert record(tmp_path / "o")["nfe"] == 2 * len(frames) + 2


@pytest.mark.parametrize(
    ("method", "video"), [("dps", "warm"), ("projection", "warm"), ("projection", "rolling"), ("pigdm", "rolling")]
)
def test_joint_methods_stream(folder: Path, tmp_path: Path, method: str, video: str) -> None:
    words = ["--method", method, "--set", f"video={video}", "--steps", "2", "--prior", folder / "tissue.safetensors"]
    words += ["--set", f"haze_prior={folder / 'haze.safetensors'}", "--quiet", "--no-report"]
    assert ultrasound("dehaze", folder / "cine.npz", "-o", tmp_path / "o", *words) == 0
    with np.load(tmp_path / "o" / "dehazed.npz") as file:
        kept = dict(file)
    assert np.isfinite(kept["dehazed"]).all() and kept["dehazed"].min() >= 0
    assert np.abs(kept["dehazed"] + kept["haze"] - kept["input"]).max() <= 1e-3 * np.ptp(kept["input"])


def test_what_cannot_stream_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*words: str) -> str:
        assert ultrasound("dehaze", folder / "cine.npz", "-o", tmp_path / "o", *words) == 2
        return capsys.readouterr().err

    assert "frames of a cine together" in refused("--method", "nuclear", "--set", "video=warm")
    assert "point estimator" in refused("--samples", "3", "--set", "video=warm")
    assert "point estimator" in refused("--samples", "3", "--method", "regenerate")
    assert "at least 2 steps" in refused("--method", "regenerate", "--steps", "1")
    assert "no option 'x'" in refused("--method", "nuclear", "--set", "options.x=1")


def test_context_of_a_stream_is_the_past() -> None:
    frames = torch.rand(5, 8, 8)
    past = context(frames[:3], 7)[-1]
    assert_close(past[1], frames[:3].mean(0))
    assert_close(past[2], frames[:3].amin(0))


# --- low rank ---------------------------------------------------------------------------------------------------------------


def test_nuclear_takes_off_haze_of_low_rank(folder: Path, tmp_path: Path) -> None:
    truth = heart(12, SIDE)
    y, x = np.mgrid[:SIDE, :SIDE]
    haze = 120 * np.exp(-((y - 20) ** 2 + (x - 32) ** 2) / 2 / 6**2) * (truth.max(0) > 0)
    np.savez(tmp_path / "a.npz", cluttered=np.clip(truth + haze, 0, 255).astype(np.uint8))
    words = [
        "--method",
        "nuclear",
        "--prior",
        folder / "tissue.safetensors",
        "--set",
        "begin=background",
        "--steps",
        "3",
    ]
    assert ultrasound("dehaze", tmp_path / "a.npz", "-o", tmp_path / "o", *words, "--quiet", "--no-report") == 0
    with np.load(tmp_path / "o" / "dehazed.npz") as file:
        taken, sector = file["haze"], file["sector"]
    rank = np.linalg.svd(taken[:, sector], compute_uv=False)
    assert np.square(rank[3:]).sum() < 0.05 * np.square(rank).sum()  # clipping and interpolation add little
    assert record(tmp_path / "o")["nfe"] == 3
    assert math.isfinite(float(taken.max())) and taken.min() >= -1e-3
