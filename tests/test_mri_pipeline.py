"""The MRI verbs from file to file: what they write, what they promise about it, and that the numbers are right."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from mri_files import (
    AFFINE,
    centred_fft,
    coil_kspace,
    image,
    ismrmrd_xml,
    line,
    mri,
    phantom,
    record,
    save_prior,
    write_ismrmrd,
    write_phantom,
)
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from domains.mri.classical import CLASSICAL, classical, noise_share
from domains.mri.containers import KSpace, Volume
from domains.mri.metrics import evaluate
from domains.mri.pipeline import LEARNED, ReconstructConfig, load_mri_prior, network_scale
from domains.mri.pipeline import reconstruct as run_method
from domains.mri.problem import pose
from domains.mri.simulation import SimulationConfig, coil_maps, kspace_of
from domains.mri.training import DataConfig, patch_source, split_subjects, subject_images
from domains.mri.tv import gradient, total_variation
from domains.mri.wavelet import inverse_wavelet, l1_wavelet, wavelet
from suite.config import load_config
from suite.errors import InputError

FIELDS = set(
    "command version domain method estimator config seed device prior inputs outputs nfe seconds peak_memory_mb "
    "misfit_chi2 warnings metrics acceleration".split()
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`k.h5` simulated from `phantom.nii.gz` at 2x, and `prior.safetensors`; not to be written to."""
    path = tmp_path_factory.mktemp("mri")
    write_phantom(path / "phantom.nii.gz", ny=64, nx=56)
    words = ("--acceleration", "2", "--coils", "4", "--acs", "0.2", "--mask", "uniform1d", "--snr", "24", "--quiet")
    assert mri("simulate", path / "phantom.nii.gz", "-o", path / "k.h5", *words) == 0
    save_prior(path / "prior.safetensors")
    return path


def reconstruct(folder: Path, out: Path, *words: str, file: str = "k.h5") -> Path:
    assert mri("reconstruct", folder / file, "-o", out, "--quiet", "--prior", folder / "prior.safetensors", *words) == 0
    return out


# --- the chain --------------------------------------------------------------------------------------------------------


def test_simulated_file_is_fastmri_layout(folder: Path) -> None:
    with h5py.File(folder / "k.h5") as file:
        kspace, mask = file["kspace"][()], file["mask"][()]
        assert kspace.shape == (2, 4, 64, 56) and kspace.dtype == np.complex64 and mask.shape == (56,)
        assert not kspace[..., mask == 0].any() and kspace[..., mask > 0].all()
        np.testing.assert_array_equal(file["reconstruction_rss"][()], phantom(2, 64, 56))
        assert abs(file.attrs["acceleration"] - 56 / int(mask.sum())) < 1e-9 and file.attrs["max"] == 180
        assert file.attrs["snr_db"] == 24 and file.attrs["noise_sigma"] > 0


