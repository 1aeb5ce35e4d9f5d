"""Further methods of hyperspectral denoising: self-supervised, representative bands, joint prior; completion, super-resolution,
reference-free metrics, and calibrated intervals."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from cli import main
from domains.hyperspectral.calibrate import CalibrationConfig, calibrated
from domains.hyperspectral.containers import Cube
from domains.hyperspectral.data import read_cube
from domains.hyperspectral.hir_diff import ChannelMix, TotalVariation, exponential_levels, representative_bands
from domains.hyperspectral.joint_prior import Windowed, joint_posterior
from domains.hyperspectral.joint_training import BandWindows, standardised
from domains.hyperspectral.methods import DenoiseConfig
from domains.hyperspectral.metrics import evaluate
from domains.hyperspectral.pipeline import denoise, estimate_noise
from domains.hyperspectral.reference_free import (
    area_under_curve,
    difference_noise,
    reference_free,
    residual_correlation,
    rx_scores,
    spectral_roughness,
    stripe_index,
)
from domains.hyperspectral.restoration import cubic_reduction, reduction, restore_images
from domains.hyperspectral.self_supervised import hold_out, with_guards
from domains.hyperspectral.simulation import SimulationConfig, degrade, reduced
from domains.hyperspectral.superresolution import SuperresolveConfig, finer
from domains.hyperspectral.training import GUIDES, UNIT, DataConfig
from suite.denoiser import Denoiser
from suite.network import Preconditioned
from suite.noise import Noise
from suite.operators import Separable, adjoint_error
from suite.prior import Card, Prior
from suite.process import edm


def scene(rows: int = 32, columns: int = 32, bands: int = 24) -> np.ndarray:
    """Three materials in smooth shares, with smooth spectra, about 0..1."""
    y, x = np.mgrid[:rows, :columns]
    shares = np.stack([np.sin(x / 5) + 1, np.cos(y / 7) + 1, ((x // 9 + y // 9) % 2) * 1.5], 2) / 4
    band = np.linspace(0, 1, bands)
    spectra = np.stack([np.exp(-(((band - c) / 0.35) ** 2)) + 0.1 for c in (0.1, 0.5, 0.9)])
    return (shares @ spectra).astype(np.float32)


def psnr(x: np.ndarray, clean: np.ndarray) -> float:
    return float(evaluate(Cube(x), Cube(clean))["metrics"]["psnr"])


class Silence(torch.nn.Module):
    """A network that says nothing: the denoiser of a standard normal prior is left."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, _level: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x[:, :1])


def gaussian_prior() -> Prior:
    card = Card(
        name="gaussian", domain="hyperspectral", description="", unit=UNIT, scale=1.0, offset=0.0, value_range=(-9, 9),
        condition_channels=GUIDES, network={}, process="edm", sigma_data=1.0, sigma_range=(0.005, 10), data=["a"],
        validation_data=[], licence="", training={}, validation={},
    )  # fmt: skip
    return Prior(Preconditioned(Silence(), 1.0, (0.005, 10)), card)


class Wiener(Denoiser):
    """`E[x0 | x_t]` of white Gaussian data of deviation 1."""

    def __init__(self) -> None:
        super().__init__(edm())

    def __call__(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        return x / (1 + self.process.sigma(t).to(x) ** 2)


def run(*words: str | Path) -> int:
    return main(["hyperspectral", *map(str, words)])


# --- operators --------------------------------------------------------------------------------------------------------


def test_separable_is_a_kronecker_product_with_its_svd() -> None:
    rng = torch.Generator().manual_seed(0)
    rows, columns = torch.randn(3, 5, generator=rng).double(), torch.randn(6, 4, generator=rng).double()
    op = Separable(rows, columns)
    x, y = (torch.randn(2, 3, *shape, generator=rng).double() for shape in ((5, 4), (3, 6)))
    expected = (torch.kron(rows, columns) @ x.flatten(2).mT).mT.unflatten(2, (3, 6))
    torch.testing.assert_close(op(x), expected)
    assert adjoint_error(op, x, y) < 1e-12
    svd = op.svd()
    torch.testing.assert_close(svd.v(svd.vh(x)), x)
    torch.testing.assert_close(svd.u(svd.singular_values * svd.vh(x)), op(x))
    found = svd.singular_values.flatten().sort().values[-12:]
    torch.testing.assert_close(found, torch.linalg.svdvals(torch.kron(rows, columns)).sort().values[-12:])


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_cubic_reduction_keeps_constants_and_lines(factor: int) -> None:
    matrix = cubic_reduction(12 * factor, factor).double()
    torch.testing.assert_close(matrix.sum(1), torch.ones(12).double(), atol=1e-6, rtol=0)
    line = matrix @ torch.arange(12 * factor).double()
    inner = slice(2, -2)
    torch.testing.assert_close(
        line[inner], (torch.arange(12).double() * factor + (factor - 1) / 2)[inner], atol=1e-4, rtol=0
    )


def test_representative_bands_span_the_subspace() -> None:
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((30, 4)))[0].astype(np.float32)
    basis[5] = 0
    chosen = representative_bands(basis)
    assert len(set(chosen.tolist())) == 4 and 5 not in chosen
    assert np.linalg.cond(basis[chosen]) < 30
    assert bool((exponential_levels(20).diff() < 0).all())


