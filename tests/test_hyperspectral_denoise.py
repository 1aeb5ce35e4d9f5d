"""Hyperspectral denoising: the noise model finds what was put in, the posterior is exact for a Gaussian prior, and the verbs
keep their promises."""

from __future__ import annotations

import csv
import json
import math
import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from cli import main
from domains.hyperspectral.containers import Cube
from domains.hyperspectral.data import read_cube
from domains.hyperspectral.eigen_images import EigenPosterior, Tiled, fill_outside
from domains.hyperspectral.methods import DenoiseConfig
from domains.hyperspectral.metrics import evaluate
from domains.hyperspectral.noise_model import estimate
from domains.hyperspectral.output import findings_of, spans
from domains.hyperspectral.pipeline import SHIPPED, denoise
from domains.hyperspectral.simulation import SimulationConfig, degrade
from domains.hyperspectral.statistics import regression_noise
from domains.hyperspectral.subspace import amplification, coefficients
from domains.hyperspectral.training import GUIDES, UNIT, guided
from suite.denoiser import Denoiser
from suite.network import Preconditioned
from suite.noise import Noise
from suite.prior import Card, Prior, load_prior
from suite.process import edm
from suite.verdict import Findings

ROOT = Path(__file__).resolve().parent.parent


def scene(rows: int = 40, columns: int = 36, bands: int = 24) -> np.ndarray:
    """Three materials in smooth shares, with smooth spectra, about 0..1."""
    y, x = np.mgrid[:rows, :columns]
    shares = np.stack([np.sin(x / 5) + 1, np.cos(y / 7) + 1, ((x // 9 + y // 9) % 2) * 1.5], 2) / 4
    band = np.linspace(0, 1, bands)
    spectra = np.stack([np.exp(-(((band - c) / 0.35) ** 2)) + 0.1 for c in (0.1, 0.5, 0.9)])
    return (shares @ spectra).astype(np.float32)


def everything(cube: np.ndarray) -> np.ndarray:
    return np.ones(cube.shape[2], bool)


# --- statistics and subspace ------------------------------------------------------------------------------------------


def test_regression_noise_is_the_residual_of_least_squares() -> None:
    pixels = np.random.default_rng(0).standard_normal((300, 6)).astype(np.float32)
    pixels[:, 3] += 2 * pixels[:, 0]
    centred = pixels - pixels.mean(0)
    found = regression_noise(pixels)
    for band in range(6):
        others = np.delete(centred, band, axis=1)
        left = centred[:, band] - others @ np.linalg.lstsq(others, centred[:, band], rcond=None)[0]
        assert found[band] == pytest.approx(math.sqrt((left**2).sum() / (300 - 5)), rel=1e-3)


def test_coefficients_with_gaps_are_least_squares_of_what_is_known() -> None:
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.standard_normal((40, 3)))[0].astype(np.float32)
    z = rng.standard_normal((50, 3)).astype(np.float32)
    known = rng.random((50, 40)) > 0.2
    w = np.where(known, z @ basis.T + rng.standard_normal((50, 40)), 99).astype(np.float32)
    found = coefficients(w, known, basis)
    for k in range(50):
        exact = np.linalg.lstsq(basis[known[k]], w[k, known[k]], rcond=None)[0]
        np.testing.assert_allclose(found[k], exact, atol=5e-3)
    np.testing.assert_allclose(amplification(np.ones((9, 40), bool), basis, np.ones(40)), 1, rtol=2e-3)
    covariances = [np.linalg.inv(basis[k].T @ basis[k]) for k in known]
    np.testing.assert_allclose(
        amplification(known, basis, np.ones(40)), np.mean([np.diag(c) for c in covariances], 0), rtol=0.01
    )


# --- the noise model --------------------------------------------------------------------------------------------------


def test_noise_model_finds_sigma_of_each_band() -> None:
    clean = scene()
    sigma = np.random.default_rng(2).uniform(0.02, 0.2, clean.shape[2])
    noisy = clean + np.random.default_rng(3).standard_normal(clean.shape).astype(np.float32) * sigma.astype(np.float32)
    model = estimate(noisy, everything(clean))
    np.testing.assert_allclose(model.sigma, sigma, rtol=0.15)
    assert abs(np.mean(model.sigma / sigma) - 1) < 0.03
    assert model.rank == 3 and not model.dead.any() and not model.outliers.any()


def test_noise_model_finds_stripes_dead_lines_and_impulses() -> None:
    clean, rng = scene(60, 40, 30), np.random.default_rng(4)
    noisy = clean + 0.03 * rng.standard_normal(clean.shape).astype(np.float32)
    noisy[:, [3, 17], 5] += np.float32([0.2, -0.15])
    noisy[:, 8, 12] = 0
    hit = rng.random(clean.shape[:2]) < 0.3
    noisy[..., 20][hit] = np.where(rng.random(int(hit.sum())) < 0.5, -0.05, 1.3)
    model = estimate(noisy, everything(clean))
    assert np.flatnonzero(model.stripes[:, 5]).tolist() == [3, 17]
    np.testing.assert_allclose(model.stripes[[3, 17], 5], [0.2, -0.15], atol=0.02)
    assert (model.stripes != 0).sum() <= 6
    _, known = model.whiten(noisy)
    assert not known[:, 8, 12].any()
    assert (~known[..., 20] == hit).mean() > 0.99
    others = np.delete(known, [12, 20], axis=2)
    assert others.mean() > 0.995


def test_clipped_water_is_not_taken_for_dead_pixels() -> None:
    clean = scene(60, 40, 30) - 0.15
    noisy = clean + 0.01 * np.random.default_rng(5).standard_normal(clean.shape).astype(np.float32)
    noisy = np.maximum(noisy, 0)
    assert (noisy == 0).mean() > 0.02
    model = estimate(noisy, everything(clean))
    assert sum(len(values) for values in model.stuck) == 0


@given(st.lists(st.integers(0, 300), unique=True, max_size=40).map(sorted))
def test_spans_hold_each_number_once(numbers: list[int]) -> None:
    back: list[int] = []
    for part in filter(None, spans(numbers).split(", ")):
        first, _, last = part.partition("-")
        back += range(int(first), int(last or first) + 1)
    assert back == numbers


# --- the standard cases -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sigma", "psnr"), [(30, 18.59), (50, 14.15), (70, 11.23)])
def test_gaussian_case_has_the_psnr_of_the_literature(sigma: float, psnr: float) -> None:
    clean = scene() * 4000 + 100
    noisy = degrade(clean, SimulationConfig(case="gaussian", sigma=sigma))
    found = evaluate(Cube(noisy), Cube(clean))
    assert found["metrics"]["psnr"] == pytest.approx(psnr, abs=0.1)


def test_each_case_hits_a_third_of_the_bands() -> None:
    clean = scene(bands=30)
    base = degrade(clean, SimulationConfig(case="noniid", seed=7))
    for case in ("stripe", "deadline", "impulse"):
        changed = degrade(clean, SimulationConfig(case=case, seed=7)) != base
        bands = changed.any((0, 1))
        assert bands.sum() == 10
        columns = changed[..., bands].any(0).mean(0)
        if case != "impulse":
            assert (columns <= 0.15).all() and (columns >= 1 / 36).all()
            assert (changed[..., bands].all(0) == changed[..., bands].any(0)).all()
    mixture = degrade(clean, SimulationConfig(case="mixture", seed=7)) != base
    assert mixture.any((0, 1)).all()
    assert not np.array_equal(base, degrade(clean, SimulationConfig(case="noniid", seed=8)))


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_metrics_against_their_formulas() -> None:
    rng = np.random.default_rng(6)
    ref = rng.uniform(1, 3, (9, 8, 4)).astype(np.float32)
    x = (ref + 0.1 * rng.standard_normal(ref.shape)).astype(np.float32)
    found = evaluate(Cube(x), Cube(ref))["metrics"]
    extent = np.ptp(ref, axis=(0, 1))
    mse = ((x - ref) ** 2).mean((0, 1))
    assert found["psnr"] == pytest.approx(np.mean(10 * np.log10(extent**2 / mse)), rel=1e-5)
    assert found["ergas"] == pytest.approx(100 * math.sqrt(np.mean(mse / ref.mean((0, 1)) ** 2)), rel=1e-4)
    cosines = (x * ref).sum(2) / np.linalg.norm(x, axis=2) / np.linalg.norm(ref, axis=2)
    assert found["sam_deg"] == pytest.approx(np.degrees(np.arccos(cosines)).mean(), rel=1e-3)
    low = ref.min((0, 1))
    ssim = [
        structural_similarity((ref[..., b] - low[b]) / extent[b], (x[..., b] - low[b]) / extent[b], data_range=1)
        for b in range(4)
    ]
    assert found["ssim"] == pytest.approx(np.mean(ssim), rel=1e-4)


def test_metrics_leave_out_flagged_bands_and_missing_pixels() -> None:
    ref = np.random.default_rng(7).uniform(1, 2, (9, 8, 3)).astype(np.float32)
    x = ref + np.float32(0.01)
    x[..., 1], x[0, 0] = 50, np.nan
    found = evaluate(Cube(x), Cube(ref, good=np.array([True, False, True])))
    assert found["settings"]["bands"] == 2 and found["settings"]["pixels"] == 71
    assert found["metrics"]["psnr"] > 35


# --- the posterior ----------------------------------------------------------------------------------------------------


class Silence(torch.nn.Module):
    """A network that says nothing: what is left of the preconditioning is the denoiser of a standard normal prior."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, _level: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x[:, :1])


def gaussian_prior() -> Prior:
    card = Card(
        name="gaussian", domain="hyperspectral", description="", unit=UNIT, scale=1.0, offset=0.0, value_range=(-9, 9),
        condition_channels=GUIDES, network={}, process="edm", sigma_data=1.0, sigma_range=(0.005, 10), data=[],
        validation_data=[], licence="", training={}, validation={},
    )  # fmt: skip
    return Prior(Preconditioned(Silence(), 1.0, (0.005, 10)), card)


def test_posterior_of_a_gaussian_prior_is_exact() -> None:
    rng, scale, noise = np.random.default_rng(8), np.array([5.0, 1.0, 0.4]), np.array([1.0, 1.2, 1.0])
    x = (scale[:, None, None] * rng.standard_normal((3, 128, 128))).astype(np.float32)
    y = x + (noise[:, None, None] * rng.standard_normal(x.shape)).astype(np.float32)
    posterior = EigenPosterior(gaussian_prior(), y, noise, precision="float32", clock=nullcontext)
    gain = scale**2 / (scale**2 + noise**2)
    expected = gain[:, None, None] * y
    mean = posterior.mean(8)
    assert np.abs(mean - expected).max() < 0.25 and np.sqrt(np.mean((mean - expected) ** 2)) < 0.05
    draw = posterior.draw(Noise.of(0, ["x"]), 20)
    spread = (draw - mean).reshape(3, -1)
    np.testing.assert_allclose(spread.std(1), np.sqrt(gain) * noise, rtol=0.05)
    assert np.abs(spread.mean(1)).max() < 0.05
    assert posterior.evaluations == 28


def test_draws_are_made_by_seed_and_identity() -> None:
    y = np.random.default_rng(9).standard_normal((2, 24, 24)).astype(np.float32) * 3
    posterior = EigenPosterior(gaussian_prior(), y, np.ones(2), precision="float32", clock=nullcontext)
    first, again = (posterior.draw(Noise.of(0, ["a"]), 5) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, posterior.draw(Noise.of(1, ["a"]), 5))


def test_tiles_equal_the_whole_image() -> None:
    class Blur(Denoiser):
        def __call__(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
            return torch.nn.functional.avg_pool2d(x, 31, 1, 15, count_include_pad=False)

    x = torch.randn(1, 1, 500, 410, generator=torch.Generator().manual_seed(0))
    inner = Blur(edm())
    time = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    torch.testing.assert_close(Tiled(inner)(x, time), inner(x, time))


def test_pixels_without_data_take_the_nearest_value() -> None:
    images = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    outside = np.zeros((3, 4), bool)
    outside[:, 3] = True
    np.testing.assert_array_equal(fill_outside(images, outside)[0, :, 3], images[0, :, 2])


def test_guides_are_other_images_of_the_stack() -> None:
    stack = torch.randn(64, 6, 8, 8, generator=torch.Generator().manual_seed(1))
    stack[:, 4:] = 0
    target, guides = guided(stack, torch.Generator().manual_seed(2))
    assert target.shape == (64, 1, 8, 8) and guides.shape == (64, GUIDES, 8, 8)
    matches = (target[:, :1].abs()[:, None] - stack.abs()[:, :, None]).flatten(2).abs().sum(2)
    chosen = matches.argmin(1)
    assert bool((matches.min(1).values < 1e-4).all()) and bool((chosen < 4).all())
    present = guides.flatten(2).any(2)
    assert 0.6 < float(present.float().mean()) < 0.95


# --- the pipeline and the verbs ---------------------------------------------------------------------------------------


def run(*words: str | Path) -> int:
    return main(["hyperspectral", *map(str, words)])


@pytest.mark.parametrize("method", ["svd", "nlm"])
@pytest.mark.parametrize("case", ["gaussian", "mixture"])
def test_denoising_improves_a_scene(method: str, case: str) -> None:
    clean = scene(48, 48, 40)
    noisy = degrade(clean, SimulationConfig(case=case, sigma=30, seed=3))  # type: ignore[arg-type]
    result = denoise(Cube(noisy), method, None, DenoiseConfig(), "x", lambda _: nullcontext())
    before, after = (evaluate(Cube(x), Cube(clean))["metrics"]["psnr"] for x in (noisy, result.data))
    assert after > before + 8
    assert result.chi2 == pytest.approx(1, abs=0.1)


def test_what_is_flagged_or_missing_stays_and_single_nans_are_filled(tmp_path: Path) -> None:
    clean = scene(48, 44, 30) * 1000
    noisy = (clean + np.random.default_rng(1).normal(0, 20, clean.shape)).astype(np.float32)
    noisy[5, 6, 7] = np.nan
    noisy[:4] = -9999
    good = np.ones(30, np.uint8)
    good[[0, 9]] = 0
    np.savez(tmp_path / "in.npz", cube=noisy, good_wavelengths=good, nodata=-9999.0, note=np.arange(3))
    assert run("denoise", tmp_path / "in.npz", "-o", tmp_path / "out", "--method", "nlm", "--quiet") == 0
    with np.load(tmp_path / "out" / "denoised.npz") as file:
        out = file["cube"]
        assert file["note"].tolist() == [0, 1, 2] and out.dtype == np.float32
    np.testing.assert_array_equal(out[..., [0, 9]], noisy[..., [0, 9]])
    np.testing.assert_array_equal(out[:4], noisy[:4])
    assert abs(out[5, 6, 7] - clean[5, 6, 7]) < 40
    used = np.delete(np.arange(30), [0, 9])
    error = np.sqrt(np.mean((out[4:, :, used] - clean[4:, :, used]) ** 2))
    assert error < 10
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["estimator"] == "point" and record["nfe"] == 0 and record["misfit_chi2"] == pytest.approx(1, abs=0.1)
    assert any("0, 9" in sentence for sentence in record["warnings"])
    assert any("1 values that were missing" in sentence for sentence in record["warnings"])
    assert sorted(record["outputs"]) == ["bands.csv", "denoised.npz", "report.html"]
    with (tmp_path / "out" / "bands.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert [row["state"] for row in rows[:2]] == ["flagged", "good"] and len(rows) == 30
    assert float(rows[3]["noise"]) == pytest.approx(20, rel=0.15)


def test_simulate_denoise_evaluate_by_the_command_line(tmp_path: Path) -> None:
    np.save(tmp_path / "clean.npy", scene(40, 40, 30))
    assert run("simulate", tmp_path / "clean.npy", "-o", tmp_path / "n.hdr", "--case", "stripe", "--quiet") == 0
    assert (tmp_path / "n.img").exists() and (tmp_path / "n.hdr.run.json").exists()
    assert run("denoise", tmp_path / "n.hdr", "-o", tmp_path / "r", "--method", "svd", "--quiet", "--no-report") == 0
    assert (tmp_path / "r" / "denoised.hdr").exists() and (tmp_path / "r" / "denoised.img").exists()
    found = tmp_path / "m.json"
    assert run("evaluate", tmp_path / "r", "--reference", tmp_path / "clean.npy", "--json", found) == 0
    assert set(json.loads(found.read_text())["metrics"]) == {"psnr", "ssim", "sam_deg", "ergas"}
    assert run("denoise", tmp_path / "n.hdr", "-o", tmp_path / "r", "--method", "svd") == 2


def test_packed_numbers_are_simulated_in_physical_units(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "in.nc", "w") as file:
        stored = file.create_dataset("reflectance", data=(scene(20, 20, 30) * 10000).astype(np.int16))
        stored.attrs["scale_factor"] = 1e-4
    assert run("simulate", tmp_path / "in.nc", "-o", tmp_path / "n.npz", "--sigma", "30", "--quiet") == 0
    found = tmp_path / "m.json"
    assert run("evaluate", tmp_path / "n.npz", "--reference", tmp_path / "in.nc", "--json", found) == 0
    assert json.loads(found.read_text())["metrics"]["psnr"] == pytest.approx(18.59, abs=0.15)


@pytest.mark.parametrize(
    "words",
    [
        ("denoise", "{bad}", "-o", "{out}"),
        ("denoise", "{few}", "-o", "{out}", "--method", "svd"),
        ("denoise", "{flat}", "-o", "{out}", "--method", "svd"),
        ("denoise", "{ok}", "-o", "{out}", "--method", "nlm", "--samples", "3"),
        ("denoise", "{ok}", "-o", "{out}", "--set", "rnak=3"),
        ("simulate", "{ok}", "-o", "{out}.tif"),
        ("simulate", "{ok}", "-o", "{out}.npy", "--sigma", "nan"),
        ("evaluate", "{ok}", "--reference", "{few}"),
    ],
)
def test_bad_input_is_told_and_leaves_nothing(
    tmp_path: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name: tmp_path / f"{name}.npy" for name in ("bad", "few", "flat", "ok")}
    np.save(files["bad"], np.full((8, 8, 4), np.nan))
    np.save(files["few"], np.random.default_rng(0).random((3, 3, 40)))
    np.save(files["flat"], np.ones((9, 9, 5)))
    np.save(files["ok"], scene(20, 20, 8))
    places = {name: str(path) for name, path in files.items()} | {"out": str(tmp_path / "out")}
    assert run(*(word.format(**places) for word in words)) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and said.strip()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in files.values())


def test_training_splits_by_scene_and_leaves_a_prior_that_loads(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        noise = np.random.default_rng(seed).normal(0, 1e-3, (40, 36, 24))
        np.save(tmp_path / f"{name}.npy", np.roll(scene(), 5 * seed, 1) + noise)
    small = ["network.channels=[4,8]", "network.blocks=1", "network.features=8", "patch=16", "batch=2", "steps=3"]
    small += ["data.natural=0", "data.draws=2", "validation_levels=[0.3]"]
    words = [word for setting in small for word in ("--set", setting)]
    output = tmp_path / "mine.safetensors"
    assert run("train", "--data", tmp_path, "-o", output, "--quiet", *words) == 2  # nothing held out
    assert not output.exists()
    assert run("train", "--data", tmp_path, "-o", output, "--quiet", *words, "--set", "data.validation=[b]") == 0
    prior = load_prior(output, unit=UNIT, channels=1, condition_channels=GUIDES)
    assert prior.card.data == ["a"] and prior.card.validation_data == ["b"] and prior.card.training["steps"] == 3
    np.save(tmp_path / "n.npy", degrade(scene(), SimulationConfig(sigma=30)))
    assert run("denoise", tmp_path / "n.npy", "-o", tmp_path / "r", "--prior", output, "--quiet", "--no-report") == 0


# --- the shipped prior ------------------------------------------------------------------------------------------------


@pytest.fixture
def shipped() -> Prior:
    if not SHIPPED.exists():
        pytest.skip("no shipped prior here")
    return load_prior(SHIPPED)


def test_shipped_prior_beats_nlm_on_a_scene_it_never_saw(shipped: Prior) -> None:
    folder = Path(os.environ.get("DIFFSUITE_DATA", ROOT.parent / "shared" / "data")) / "hyperspectral"
    if not folder.is_dir():
        pytest.skip("no real hyperspectral data here (set DIFFSUITE_DATA)")
    assert not any("gulfport_airport" in name or "hydice" in name for name in shipped.card.data)
    cube = read_cube(folder / "aviris_gulfport_airport4.mat")
    clean = cube.values()[:, :, ::2]
    noisy = replace(cube, data=degrade(clean, SimulationConfig(sigma=50)))
    psnr = {}
    for method in ("nlm", "subspace"):
        prior = shipped if method == "subspace" else None
        result = denoise(noisy, method, prior, DenoiseConfig(), "x", lambda _: nullcontext())
        psnr[method] = evaluate(replace(cube, data=result.data), replace(cube, data=clean))["metrics"]["psnr"]
    assert psnr["subspace"] > psnr["nlm"] + 0.5


def test_uncertainty_cube_with_samples(shipped: Prior, tmp_path: Path) -> None:
    clean = scene(40, 40, 24)
    np.save(tmp_path / "n.npy", degrade(clean, SimulationConfig(sigma=30)))
    for name in ("a", "b"):
        words = ("--samples", "4", "--steps", "6", "--no-report", "--quiet")
        assert run("denoise", tmp_path / "n.npy", "-o", tmp_path / name, *words) == 0
    out, std = (np.load(tmp_path / "a" / f"{name}.npy") for name in ("denoised", "std"))
    np.testing.assert_array_equal(std, np.load(tmp_path / "b" / "std.npy"))
    error = np.abs(out - clean)
    assert std.shape == clean.shape and 0.4 < std.mean() / error.mean() < 2.5
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    assert (
        record["estimator"] == "mean" and "Intervals of 90 %: scaled by held-out data." in record["verdict"]["reasons"]
    )
    assert 0.8 < (error <= record["intervals"]["factor"] * std).mean() < 0.995


def test_deviation_counts_what_the_subspace_misses() -> None:
    """A component below the edge of detection is in the error of every band, and in the deviation that is expected."""
    rng = np.random.default_rng(0)
    rows, bands, pixels = 50, 80, 2500
    edge = math.sqrt(bands / pixels)
    hidden = rng.normal(0, math.sqrt(0.5 * edge), (pixels, 8)) @ np.linalg.qr(rng.normal(0, 1, (bands, 8)))[0].T
    seen = 20 * rng.normal(0, 1, (pixels, 1)) @ np.ones((1, bands)) / math.sqrt(bands)
    clean = (seen + hidden).reshape(rows, rows, bands)
    noisy = (clean + rng.normal(0, 1, clean.shape)).astype(np.float32)
    model = estimate(noisy, np.ones(bands, bool))
    assert model.rank == 1 and model.pixels == pixels
    left = (clean - model.mean) / model.unit
    left = (left - (left @ model.basis) @ model.basis.T) * model.unit
    assert 0.7 < float(np.sqrt(np.mean(model.missed**2)) / np.sqrt(np.mean(left**2))) < 1.4


def test_findings_tell_faults_from_facts() -> None:
    def findings(whiteness: float, chi2: float, warnings: list[str]) -> Findings:
        result = SimpleNamespace(
            whiteness=(0.0, whiteness), chi2=chi2, lost=np.zeros(3), estimate=SimpleNamespace(estimator="mean")
        )
        return findings_of(result, warnings, ["Bands 1 stayed."], None)  # type: ignore[arg-type]

    assert findings(0.01, 1.0, ["Bands 1 stayed."]).verdict == "pass"
    assert "Bands 1 stayed." in findings(0.01, 1.0, ["Bands 1 stayed."]).reasons()
    for doubtful in (findings(0.3, 1.0, []), findings(0.01, 0.5, []), findings(0.01, 1.0, ["Something else."])):
        assert doubtful.verdict == "check"
    reasons = findings(0.3, 1.0, []).reasons()
    assert sum("correlate by 0.30" in sentence for sentence in reasons) == 1
