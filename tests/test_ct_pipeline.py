"""The CT verbs from file to file: what they write, what they promise about it, and that the numbers are right."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from ct_runs import AFFINE, ct, image, phantom_hu, record, save_prior, simulated, write_phantom
from pydicom.data import get_testdata_file
from safetensors.torch import load_file
from skimage.metrics import structural_similarity

from domains.ct.containers import Volume
from domains.ct.data import read_scan
from domains.ct.metrics import evaluate, window_range
from domains.ct.pipeline import CLASSICAL, LEARNED, SHIPPED, STEPS, load_ct_prior, scan_settings
from domains.ct.problem import GeometryConfig, pose
from domains.ct.simulation import resized
from domains.ct.training import DataConfig, split_subjects
from suite.errors import InputError
from suite.posterior import METHODS
from suite.prior import read_card

FIELDS = set(
    "command version domain method estimator config seed device prior inputs outputs nfe seconds peak_memory_mb "
    "misfit_chi2 warnings metrics unit".split()
)
SAMPLERS = [name for name in LEARNED if name in METHODS and METHODS[name].estimator == "sample"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated scan `scan.h5` of `phantom.nii.gz`, and `prior.safetensors`; not to be written to."""
    path = tmp_path_factory.mktemp("ct")
    simulated(path)
    save_prior(path / "prior.safetensors")
    return path


def reconstruct(folder: Path, out: Path, *words: str) -> Path:
    prior = ["--prior", folder / "prior.safetensors"]
    assert ct("reconstruct", folder / "scan.h5", "-o", out, "--quiet", *prior, *words) == 0
    return out