@pytest.mark.parametrize("method", [*CLASSICAL, "dds"])
def test_simulate_reconstruct_evaluate(
    folder: Path, tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = reconstruct(folder, tmp_path / "out", "--method", method, "--steps", "3")
    files = {"magnitude.nii.gz", "phase.nii.gz", "reference.nii.gz", "magnitude.json", "report.html"}
    assert {path.name for path in out.iterdir()} == files | {"run.json"}
    run = record(out)
    assert set(run) >= FIELDS and set(run["outputs"]) == files
    assert (run["domain"], run["method"], run["estimator"]) == ("mri", method, "point")
    assert (run["prior"] is None, run["nfe"]) == ((False, 3) if method == "dds" else (True, 0))
    assert run["seconds"]["total"] >= run["seconds"]["network"] + run["seconds"]["operator"] - 0.01
    magnitude = nib.load(out / "magnitude.nii.gz")
    np.testing.assert_allclose(magnitude.affine, AFFINE, atol=1e-4)
    assert magnitude.shape == (56, 64, 2)
    capsys.readouterr()
    assert mri("evaluate", out, "--reference", folder / "phantom.nii.gz", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["metrics"]) == {"nmse", "psnr", "ssim"}
    assert mri("evaluate", out, "--reference", folder / "k.h5", "--json") == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == found["metrics"]
    least = {"zero_filled": 17, "dds": 10, "grappa": 20}.get(method, 22)
    assert found["metrics"]["psnr"] > least, found
    if method in ("sense", "wavelet", "tv"):
        assert 0.5 < run["misfit_chi2"] < 1.4  # CG-SENSE follows much of the noise
    left = run["misfit_chi2"] / run["misfit_chi2_adjusted"]  # of noise, by the last data step
    assert 0.3 < left < 0.99 if method == "dds" else left == 1
    assert run["verdict"]["line"] in (out / "report.html").read_text()


def test_samples_std_dicom_and_point_methods(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = reconstruct(folder, tmp_path / "out", "--samples", "2", "--steps", "2", "--dicom", "--no-report")
    run = record(out)
    assert (run["method"], run["estimator"]) == ("daps", "mean") and "std.nii.gz" in run["outputs"]
    assert image(out / "std.nii.gz").max() > 0 and not (out / "report.html").exists()
    for part in ("magnitude", "phase", "std"):
        series = sorted((out / "dicom" / part).glob("*.dcm"))
        assert len(series) == 2
    stored = pydicom.dcmread(out / "dicom" / "magnitude" / "0001.dcm")
    values = stored.pixel_array * float(stored.RescaleSlope)
    np.testing.assert_allclose(values, image(out / "magnitude.nii.gz")[0], atol=float(stored.RescaleSlope))
    assert mri("reconstruct", folder / "k.h5", "-o", tmp_path / "no", "--method", "dds", "--samples", "3") == 2
    assert "point estimator" in capsys.readouterr().err and not (tmp_path / "no").exists()


@pytest.mark.parametrize("method", [m for m in LEARNED if m != "contrasts"])
def test_every_learned_method_runs(folder: Path, tmp_path: Path, method: str) -> None:
    out = reconstruct(folder, tmp_path / "out", "--method", method, "--steps", "2", "--no-report")
    assert record(out)["estimator"] == LEARNED[method].estimator and np.isfinite(image(out / "magnitude.nii.gz")).all()


def test_result_does_not_depend_on_the_batch_and_is_refused_twice(folder: Path, tmp_path: Path) -> None:
    one, two = (
        reconstruct(folder, tmp_path / name, "--steps", "2", "--set", f"batch={n}", "--set", "precision=float32")
        for name, n in (("a", 1), ("b", 2))
    )
    np.testing.assert_allclose(image(one / "magnitude.nii.gz"), image(two / "magnitude.nii.gz"), atol=0.05)
    assert mri("reconstruct", folder / "k.h5", "-o", one, "--method", "sense") == 2
    assert mri("reconstruct", folder / "k.h5", "-o", one, "--method", "sense", "--overwrite", "--quiet") == 0
    assert record(one)["method"] == "sense"


def test_options_and_priors_are_checked(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_prior(tmp_path / "hu.safetensors", unit="HU")
    bad = (
        ("--prior", tmp_path / "hu.safetensors"),
        ("--set", "options.nothing=1", "--prior", folder / "prior.safetensors"),
        ("--set", "options.strength=x", "--prior", folder / "prior.safetensors"),
        ("--set", "coils.crop=3"),
        ("--method", "none"),
    )
    for words in bad:
        assert mri("reconstruct", folder / "k.h5", "-o", tmp_path / "o", *words) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1 and not (tmp_path / "o").exists()


def test_every_setting_in_the_shipped_yaml_is_the_default() -> None:
    root = Path(__file__).resolve().parent.parent
    assert load_config(ReconstructConfig, root / "configs" / "mri" / "reconstruct.yaml") == ReconstructConfig()


# --- invariances ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1e-6, 1e6, np.exp(2j)])
def test_units_and_global_phase_change_nothing_else(folder: Path, factor: complex) -> None:
    with h5py.File(folder / "k.h5") as file:
        data, sigma = file["kspace"][:1], float(file.attrs["noise_sigma"])
    config = ReconstructConfig(method="dds", steps=3, precision="float32")
    prior = load_mri_prior(folder / "prior.safetensors", torch.device("cpu"))
    for method in ("sense", "tv", "grappa", "dds"):
        outs = []
        for f in (1.0, factor):
            problem = pose(KSpace((f * data).astype(np.complex64), noise_sigma=sigma * abs(f)))
            learned = prior if method == "dds" else None
            out = run_method(method, problem, learned, config, ["a"], lambda _: nullcontext())
            outs.append(out.image.abs().numpy() / abs(f))
        if method != "dds" or abs(factor) != 1:  # a network is equivariant to phase only as far as training made it
            assert np.abs(outs[0] - outs[1]).max() < 1e-3 * outs[0].max(), method


@pytest.mark.parametrize("shape", [(63, 56), (64, 55), (61, 51)])
def test_odd_sizes_keep_the_image_in_place(shape: tuple[int, int]) -> None:
    ny, nx = shape
    volume = Volume(phantom(1, ny, nx), np.eye(4))
    scan = kspace_of(volume, SimulationConfig(acceleration=1.5, mask="uniform1d", coils=4, acs=0.3, snr=50.0))
    problem = pose(KSpace(scan.kspace, noise_sigma=scan.noise_sigma))
    for method in ("sense", "grappa", "tv"):
        found = (classical(method, problem).abs() * problem.unit())[:, 0].numpy()
        assert evaluate(found, scan.target)["metrics"]["psnr"] > 27, method


def test_3d_scan_is_solved_slice_by_slice_along_the_readout() -> None:
    side, top = phantom(1, 24, 32)[0][:, :, None], phantom(1, 32, 28)[0][None]
    volume = (side * (top > 0) + 0.5 * top * (side > 0)).astype(np.float32)  # (z, y, x)
    maps = coil_maps(4, (32, 28), 2).numpy()
    full = centred_fft(maps[:, None] * volume[None], (-3, -2, -1)).astype(np.complex64)[None]  # slab, coil, kz, ky, kx
    lines = (np.arange(32) % 2 == 0) | (abs(np.arange(32) - 16) <= 6)
    data = np.where(lines[:, None], full, 0)
    problem = pose(KSpace(data, three_d=True, noise_sigma=0.05))
    assert problem.slices == 28
    found = problem.volume(classical("sense", problem).abs() * problem.unit()).data
    assert found.shape == volume.shape and np.linalg.norm(found - volume) / np.linalg.norm(volume) < 0.1


def test_ismrmrd_noise_scan_whitens_correlated_coils(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    mixing = (np.eye(4) + 0.4 * rng.normal(size=(4, 4)) + 0.3j * rng.normal(size=(4, 4))) * 2
    clean = coil_kspace(4, 48, 40, 1)[0]

    def white(*shape: int) -> np.ndarray:
        return rng.normal(size=shape) + 1j * rng.normal(size=shape)

    data = clean + np.einsum("ij,jyx->iyx", mixing, white(4, 48, 40))
    noise = np.sqrt(0.8) * mixing @ white(4, 4096)  # the receiver's bandwidth takes a part of it
    rows = [line(noise, 0, flag=19)]
    rows += [line(data[:, y], 20, kspace_encode_step_1=y) for y in range(48) if y % 2 == 0 or 16 <= y < 32]
    write_ismrmrd(tmp_path / "k.h5", rows, ismrmrd_xml((40, 48, 1), (40, 48, 1)))
    assert mri("reconstruct", tmp_path / "k.h5", "-o", tmp_path / "o", "--method", "sense", "--quiet") == 0
    run = record(tmp_path / "o")
    assert run["noise_known"] and 0.6 < run["misfit_chi2"] < 1.1 and not run["warnings"]


def test_extra_dimensions_are_kept(tmp_path: Path) -> None:
    data = np.stack([coil_kspace(), 2 * coil_kspace()])  # (repetition, slice, coil, ky, kx)
    np.save(tmp_path / "k.npy", data + 0.01 * np.random.default_rng(0).normal(size=data.shape).astype(np.float32))
    assert mri("reconstruct", tmp_path / "k.npy", "-o", tmp_path / "o", "--method", "sense", "--quiet") == 0
    found = nib.load(tmp_path / "o" / "magnitude.nii.gz")
    assert found.shape == (40, 48, 2, 2)
    values = np.asarray(found.dataobj)
    inside = phantom().T > 50
    np.testing.assert_allclose(values[..., 1][inside], 2 * values[..., 0][inside], rtol=0.05)
    assert any("1 mm" in sentence for sentence in record(tmp_path / "o")["warnings"])


def test_radial_data_are_reconstructed(tmp_path: Path) -> None:
    angle, radius = np.meshgrid(2 * np.pi * np.arange(48) / 48, np.arange(48) - 24, indexing="ij")
    points = np.stack([radius * np.sin(angle), radius * np.cos(angle)], -1).reshape(-1, 2)
    maps, truth = coil_maps(4, (48, 48), 3).numpy(), phantom(1, 48, 48)
    r = np.arange(48) - 24
    kernel_y, kernel_x = (np.exp(-2j * np.pi * np.outer(points[:, i], r) / 48) for i in (0, 1))
    data = np.einsum("my,mx,cyx->cm", kernel_y, kernel_x, maps * truth) / 48
    np.save(tmp_path / "k.npy", data.reshape(1, 4, 48, 48).transpose(0, 2, 1, 3).astype(np.complex64))
    for method in ("sense", "zero_filled"):
        words = ("--method", method, "--set", "layout=[slice,spoke,coil,sample]", "--quiet", "--no-report")
        assert mri("reconstruct", tmp_path / "k.npy", "-o", tmp_path / method, *words) == 0
        found = image(tmp_path / method / "magnitude.nii.gz")
        assert np.linalg.norm(found - truth) / np.linalg.norm(truth) < 0.35
    assert mri("reconstruct", tmp_path / "k.npy", "-o", tmp_path / "g", "--method", "grappa", *words[2:]) == 2


# --- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(64, 48), (16, 80)])
def test_wavelet_transform_is_orthonormal_and_kills_polynomials(shape: tuple[int, int]) -> None:
    x = torch.randn((3, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    coefficients = wavelet(x)
    torch.testing.assert_close(inverse_wavelet(coefficients), x)
    assert abs(sum(float(c.square().sum()) for c in coefficients) - float(x.square().sum())) < 1e-6
    ramp = torch.linspace(-1, 1, 64, dtype=torch.float64) ** 3  # four vanishing moments
    details = wavelet(ramp.expand(64, 64), 1)[0]
    assert float(details[..., 4:-8, 4:-8].abs().max()) < 1e-9


def test_tv_and_wavelet_reach_their_minimum() -> None:
    scan = kspace_of(Volume(phantom(1), np.eye(4)), SimulationConfig(acceleration=2, coils=3, acs=0.3, snr=25.0))
    problem = pose(KSpace(scan.kspace, noise_sigma=scan.noise_sigma))
    operator, y = problem.operator(), problem.data
    start, weight = classical("sense", problem), 2 * noise_share(problem)

    def tv_cost(x: torch.Tensor) -> float:
        size = gradient(x).abs().square().sum(0).sqrt().sum()
        return float((operator(x) - y).abs().square().sum() / 2 + weight * size)

    best = total_variation(operator, y, start, weight, iterations=600)
    rng = torch.Generator().manual_seed(0)
    for size in (1e-2, 1e-1):
        for _ in range(5):
            step = torch.randn(best.shape, generator=rng, dtype=best.dtype) * size
            assert tv_cost(best) <= tv_cost(best + step)
    assert tv_cost(best) < 1.001 * tv_cost(total_variation(operator, y, start, weight))
    strong = l1_wavelet(operator, y, start, 1e6 * weight)  # everything but the approximation is gone
    assert float(strong.abs().std()) < float(best.abs().std())


def test_metrics_are_those_of_the_conventions() -> None:
    rng = np.random.default_rng(0)
    truth = phantom(3).astype(np.float32)
    found = (truth + rng.normal(size=truth.shape) * 5).astype(np.float32)
    a, b = np.abs(found.astype(float)), truth.astype(float)
    fast = evaluate(found, truth, "fastmri")["metrics"]
    assert np.isclose(fast["nmse"], np.linalg.norm(b - a) ** 2 / np.linalg.norm(b) ** 2)
    assert np.isclose(fast["psnr"], peak_signal_noise_ratio(b, a, data_range=b.max()))
    assert np.isclose(
        fast["ssim"], np.mean([structural_similarity(t, f, data_range=b.max()) for t, f in zip(b, a, strict=True)])
    )
    scaled = [[(v - v.min()) / (v.max() - v.min()) for v in stack] for stack in (b, a)]
    dds = evaluate(found, truth, "dds")["metrics"]
    assert np.isclose(
        dds["psnr"], np.mean([peak_signal_noise_ratio(t, f, data_range=1) for t, f in zip(*scaled, strict=True)])
    )
    by_slice = evaluate(found, truth, "slice")["metrics"]
    ranged = [peak_signal_noise_ratio(t, f, data_range=np.ptp(t)) for t, f in zip(b, a, strict=True)]
    assert np.isclose(by_slice["psnr"], np.mean(ranged))
    assert evaluate(3 * found, truth, "dds")["metrics"] == pytest.approx(dds)  # blind to scale
    for bad in ((found[:2], truth), (found[:, :5, :5], truth[:, :5, :5]), (found, truth * 0)):
        with pytest.raises(InputError):
            evaluate(*bad)


def test_network_scale_is_the_99th_percentile_and_an_empty_slice_takes_the_others() -> None:
    image_ = torch.zeros(2, 1, 10, 100, dtype=torch.complex64)
    image_[0] = torch.arange(1000).reshape(1, 10, 100)
    torch.testing.assert_close(network_scale(image_), torch.tensor([989.0, 989.0]))


# --- training ---------------------------------------------------------------------------------------------------------


def test_training_data_are_split_by_person_scaled_and_given_a_phase(tmp_path: Path) -> None:
    for name in ("anna_T1", "anna_T2", "ben", "carl"):
        write_phantom(tmp_path / f"{name}.nii.gz", slices=3)
    config = DataConfig(subjects={"anna*": "anna"}, validation=["anna"], exclude=["carl"])
    images = subject_images([tmp_path], config)
    assert set(images) == {"anna_T1", "anna_T2", "ben"}
    assert all(np.isclose(np.quantile(i, 0.99), 1, atol=0.02) for stack in images.values() for i in stack)
    train, held_out = split_subjects(images, config)
    assert ({s.name for s in train}, {s.name for s in held_out}) == ({"ben"}, {"anna"})
    source, _, _ = patch_source([tmp_path], config)
    x, _ = source.batch(8, 16, torch.Generator().manual_seed(0))
    again, _ = source.batch(8, 16, torch.Generator().manual_seed(0))
    assert x.shape == (8, 2, 16, 16) and torch.equal(x, again) and float(x[:, 1].abs().max()) > 0.1
    with pytest.raises(InputError, match="validation"):
        split_subjects(images, DataConfig())


def test_train_resumes_and_the_prior_reconstructs(folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_phantom(tmp_path / f"{name}.nii.gz", slices=2)
    settings = ["network.channels=[8,8]", "network.blocks=1", "patch=16", "batch=2", "steps=3", "data.validation=[b]"]
    words = [word for s in settings for word in ("--set", s)]
    out = tmp_path / "p.safetensors"
    assert mri("train", "--data", tmp_path, "-o", out, "--quiet", "--minutes", "0", *words) == 0
    assert mri("train", "--data", tmp_path, "-o", out, "--quiet", "--resume", "--overwrite", *words) == 0
    words = ["--prior", str(out), "--steps", "2", "--quiet", "--no-report"]
    assert mri("reconstruct", folder / "k.h5", "-o", tmp_path / "o", *words) == 0
    assert record(tmp_path / "o")["prior"]["name"] == "p"