def test_channel_mix_has_its_adjoint() -> None:
    op = ChannelMix(torch.randn(3, 2), reduction((8, 6), 2))
    assert adjoint_error(op, torch.randn(1, 2, 8, 6), torch.randn(1, 3, 4, 3)) < 1e-5


def test_total_variation_is_nil_on_a_constant_and_flattens() -> None:
    torch.manual_seed(0)
    pilot = torch.randn(1, 2, 8, 8)
    variation = TotalVariation(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), pilot, 1.0)
    flat = torch.full((1, 2, 8, 8), 2.0)
    assert float(variation.gradient(flat).abs().max()) == 0
    step = torch.zeros(1, 2, 8, 8)
    step[..., 4, 4] = 1
    assert float(variation.gradient(step)[0, 0, 4, 4]) > 0


# --- the self-supervised method ---------------------------------------------------------------------------------------


def test_held_out_values_judge_at_noise_and_take_no_part() -> None:
    clean = scene()
    noisy = (clean + np.random.default_rng(0).normal(0, 0.1, clean.shape)).astype(np.float32)
    cube = Cube(noisy)
    model = with_guards(cube, estimate_noise(cube, np.ones(24, bool)))
    np.testing.assert_allclose(model.basis.T @ model.basis, np.eye(model.rank), atol=1e-4)
    images, noise, seen, judge = hold_out(cube, model, 1)
    assert seen.all() and 0.03 < len(judge.values) / noisy.size < 0.07 and (noise > 0.9).all()
    basis = torch.from_numpy(model.basis)
    truth = torch.from_numpy((((clean - model.mean) / model.unit) @ model.basis).transpose(2, 0, 1).astype(np.float32))
    assert judge.error(truth, basis) == pytest.approx(1, abs=0.06)
    assert judge.error(torch.from_numpy(images), basis) > judge.error(truth, basis) + 0.1


def test_dds2m_denoises_without_prior_or_truth_and_by_seed() -> None:
    clean = scene()
    noisy = degrade(clean, SimulationConfig(sigma=30))
    config = DenoiseConfig(method="dds2m", steps=40)
    first, again = (denoise(Cube(noisy), "dds2m", None, config, "x", lambda _: nullcontext()) for _ in range(2))
    np.testing.assert_array_equal(first.data, again.data)
    assert psnr(first.data, clean) > psnr(noisy, clean) + 5
    assert first.estimate.estimator == "point" and 0 < first.estimate.evaluations <= 40
    assert first.estimate.told["heldout_error"] < 2 and first.estimate.told["chosen_step"] % 20 == 0


# --- priors at work ---------------------------------------------------------------------------------------------------


def test_restored_images_meet_data_of_little_noise() -> None:
    rng, operator = torch.Generator().manual_seed(3), reduction((24, 20), 2)
    truth = torch.randn(2, 24, 20, generator=rng)
    noise = torch.tensor([0.01, 0.02])
    images = operator(truth[None])[0] + noise[:, None, None] * torch.randn(2, 12, 10, generator=rng)
    start = torch.nn.functional.interpolate(images[None], scale_factor=2, mode="bicubic")[0]
    seen = torch.ones(12, 10, dtype=torch.bool)
    network = gaussian_prior().denoiser(precision="float32")
    found = restore_images(network, images, noise, operator, seen, start, GUIDES, draw=Noise.of(0, ["x"]), steps=10)
    assert found.shape == truth.shape and not torch.equal(found, start)
    assert float((operator(found[None])[0] - images).square().mean().sqrt()) < 0.05