# --- the chain -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fbp", "tv", "sirt", "dds"])
def test_simulate_reconstruct_evaluate(
    folder: Path, tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = reconstruct(folder, tmp_path / "out", "--method", method, "--steps", "3")
    files = {"recon.nii.gz", "reference.nii.gz", "report.html"}
    assert {path.name for path in out.iterdir()} == files | {"run.json"}
    run = record(out)
    assert set(run) >= FIELDS and set(run["outputs"]) == files
    assert (run["domain"], run["method"], run["estimator"], run["unit"]) == ("ct", method, "point", "HU")
    assert (run["prior"] is None, run["nfe"]) == ((False, 3) if method == "dds" else (True, 0))
    assert run["inputs"][0]["file"] == "scan.h5" and len(run["inputs"][0]["sha256"]) == 64
    assert run["seconds"]["total"] >= run["seconds"]["network"] + run["seconds"]["operator"] - 0.01
    assert (run["seconds"]["network"] > 0) == (method == "dds")
    assert np.isfinite(run["misfit_chi2"])
    recon = nib.load(out / "recon.nii.gz")
    np.testing.assert_allclose(recon.affine, AFFINE, atol=1e-4)
    assert recon.shape == (48, 48, 3)
    capsys.readouterr()
    assert ct("evaluate", out, "--reference", folder / "phantom.nii.gz", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    names = [f"{kind}{window}" for window in ("", "_soft", "_lung", "_bone") for kind in ("psnr", "ssim")]
    assert set(found["metrics"]) == {"hu_rmse", "hu_bias", *names}
    assert [row["slice"] for row in found["slices"]] == [0, 1, 2] and found["settings"]["slices_evaluated"] == 3
    if method != "dds":  # its prior here knows nothing
        assert found["metrics"]["hu_rmse"] < 250


def test_tv_explains_the_data_and_beats_fbp(folder: Path, tmp_path: Path) -> None:
    truth = phantom_hu()
    errors = {}
    for method in ("fbp", "tv"):
        out = reconstruct(folder, tmp_path / method, "--method", method, "--no-report")
        errors[method] = np.sqrt(np.mean((image(out / "recon.nii.gz") - truth) ** 2))
        assert not (out / "report.html").exists()
    assert errors["tv"] < 0.6 * errors["fbp"]
    assert 0.5 < record(tmp_path / "tv")["misfit_chi2"] < 1.5
    fbp_again = image(tmp_path / "tv" / "reference.nii.gz")
    np.testing.assert_array_equal(fbp_again, image(tmp_path / "fbp" / "recon.nii.gz"))


@pytest.mark.parametrize("method", SAMPLERS)
def test_samples_give_a_mean_and_a_standard_deviation(folder: Path, tmp_path: Path, method: str) -> None:
    words = ["--method", method, "--steps", "2", "--samples", "2", "--no-report"]
    out = reconstruct(folder, tmp_path / "out", *words)
    run = record(out)
    assert run["estimator"] == "mean" and "std.nii.gz" in run["outputs"] and run["nfe"] <= 2
    std = image(out / "std.nii.gz")
    assert std.shape == image(out / "recon.nii.gz").shape and std.min() >= 0 and std.mean() > 0
    np.testing.assert_allclose(nib.load(out / "std.nii.gz").affine, AFFINE, atol=1e-4)


def test_the_random_numbers_follow_the_seed_and_not_the_batch(folder: Path, tmp_path: Path) -> None:
    words = ["--no-report", "--set", "precision=float32", "--steps", "3", "--method", "daps"]

    def run(name: str, *more: str) -> np.ndarray:
        return image(reconstruct(folder, tmp_path / name, *words, *more) / "recon.nii.gz")

    first = run("a", "--seed", "0", "--set", "batch=4")
    np.testing.assert_array_equal(run("b", "--set", "batch=4"), first)  # seed 0 is the default
    np.testing.assert_allclose(run("c", "--set", "batch=1"), first, atol=0.5)  # HU
    assert np.abs(run("d", "--seed", "1", "--set", "batch=4") - first).max() > 1


def test_a_finished_result_is_kept(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = reconstruct(folder, tmp_path / "out", "--method", "fbp", "--no-report")
    before = (out / "run.json").read_bytes()
    assert ct("reconstruct", folder / "scan.h5", "-o", out, "--method", "tv") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (out / "run.json").read_bytes() == before
    reconstruct(folder, out, "--method", "tv", "--overwrite", "--no-report")
    assert record(out)["method"] == "tv"


@pytest.mark.parametrize("method", [*CLASSICAL, *(n for n in METHODS if n in LEARNED and n not in SAMPLERS)])
def test_a_point_method_has_no_samples(
    folder: Path, tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ct("reconstruct", folder / "scan.h5", "-o", tmp_path / "out", "--method", method, "--samples", "2") == 2
    assert f"{method} is a point estimator" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- what the scan does not tell -------------------------------------------------------------------------------------


def without(folder: Path, tmp_path: Path, *names: str) -> Path:
    """A copy of the scan that lacks some attributes, beside the prior."""
    for name in ("scan.h5", "prior.safetensors"):
        shutil.copy(folder / name, tmp_path / name)
    with h5py.File(tmp_path / "scan.h5", "r+") as file:
        for name in names:
            del file["diffsuite"].attrs[name]
    return tmp_path


def test_without_mu_water_the_values_are_per_mm(folder: Path, tmp_path: Path) -> None:
    lacking = without(folder, tmp_path, "mu_water_per_mm")
    out = reconstruct(lacking, tmp_path / "fbp", "--method", "fbp")
    assert record(out)["unit"] == "1/mm"
    hu = image(reconstruct(folder, tmp_path / "hu", "--method", "fbp") / "recon.nii.gz")
    with h5py.File(folder / "scan.h5") as file:
        mu_water = float(file["diffsuite"].attrs["mu_water_per_mm"])
    np.testing.assert_allclose(image(out / "recon.nii.gz"), mu_water * (1 + hu / 1000), atol=1e-5)
    learned = reconstruct(lacking, tmp_path / "dds", "--steps", "2")
    run = record(learned)
    assert run["unit"] == "1/mm" and any("attenuation of water" in sentence for sentence in run["warnings"])
    one = reconstruct(lacking, tmp_path / "one", "--steps", "2", "--set", "batch=1")
    together = image(learned / "recon.nii.gz")
    np.testing.assert_allclose(image(one / "recon.nii.gz"), together, atol=1e-5)  # 0.5 HU


def test_without_photons_a_sentence_says_what_the_misfit_means(folder: Path, tmp_path: Path) -> None:
    out = reconstruct(without(folder, tmp_path, "photons"), tmp_path / "out", "--method", "fbp")
    assert any("photons per ray" in sentence for sentence in record(out)["warnings"])
    assert "photons per ray" in (out / "report.html").read_text()


def test_a_dicom_header_travels_through_the_scan(tmp_path: Path) -> None:
    source = Path(str(get_testdata_file("CT_small.dcm")))
    scan = simulated(tmp_path, "--size", "64", volume=source)
    with h5py.File(scan) as file:
        assert "dicom" in file["diffsuite"]
    assert ct("reconstruct", scan, "-o", tmp_path / "out", "--method", "fbp", "--no-report", "--quiet") == 0
    (made,) = sorted((tmp_path / "out" / "dicom").iterdir())
    old, new = pydicom.dcmread(source), pydicom.dcmread(made)
    assert (new.PatientID, new.StudyInstanceUID) == (old.PatientID, old.StudyInstanceUID)
    assert new.SeriesInstanceUID != old.SeriesInstanceUID and "NOT FOR PRIMARY DIAGNOSIS" in new.SeriesDescription
    hu = new.pixel_array * float(new.RescaleSlope) + float(new.RescaleIntercept)
    recon = nib.load(tmp_path / "out" / "recon.nii.gz")
    assert nib.aff2axcodes(recon.affine) == ("L", "P", "S")
    np.testing.assert_allclose(hu, image(tmp_path / "out" / "recon.nii.gz")[0].clip(-1024, None), atol=1.0)
    corner = np.array(old.ImagePositionPatient) + np.array([*old.PixelSpacing, 0]) / 2  # 2 x 2 pixels became one
    np.testing.assert_allclose(np.array(new.ImagePositionPatient), corner, atol=1e-3)
    np.testing.assert_allclose(new.PixelSpacing, 2 * np.array(old.PixelSpacing), rtol=1e-5)


# --- the numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", ["parallel", "fan"])
def test_fbp_of_a_disc_has_the_right_hu(tmp_path: Path, geometry: str) -> None:
    y, x = np.ogrid[:64, :64]
    radius = np.hypot(y - 31.5, x - 31.5)
    volume = write_phantom(tmp_path / "disc.nii.gz", np.where(radius < 20, 50.0, -1000.0)[None])
    words = ["--geometry", geometry, "--views", "120", "--photons", "1e7"]
    scan = simulated(tmp_path, *words, volume=volume)
    assert ct("reconstruct", scan, "-o", tmp_path / "out", "--method", "fbp", "--no-report", "--quiet") == 0
    recon = image(tmp_path / "out" / "recon.nii.gz")[0]
    assert recon[radius < 17].mean() == pytest.approx(50, abs=8)
    assert recon[(radius > 24) & (radius < 31)].mean() == pytest.approx(-1000, abs=8)


@pytest.mark.parametrize("size", [16, 20])
def test_a_resized_volume_keeps_its_mean_and_its_place(size: int) -> None:
    data = np.random.default_rng(0).normal(0, 100, (2, 48, 48)).astype(np.float32) + np.float32(40)
    data += np.linspace(0, 300, 48, dtype=np.float32)
    small = resized(Volume(data, AFFINE), size)
    assert small.data.shape == (2, size, size)
    assert small.data.mean() == pytest.approx(data.mean(), abs=3)
    middle = small.affine @ [(size - 1) / 2, (size - 1) / 2, 1, 1]
    np.testing.assert_allclose(middle, AFFINE @ [23.5, 23.5, 1, 1], atol=1e-9)
    assert small.pixel_size_mm == pytest.approx(2 * 48 / size)
    if size == 16:
        blocks = data.reshape(2, 16, 3, 16, 3).mean((2, 4))
        np.testing.assert_allclose(small.data, blocks, atol=1e-3)


def test_an_oblong_slice_is_padded_with_air_about_its_centre() -> None:
    small = resized(Volume(np.zeros((1, 32, 48), dtype=np.float32), AFFINE), 24)
    assert small.data.shape == (1, 24, 24) and small.data[0, 0, 0] < -1000 and small.data[0, 12, 12] == 0
    np.testing.assert_allclose(small.affine @ [11.5, 11.5, 0, 1], AFFINE @ [23.5, 15.5, 0, 1], atol=1e-9)
    with pytest.raises(InputError, match="finer"):
        resized(Volume(np.zeros((1, 32, 32), dtype=np.float32), AFFINE), 64)


def test_metrics_by_hand() -> None:
    y, x = np.ogrid[:40, :40]
    inside = np.hypot(y - 19.5, x - 19.5) < 15
    truth = np.where(inside, 0.0, -1000.0).astype(np.float32)[None]
    result = truth + np.where(x < 20, 30.0, -10.0).astype(np.float32) + np.where(inside, 0, 500).astype(np.float32)
    found = evaluate(result, truth)["metrics"]  # half of the body is 30 too high, the other half 10 too low
    assert found["hu_bias"] == pytest.approx(10, abs=1e-4)
    assert found["hu_rmse"] == pytest.approx(np.sqrt(500), rel=1e-6)
    assert found["psnr"] == pytest.approx(10 * np.log10(4095**2 / 500), abs=1e-4)
    assert found["psnr_soft"] == pytest.approx(10 * np.log10(400**2 / 500), abs=1e-4)
    low, high = window_range("soft")
    assert (low, high) == (-160, 240)
    clipped = [v[0].clip(low, high).astype(np.float64) for v in (result, truth)]
    _, picture = structural_similarity(*clipped, data_range=400, full=True)
    assert found["ssim_soft"] == pytest.approx(picture[inside].mean(), abs=1e-4)


def test_identical_images_have_finite_metrics(tmp_path: Path) -> None:
    """Where scikit-image says infinite: JSON has no such number, and one such slice must not hide the others."""
    volume = write_phantom(tmp_path / "phantom.nii.gz", phantom_hu())
    assert ct("evaluate", volume, "--reference", volume, "--json", tmp_path / "same.json") == 0
    found = json.loads((tmp_path / "same.json").read_text())["metrics"]
    assert found["hu_rmse"] == found["hu_bias"] == 0 and found["ssim_lung"] == pytest.approx(1)
    for name in ("psnr", "psnr_soft", "psnr_lung", "psnr_bone"):
        assert found[name] == pytest.approx(20 * np.log10(2**23))


def test_metrics_leave_out_slices_without_a_body() -> None:
    truth = phantom_hu().astype(np.float32)
    truth[1] = -1000
    found = evaluate(truth + np.float32(5), truth)
    assert [row["slice"] for row in found["slices"]] == [0, 2]
    assert found["metrics"]["hu_bias"] == pytest.approx(5, abs=1e-3)
    with pytest.raises(InputError, match="body"):
        evaluate(truth[1:2], truth[1:2])


def test_views_of_one_subject_stay_on_one_side() -> None:
    picture = [np.zeros((16, 16), dtype=np.float32)]
    other = [np.zeros((16, 20), dtype=np.float32)]
    images = {"a": picture, "a+coronal": other, "b": picture + other, "b+slabs": picture, "b+sagittal": other}
    train, held_out = split_subjects(images, DataConfig(validation=["b"]))
    assert {s.name for s in train} == {"a"} and {s.name for s in held_out} == {"b"}
    assert sum(len(s.images) for s in train) == 2 and sum(len(s.images) for s in held_out) == 4
    with pytest.raises(InputError, match=r"data\.validation"):
        split_subjects(images, DataConfig())


def test_a_prior_trained_here_reconstructs(folder: Path, tmp_path: Path) -> None:
    for name in ("anna", "bert"):
        write_phantom(tmp_path / f"{name}.nii.gz")
    small = "network.channels=[8,8] network.blocks=1 network.features=8 patch=16 batch=2 steps=4 validate_every=4"
    words = [part for setting in [*small.split(), "data.validation=[bert]"] for part in ("--set", setting)]
    for name in ("own", "again"):
        assert ct("train", "--data", tmp_path, "-o", tmp_path / f"{name}.safetensors", "--quiet", *words) == 0
    own = tmp_path / "own.safetensors"
    card = read_card(own)
    assert (card.data, card.validation_data, card.training["steps"]) == (["anna"], ["bert"], 4)
    assert card.licence == "weights: those of the training data"  # nothing is claimed of data that are not ours
    assert load_file(own).keys() == load_file(tmp_path / "again.safetensors").keys()
    assert all(torch.equal(v, load_file(tmp_path / "again.safetensors")[k]) for k, v in load_file(own).items())
    out = ["-o", tmp_path / "out", "--prior", own, "--steps", "2", "--no-report", "--quiet"]
    assert ct("reconstruct", folder / "scan.h5", *out) == 0
    assert record(tmp_path / "out")["prior"]["name"] == "own"


# --- the page that tells of it ---------------------------------------------------------------------------------------


def test_the_readme_lists_all_methods_as_the_code_has_them() -> None:
    """In two tables: those of the command line, then the others."""
    text = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
    offered, _, others = text.partition("From Python")
    steps = {name: STEPS.get(name, method.steps) for name, method in (METHODS | LEARNED).items()}
    for part, names in ((offered, {*CLASSICAL, *LEARNED}), (others, set(METHODS) - set(LEARNED))):
        rows = re.findall(r"^\| `(\w+)` \| (sample|point) \| (\d+) \|", part, re.MULTILINE)
        labels = {name: METHODS[name].estimator if name in METHODS else "point" for name in names}
        assert sorted(rows) == sorted((name, labels[name], str(steps.get(name, 0))) for name in names)


def test_the_settings_of_dds_follow_the_scan(folder: Path) -> None:
    """Sixteen times the photons: a quarter of the last level, and no less weight on the data."""
    prior = load_ct_prior(SHIPPED, torch.device("cpu"))
    problem = pose(read_scan(folder / "scan.h5"), GeometryConfig())
    y, weights = problem.data
    mu = float(problem.scan.mu_water_per_mm or 0.02)
    settings = [
        scan_settings(replace(problem, data=type(problem.data)(y, weights * factor)), prior, mu)
        for factor in (1e-3, 16e-3)
    ]
    noisy, clean = (s["finest"] for s in settings)
    assert noisy.shape == (len(y),)
    torch.testing.assert_close(noisy, (4 * clean).clamp(max=0.1))
    assert bool((settings[0]["strength"] <= settings[1]["strength"]).all())