def test_windows_of_the_joint_prior_equal_the_whole() -> None:
    class Blur(Denoiser):
        def __call__(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
            return torch.nn.functional.avg_pool3d(x, 7, 1, 3, count_include_pad=False)

    x = torch.randn(1, 1, 30, 70, 80, generator=torch.Generator().manual_seed(0))
    inner, time = Blur(edm()), torch.full((1, 1, 1, 1, 1), 0.5, dtype=torch.float64)
    torch.testing.assert_close(Windowed(inner)(x, time), inner(x, time))


def test_joint_posterior_is_the_mean_where_neighbours_are_alike_noisy() -> None:
    y = torch.randn(12, 9, 8, generator=torch.Generator().manual_seed(1))
    seen = torch.ones_like(y, dtype=torch.bool)
    found, evaluations = joint_posterior(Wiener(), y, torch.full((12,), 0.5), seen, draw=Noise.of(0, ["x"]), steps=6)
    torch.testing.assert_close(found, y / 1.25, rtol=1e-3, atol=1e-4)
    assert evaluations == 6
    noise = torch.linspace(0.5, 1.5, 12)  # a gradual rise: every band at its own level
    found, evaluations = joint_posterior(Wiener(), y, noise, seen, draw=Noise.of(0, ["x"]), steps=8)
    torch.testing.assert_close(found, y / (1 + noise[:, None, None] ** 2), rtol=0.04, atol=1e-4)
    assert evaluations == 8  # four levels, two ways to lay it
    assert joint_posterior(Wiener(), y, noise, seen, draw=Noise.of(0, ["x"]), steps=1)[1] == 1


def test_joint_posterior_of_bands_of_different_noise_improves_each() -> None:
    y = torch.randn(12, 9, 8, generator=torch.Generator().manual_seed(1))
    seen = torch.ones_like(y, dtype=torch.bool)
    noise = torch.tensor([0.2, 2.0]).repeat(6)
    noisy = y + noise[:, None, None] * torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    found, evaluations = joint_posterior(Wiener(), noisy, noise, seen, draw=Noise.of(0, ["x"]), steps=8)
    assert evaluations == 8 and float((found - y).square().mean()) < float((noisy - y).square().mean())


def test_band_windows_keep_the_split_and_the_shape() -> None:
    stack = torch.from_numpy(standardised(Cube(scene() + np.random.default_rng(0).normal(0, 1e-3, (32, 32, 24)))))
    np.testing.assert_allclose(stack.flatten(1).std(1), 1, rtol=2e-3)
    source = BandWindows({"a": stack}, {"b": -stack}, window=8, zoom=1.3)
    batch, condition = source.batch(3, 12, torch.Generator().manual_seed(0))
    assert batch.shape == (3, 1, 8, 12, 12) and condition is None and bool(batch.isfinite().all())
    assert source.validation(12)[0].shape == (16, 1, 8, 12, 12)


def test_finch_and_hir_diff_by_the_command_line(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        noise = np.random.default_rng(seed).normal(0, 1e-3, (32, 32, 24))
        np.save(tmp_path / f"{name}.npy", np.roll(scene(), 5 * seed, 1) + noise)
    small = [
        "network.dims=3",
        "network.channels=[4,8]",
        "network.blocks=1",
        "network.features=8",
        "patch=12",
        "batch=2",
    ]
    small += ["steps=3", "data.window=8", "data.validation=[b]", "validation_levels=[0.3]"]
    words = [word for setting in small for word in ("--set", setting)]
    prior = tmp_path / "joint.safetensors"
    assert run("train", "--data", tmp_path, "-o", prior, "--quiet", *words) == 0
    np.save(tmp_path / "n.npy", degrade(scene(), SimulationConfig(case="noniid")))
    common = ("--quiet", "--no-report")
    assert run("denoise", tmp_path / "n.npy", "-o", tmp_path / "f", "--method", "finch", "--prior", prior, *common) == 0
    assert (
        run("denoise", tmp_path / "n.npy", "-o", tmp_path / "g", "--prior", prior, *common) == 2
    )  # another kind of prior
    assert (
        run("denoise", tmp_path / "n.npy", "-o", tmp_path / "h", "--method", "hir_diff", "--steps", "3", *common) == 0
    )
    records = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("f", "h")]
    assert [r["estimator"] for r in records] == ["point", "point"] and records[1]["nfe"] == 3
    assert run("denoise", tmp_path / "n.npy", "-o", tmp_path / "i", "--method", "dds2m", "--samples", "3") == 2


def test_finch_denoises_with_the_shipped_prior(tmp_path: Path) -> None:
    clean = scene()
    np.save(tmp_path / "n.npy", degrade(clean, SimulationConfig(sigma=50)))
    assert run("denoise", tmp_path / "n.npy", "-o", tmp_path / "f", "--method", "finch", "--quiet", "--no-report") == 0
    found, noisy = np.load(tmp_path / "f" / "denoised.npy"), np.load(tmp_path / "n.npy")
    assert psnr(found, clean) > psnr(noisy, clean) + 8
    assert json.loads((tmp_path / "f" / "run.json").read_text())["prior"]["name"] == "hyperspectral-finch"


# --- completion and super-resolution ----------------------------------------------------------------------------------


def test_missing_values_and_pixels_are_filled_when_asked(tmp_path: Path) -> None:
    clean = scene()
    noisy = degrade(clean, SimulationConfig(case="missing", sigma=8, keep=0.5))
    assert 0.45 < np.isfinite(noisy).mean() < 0.55
    noisy[10:14, 8:12] = np.nan
    np.save(tmp_path / "n.npy", noisy)
    for name, extra in (("kept", ()), ("full", ("--fill",))):
        words = (*extra, "--steps", "6", "--quiet", "--no-report")
        assert run("denoise", tmp_path / "n.npy", "-o", tmp_path / name, *words) == 0
    kept, full = (np.load(tmp_path / name / "denoised.npy") for name in ("kept", "full"))
    assert np.isnan(kept[10:14, 8:12]).all() and np.isfinite(full).all()
    outside = np.ones(clean.shape[:2], bool)
    outside[10:14, 8:12] = False
    assert np.isfinite(kept[outside]).all()
    assert np.sqrt(np.mean((full - clean)[outside] ** 2)) < 0.05
    assert np.sqrt(np.mean((full - clean)[~outside] ** 2)) < 0.25
    assert run("denoise", tmp_path / "n.npy", "-o", tmp_path / "no", "--fill", "--method", "nlm") == 2


def test_superresolution_by_each_method() -> None:
    clean = scene(48, 48)
    low = degrade(clean, SimulationConfig(case="lowres", sigma=8))
    assert low.shape == (24, 24, 24)
    np.testing.assert_allclose(reduced(clean * 0 + 3, 2), 3, rtol=1e-5)
    cube, found = Cube(low), {}
    for method, steps in (("bicubic", 1), ("subspace", 8), ("dds2m", 40)):
        prior = gaussian_prior() if method == "subspace" else None
        config = SuperresolveConfig(method=method, steps=steps)  # type: ignore[arg-type]
        result = finer(cube, prior, config, "x", lambda _: nullcontext())
        assert result.data.shape == clean.shape
        found[method] = psnr(result.data, clean)
    assert min(found["bicubic"], found["subspace"]) > 15 and found["dds2m"] > 10


def test_superresolve_verb_writes_a_cube_and_a_record(tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", cube=scene(16, 16, 20), wavelength_nm=np.linspace(400, 900, 20))
    words = ("--method", "bicubic", "--quiet")
    assert run("superresolve", tmp_path / "in.npz", "-o", tmp_path / "r", "--factor", "3", *words) == 0
    cube = read_cube(tmp_path / "r" / "superresolved.npz")
    assert cube.shape == (48, 48, 20) and cube.wavelengths is not None and cube.wavelengths[-1] == 900
    assert json.loads((tmp_path / "r" / "run.json").read_text())["factor"] == 3
    assert run("superresolve", tmp_path / "in.npz", "-o", tmp_path / "s", "--samples", "2") == 2


# --- reference-free metrics and intervals -----------------------------------------------------------------------------


def test_reference_free_numbers_have_their_closed_forms() -> None:
    rng = np.random.default_rng(0)
    noise = (0.3 * rng.standard_normal((200, 150, 4))).astype(np.float32)
    np.testing.assert_allclose(difference_noise(noise), 0.3, rtol=0.03)
    ramp = np.add.outer(np.arange(200.0), np.arange(150.0))[..., None].astype(np.float32)
    np.testing.assert_allclose(difference_noise(noise + ramp), 0.3, rtol=0.03)
    assert np.abs(residual_correlation(noise)).max() < 0.03
    smooth = (noise[:, 1:] + noise[:, :-1]) / math.sqrt(2)
    assert residual_correlation(smooth)[0] == pytest.approx(0.5, abs=0.03)
    assert stripe_index(noise) == pytest.approx(0.3 / math.sqrt(200), rel=0.15)
    striped = noise + np.float32(0.5) * (np.arange(150) == 70)[None, :, None]
    assert stripe_index(striped) > 1.5 * stripe_index(noise)
    assert spectral_roughness(rng.standard_normal((4000, 20)).astype(np.float32)) == pytest.approx(1, rel=0.03)
    assert spectral_roughness(np.ones((5, 1), np.float32) * np.arange(9, dtype=np.float32)) == pytest.approx(
        0, abs=1e-6
    )


def test_area_under_curve_and_rx() -> None:
    assert area_under_curve(np.array([1.0, 2, 3, 4]), np.array([False, False, True, True])) == 1
    assert area_under_curve(np.array([1.0, 1, 1, 1]), np.array([False, True, False, True])) == 0.5
    assert area_under_curve(np.array([1.0, 2]), np.array([True, True])) is None
    pixels = np.random.default_rng(1).standard_normal((500, 5)).astype(np.float32)
    pixels[7] += 9
    assert int(rx_scores(pixels).argmax()) == 7


def test_evaluate_without_a_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clean, marked = scene(40, 40), np.zeros((40, 40), np.uint8)
    clean[20, 20] += np.linspace(0, 1, 24, dtype=np.float32)
    marked[20, 20] = 1
    np.savez(tmp_path / "n.npz", cube=degrade(clean, SimulationConfig(sigma=20)), map=marked)
    assert run("denoise", tmp_path / "n.npz", "-o", tmp_path / "r", "--method", "nlm", "--quiet", "--no-report") == 0
    found = tmp_path / "m.json"
    assert run("evaluate", tmp_path / "r", "--input", tmp_path / "n.npz", "--map", "map", "--json", found) == 0
    told = json.loads(found.read_text())
    metrics = told["metrics"]
    assert metrics["sigma_mad_after"] < 0.5 * metrics["sigma_mad_before"] and metrics["snr_gain_db"] > 6
    assert metrics["spectral_roughness_after"] < metrics["spectral_roughness_before"]
    assert abs(metrics["residual_correlation_along"]) < 0.1 and metrics["rx_auc_after"] > 0.9
    assert len(told["bands"]) == 24 and "sigma_mad" in told["settings"]["explained"]
    for words in (
        (),
        ("--input", tmp_path / "n.npz", "--map", "none"),
        ("--reference", tmp_path / "n.npz", "--map", "map"),
    ):
        assert run("evaluate", tmp_path / "r", *words) == 2
    assert "Traceback" not in capsys.readouterr().err
    with pytest.raises(Exception, match="agree"):
        reference_free(Cube(clean[:9]), Cube(clean))


def test_calibration_writes_the_scale_that_covers(tmp_path: Path) -> None:
    np.save(tmp_path / "b.npy", scene())
    config = CalibrationConfig(
        data=DataConfig(validation=["b"]), cases=["gaussian"], sigmas=[30.0], samples=4, steps=5, crop=32
    )
    prior = calibrated(gaussian_prior(), [tmp_path], config)
    told = prior.card.calibration["intervals"]
    assert told["data"] == ["b"] and 0.2 < told["scale"] < 5 and 0.3 < told["coverage_before"] <= 1
    with pytest.raises(Exception, match="not trained on"):
        calibrated(gaussian_prior(), [tmp_path], config.model_copy(update={"data": DataConfig(validation=["zzz"])}))
